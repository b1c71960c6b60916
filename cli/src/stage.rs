//! `kinora stage`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use kinora::engine::Engine;
use kinora::stage::{Stage, run_stage};

use crate::files::{Device, read, write};

const STAGES: &str = "\
Input and output are safetensors files. All tensors are f32, ids and grids i32.

  STAGE        INPUT                                             OUTPUT
  encode-text  input_ids [n]                                     embeddings [n, d]
  block0       hidden [tokens, dim], timestep_proj [F, 6, dim],  hidden [tokens, dim]
               text [n, dim], grid [3]
  denoise      latents [C, F, H, W], timesteps [F], text [n, d]  velocity [C, F, H, W]
  sample       noise [C, F, H, W], text [n, d]                   latents [C, F, H, W]
  decode       latents [C, F, H, W]                              frames [N, 3, H, W]
  encode       frames [N, 3, H, W]                               latents [C, F, H, W]

C, F, H, W are channels, frames, rows and columns of the latents; N is the number of frames. Latents are normalised,
about N(0, 1) per channel. Timesteps are 0 (clean) to 1000 (noise), one per latent frame. Frames are RGB from 0 to 1.
text holds the embeddings of the real tokens; it is padded with zeros to the model's length. block0 is the first block
of the transformer alone; dim is its width, its text is already projected to that width.

Example: hold the denoiser against diffusers
  kinora stage denoise --model model --in inputs.safetensors --out velocity.safetensors";

/// Run one part of the pipeline on given tensors, to hold it against a reference
#[derive(Args)]
#[command(after_help = STAGES)]
pub struct StageCommand {
    /// encode-text, block0, denoise, sample, decode or encode
    #[arg(value_name = "STAGE")]
    stage: Stage,
    /// Directory with manifest.json
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Safetensors file with the input tensors
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Safetensors file for the output tensors
    #[arg(long = "out", value_name = "FILE")]
    output: PathBuf,
    /// Where to run
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
    /// Run it so many times and print the seconds of each: the first compiles the kernels
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
}

impl StageCommand {
    pub fn run(self) -> Result<()> {
        let input = read(&self.input)?;
        eprintln!("loading {}", self.model.display());
        // The text encoder is needed once or not at all.
        let engine = Engine::load_dir_streamed(&self.model, self.device.into(), None)?;
        let mut result = Vec::new();
        for _ in 0..self.repeat {
            let started = std::time::Instant::now();
            result = pollster::block_on(run_stage(&engine, self.stage, &input))?;
            eprintln!("ran in {:.3} s", started.elapsed().as_secs_f64());
        }
        write(&self.output, &result)
    }
}
