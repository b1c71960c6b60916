//! `kinora download`

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use hf_hub::Cache;
use kinora::pack::registry::{Registry, registry};

use crate::files::print;
use hub::Hub;

mod error;
mod hub;

/// The hub itself; HF_ENDPOINT names a mirror, as for the hub's own programs.
const HUB: &str = "https://huggingface.co";

/// Download the files of a known checkpoint from the Hugging Face hub
///
/// What is fetched and from where stands in `kinora models`. A download that was interrupted goes on where it was when
/// the command is given again. Lengths are held against the list, contents against the hub's SHA-256.
///
/// The environment variables HF_TOKEN (for repositories that ask who you are), HF_ENDPOINT and HF_HOME (where a login
/// of the hub's own programs is kept) mean what they mean there.
#[derive(Args)]
pub struct Download {
    /// Name from `kinora models`, of a checkpoint or of a file for another part
    #[arg(value_name = "NAME")]
    name: String,
    /// Directory for the files; without it one of that name is made here
    #[arg(long = "to", value_name = "DIR")]
    to: Option<PathBuf>,
    /// A list of your own in the form of `kinora models --json`, for checkpoints that are not in ours
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Address of a mirror of the hub
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

impl Download {
    pub fn run(self) -> Result<()> {
        let remotes = match &self.list {
            Some(path) => {
                let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
                Registry::parse(&text)?.remote(&self.name)?
            }
            None => registry()?.remote(&self.name)?,
        };
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let endpoint = self.endpoint.or_else(|| variable("HF_ENDPOINT")).unwrap_or_else(|| HUB.into());
        let token = variable("HF_TOKEN").or_else(|| Cache::from_env().token());
        let hub = Hub::new(&endpoint, token)?;
        let folder = self.to.unwrap_or_else(|| PathBuf::from(&self.name));
        for remote in &remotes {
            for path in hub.download(remote, &folder)? {
                print(path.display());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
