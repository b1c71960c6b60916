//! `kinora inspect`

use std::path::PathBuf;

use clap::Args;

use crate::files::print;

/// Show what a packed model is: parts, formats, shards, sizes
///
/// Reads and checks the manifest only; `kinora verify` checks the weights.
#[derive(Args)]
pub struct Inspect {
    /// Directory with manifest.json
    #[arg(value_name = "DIR")]
    model: PathBuf,
}

impl Inspect {
    pub fn run(self) -> anyhow::Result<()> {
        print(kinora::pack::inspect(&self.model)?);
        Ok(())
    }
}
