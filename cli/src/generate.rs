//! `kinora generate`

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use kinora::engine::{Engine, GenerateRequest};
use kinora::model::plan::Residency;

use crate::files::{Device, bytes, read};
use crate::lora;
use crate::output::{Output, Picture};

/// Make a clip from a prompt
///
/// With `--out DIR` every frame becomes a PNG (frame-00001.png, …), and contact-sheet.png shows frames of the whole
/// clip side by side. With `--out clip.y4m` the clip is one uncompressed YUV4MPEG2 file: 4:2:0 with centred chroma,
/// BT.601 matrix, limited range (Y from 16 to 235, Cb and Cr from 16 to 240). Players and ffmpeg read it:
///
///   ffmpeg -i clip.y4m -pix_fmt yuv420p clip.mp4
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub struct Generate {
    /// Directory with manifest.json
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What the clip shows
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Prompt pack of `kinora prompts`; a prompt that it has needs no text encoder
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// The same seed, prompt and size give the same clip
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Width in pixels; without it the model's default
    #[arg(long)]
    width: Option<u32>,
    /// Height in pixels; without it the model's default
    #[arg(long)]
    height: Option<u32>,
    /// Number of frames; without it the model's default
    #[arg(long)]
    frames: Option<u32>,
    /// LoRA to apply to the denoiser, a safetensors file, with its strength (1 without); may be given several times
    #[arg(long = "lora", value_name = "FILE[=STRENGTH]")]
    loras: Vec<String>,
    /// Memory there is, such as 4GiB or 800MB, on host and graphics device together; where it is too short for the model
    /// as a whole, text encoder, denoiser and decoder are read in turns, and a clip that needs more is an error
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// Directory for PNG files, or a file that ends in .y4m
    #[arg(long = "out", value_name = "DIR|FILE.y4m")]
    output: PathBuf,
    /// Where to run
    #[arg(long, value_enum, default_value = "cpu")]
    device: Device,
}

impl Generate {
    pub fn run(self) -> Result<()> {
        eprintln!("loading {}", self.model.display());
        let started = Instant::now();
        let pack = self.prompts.as_deref().map(read).transpose()?;
        let mut lora_bytes = 0;
        let mut files = Vec::with_capacity(self.loras.len());
        for text in &self.loras {
            let (path, strength) = lora::split(text);
            let file = read(Path::new(path))?;
            lora_bytes += file.len() as u64;
            files.push((path, file, strength));
        }
        let Self { prompt, seed, width, height, frames, .. } = self;
        let request = GenerateRequest { prompt, seed, width, height, frames, lora_bytes };
        // One clip needs one prompt: the text encoder is read once, layer by layer, and never held as a whole.
        let (device, pack) = (self.device.into(), pack.as_deref());
        let mut engine = match self.memory {
            Some(memory) => Engine::load_dir_within(&self.model, device, pack, memory, &request)?,
            None => Engine::load_dir_streamed(&self.model, device, pack)?,
        };
        let mut loras = Vec::with_capacity(files.len());
        for (path, file, strength) in files {
            loras.push((engine.add_lora(path, &file)?, strength));
        }
        engine.use_loras(&loras)?;
        let engine = Rc::new(engine);
        eprintln!("loaded in {:.2} s", started.elapsed().as_secs_f64());
        pollster::block_on(clip(&engine, &request, &self.output))
    }
}

async fn clip(engine: &Rc<Engine>, request: &GenerateRequest, path: &Path) -> Result<()> {
    let started = Instant::now();
    let unknown = engine.check(request)?.unknown_words;
    if !unknown.is_empty() {
        eprintln!(
            "the model has never seen {}, and may draw something else there; the words it knows are the vocabulary in its \
             manifest.json",
            unknown.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
        );
    }
    let mut generation = engine.begin(request).await?;
    let size = generation.size();
    let turns = if generation.residency() == Residency::Turns { ", parts of the model in turns" } else { "" };
    eprintln!("{size}, {} steps, seed {}{turns}", generation.steps(), request.seed);
    // Opened before the work: a path that cannot be written is known at once.
    let mut output = Output::create(path, size, generation.fps())?;
    let mut lap = Instant::now();
    let frame_bytes = 4 * size.width as usize * size.height as usize;
    // Causal models give the frames of a chunk before they begin the next.
    while !generation.finished() {
        while let Some(step) = generation.step().await? {
            let seconds = lap.elapsed().as_secs_f64();
            eprintln!("step {} of {}, sigma {:.3}, {seconds:.2} s", step.index + 1, step.steps, step.sigma);
            lap = Instant::now();
        }
        while let Some(batch) = generation.next_frames().await? {
            for rgba in batch.rgba.chunks_exact(frame_bytes) {
                output.add(Picture {
                    width: size.width as usize,
                    height: size.height as usize,
                    rgba: rgba.to_vec(),
                })?;
            }
            let seconds = lap.elapsed().as_secs_f64();
            eprintln!("decoded {} of {} frames, {seconds:.2} s", batch.first + batch.count, size.frames);
            lap = Instant::now();
        }
    }
    output.finish()?;
    eprintln!("wrote {} after {:.2} s", path.display(), started.elapsed().as_secs_f64());
    Ok(())
}
