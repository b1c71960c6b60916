
pub mod layout;
pub mod manifest;
mod validate;
