//! `kinora verify`

use std::path::PathBuf;

use clap::Args;

use crate::files::print;

/// Check every file of a packed model: length, SHA-256, and that all weights are finite
///
/// Lists all files; the exit code is 1 if one of them is wrong.
#[derive(Args)]
pub struct Verify {
    /// Directory with manifest.json
    #[arg(value_name = "DIR")]
    model: PathBuf,
}

impl Verify {
    pub fn run(self) -> anyhow::Result<()> {
        let result = kinora::pack::verify(&self.model)?;
        print(&result);
        match result.problem() {
            Some(problem) => Err(problem.clone().into()),
            None => Ok(()),
        }
    }
}
