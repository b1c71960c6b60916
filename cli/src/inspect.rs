//! `kinora inspect`

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use kinora::model::manifest::Manifest;
use kinora::model::plan::{Limits, MemoryPlan, PlanRequest, Residency, Target, TextWeights};

use crate::files::{Device, bytes, print};
use crate::lora;

/// Show what a packed model is, and what a clip of it needs
///
/// Without options: parts, formats, shards, sizes. With `--size` or any option below it: what a clip takes to fetch and
/// in memory, stage by stage, and whether that is there. Reads and checks the manifest only; `kinora verify` checks the
/// weights.
#[derive(Args)]
pub struct Inspect {
    /// Directory with manifest.json
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Plan a clip of this size in pixels, such as 480x272; without it the model's default
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size)]
    size: Option<(u32, u32)>,
    /// Plan a clip of so many frames; without it the first that the size is offered with
    #[arg(long)]
    frames: Option<u32>,
    /// Where it would run; without it on the graphics device
    #[arg(long, value_enum)]
    device: Option<Device>,
    /// Memory there is, such as 4GiB or 800MB; where it is too short for the model as a whole, the plan is one with text
    /// encoder, denoiser and decoder in turns, and a clip that needs more all the same is an error, with the largest
    /// one that does not
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// Tokens of the prompt; without it as many as the model takes
    #[arg(long)]
    tokens: Option<u64>,
    /// The prompt is in a prompt pack, so that the text encoder has nothing to do
    #[arg(long)]
    packed: bool,
    /// Plan with text encoder, denoiser and decoder in turns, as where memory is short
    #[arg(long)]
    turns: bool,
    /// LoRA that lies beside the weights, a safetensors file; may be given several times
    #[arg(long = "lora", value_name = "FILE")]
    loras: Vec<String>,
    /// Print the plan as JSON, in bytes
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let plain = self.size.is_none() && self.frames.is_none() && self.device.is_none() && self.memory.is_none();
        if plain && self.tokens.is_none() && !self.packed && !self.turns && self.loras.is_empty() && !self.json {
            print(kinora::pack::inspect(&self.model)?);
            return Ok(());
        }
        let manifest = kinora::pack::read_manifest(&self.model)?;
        let request = self.request(&manifest)?;
        let limits = Limits { memory: self.memory, turns: true, ..Limits::default() };
        let fitting = MemoryPlan::within(&manifest, &request, &limits);
        // A clip that does not fit is shown too: which stage takes the memory, and how much.
        let plan = match &fitting {
            Ok(plan) => plan.clone(),
            Err(_) => MemoryPlan::of(&manifest, &request)?,
        };
        if self.json {
            print(serde_json::to_string_pretty(&plan)?);
        } else {
            print(&plan);
        }
        fitting?;
        if self.memory.is_some() && !self.json {
            print(match plan.residency {
                Residency::Together => "It fits.",
                Residency::Turns => "It fits, with the parts of the model in turns.",
            });
        }
        Ok(())
    }

    fn request(&self, manifest: &Manifest) -> Result<PlanRequest> {
        let (width, height) = self.size.unzip();
        let size = manifest.find_size(width, height, self.frames)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let target = match self.device {
            Some(Device::Cpu) => Target::Cpu { threads },
            Some(Device::Gpu) | None => Target::Gpu,
        };
        let mut lora_bytes = 0;
        for text in &self.loras {
            let (path, _) = lora::split(text);
            lora_bytes += fs::metadata(path).with_context(|| format!("cannot read {path}"))?.len();
        }
        let text = TextWeights::usual(manifest);
        let residency = if self.turns { Residency::Turns } else { Residency::Together };
        Ok(PlanRequest { size, tokens: self.tokens, target, text, packed: self.packed, lora_bytes, residency })
    }
}

fn size(text: &str) -> Result<(u32, u32)> {
    let sides =
        text.split_once(['x', '×']).and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sides.with_context(|| format!("{text:?} is no size; write it like 480x272"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("480x272").unwrap(), (480, 272));
        assert!(size("480").is_err() && size("480x-2").is_err());
    }
}
