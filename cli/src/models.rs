//! `kinora models`

use clap::Args;
use kinora::pack::registry::registry;

use crate::files::print;

/// List the public checkpoints that are known, with repository, file, licence, sampler and sizes
///
/// `kinora download NAME` fetches the files of an entry; docs/BRING_YOUR_OWN_WEIGHTS.md says what to do with them.
#[derive(Args)]
pub struct Models {
    /// Print the whole list as JSON, with step tables and configurations
    #[arg(long)]
    json: bool,
}

impl Models {
    pub fn run(self) -> anyhow::Result<()> {
        let registry = registry()?;
        let sizes = registry.sizes()?;
        if self.json {
            let mut all = serde_json::to_value(registry)?;
            all["sizes"] = serde_json::to_value(&sizes)?;
            print(serde_json::to_string_pretty(&all)?);
        } else {
            let rows: Vec<String> = sizes.iter().map(ToString::to_string).collect();
            print(format!("{registry}\nPacked:\n  {}", rows.join("\n  ")));
        }
        Ok(())
    }
}
