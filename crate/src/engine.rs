//! A loaded model and the clips being made with it.

use std::rc::Rc;

use crate::compute::{Compute, Kind};
use crate::decode::taehv::{DecoderState, Frame, Taehv, latent_frame};
use crate::denoise::sampler::{Sampler, guided};
use crate::denoise::wan::{TextContext, Wan};
use crate::error::{Error, Result};
use crate::frames::{cut, to_rgba};
use crate::gpu::{self, GpuOptions};
use crate::latents::noise;
use crate::model::manifest::{ClipSize, Manifest};
use crate::model::shards::{ShardAssembler, verify_file};
use crate::text::tokenizer::{Prompt, Tokenizer};
use crate::text::umt5::Umt5;
use crate::weights::WeightStore;

/// Weights widened to f32 on the CPU device at load only while they stay below this.
const WIDEN_LIMIT_BYTES: u64 = 256 << 20;

/// Where to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
    /// WebGPU in a browser, wgpu natively.
    Gpu {
        /// Ask for guaranteed limits only.
        strict_limits: bool,
    },
}

/// A model on its way into memory: manifest and tokenizer are checked, shards arrive one by one.
pub struct Loading {
    manifest: Manifest,
    tokenizer: Tokenizer,
    shards: ShardAssembler,
    store: WeightStore,
}

impl Loading {
    /// Checks manifest and tokenizer and opens the device. Nothing is fetched here.
    pub async fn new(manifest: &str, tokenizer: &str, device: DeviceChoice) -> Result<Self> {
        let manifest = Manifest::parse(manifest)?;
        verify_file(&manifest.text_encoder.tokenizer, tokenizer.as_bytes())?;
        let tokenizer = Tokenizer::parse(tokenizer, &manifest)?;
        let mut compute = match device {
            DeviceChoice::Cpu => Compute::cpu(),
            DeviceChoice::Gpu { strict_limits } => {
                gpu::open(GpuOptions {
                    strict_limits,
                    max_storage_buffer_binding_size: manifest.requires.max_storage_buffer_binding_size,
                    max_buffer_size: manifest.requires.max_buffer_size,
                })
                .await?
            }
        };
        let elements: u64 = manifest.tensors.values().map(|tensor| tensor.elements() as u64).sum();
        compute.widen_on_load = elements * 4 <= WIDEN_LIMIT_BYTES;
        Ok(Self { shards: ShardAssembler::new(&manifest), store: WeightStore::new(compute), manifest, tokenizer })
    }

    /// The device that was opened.
    pub fn compute(&self) -> &Compute {
        self.store.compute()
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Shards that have not been added, in order of first use.
    pub fn missing_shards(&self) -> Vec<usize> {
        self.shards.missing()
    }

    /// Verifies a shard, takes its tensors and frees it. Error: [`Error::Integrity`]; the shard can be added again.
    pub fn add_shard(&mut self, index: usize, bytes: Vec<u8>) -> Result<()> {
        for tensor in self.shards.add(index, &bytes)? {
            self.store.insert(tensor);
        }
        Ok(())
    }

    /// Builds the models once every shard is there.
    pub fn finish(mut self) -> Result<Engine> {
        let missing = self.missing_shards();
        if !missing.is_empty() {
            return Err(Error::InvalidRequest(format!("{} shards have not been loaded yet", missing.len())));
        }
        let compute = self.store.compute().clone();
        Ok(Engine {
            text_encoder: Umt5::load(&self.manifest.text_encoder, &mut self.store)?,
            denoiser: Wan::load(&self.manifest.transformer, &mut self.store)?,
            autoencoder: Taehv::load(&self.manifest.autoencoder, &mut self.store)?,
            manifest: self.manifest,
            tokenizer: self.tokenizer,
            compute,
        })
    }
}

/// A model ready to run.
pub struct Engine {
    /// What the model is.
    pub manifest: Manifest,
    /// Prompts to ids.
    pub tokenizer: Tokenizer,
    /// Ids to embeddings.
    pub text_encoder: Umt5,
    /// Latents to velocities.
    pub denoiser: Wan,
    /// Latents to frames and back.
    pub autoencoder: Taehv,
    /// Where all of it lives.
    pub compute: Compute,
}

/// What to make. Sizes that are left out are the model's first.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
pub struct GenerateRequest {
    /// What the clip shows.
    pub prompt: String,
    /// Same seed, same clip.
    #[serde(default)]
    pub seed: u64,
    /// Pixels.
    pub width: Option<u32>,
    /// Pixels.
    pub height: Option<u32>,
    /// Number of frames.
    pub frames: Option<u32>,
}

/// One denoising step that has been done.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct StepInfo {
    /// 0-based.
    pub index: usize,
    /// Steps in all.
    pub steps: usize,
    /// Noise level the step started from.
    pub sigma: f64,
}

/// Decoded frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameBatch {
    /// Index of the first frame.
    pub first: usize,
    /// How many.
    pub count: usize,
    /// RGBA bytes, one frame after the other.
    pub rgba: Vec<u8>,
}

impl Engine {
    /// Loads a model directory (native only).
    #[cfg(not(target_family = "wasm"))]
    pub fn load_dir(dir: &std::path::Path, device: DeviceChoice) -> Result<Self> {
        let read = |path: &std::path::Path| {
            std::fs::read(path).map_err(|e| Error::InvalidRequest(format!("{} cannot be read ({e})", path.display())))
        };
        let text = |path: &std::path::Path| {
            String::from_utf8(read(path)?).map_err(|_| Error::Manifest(format!("{} is not UTF-8", path.display())))
        };
        let manifest = text(&dir.join("manifest.json"))?;
        let tokenizer_path = Manifest::parse(&manifest)?.text_encoder.tokenizer.path;
        let tokenizer = text(&dir.join(tokenizer_path))?;
        let mut loading = wait(Loading::new(&manifest, &tokenizer, device))?;
        for index in loading.missing_shards() {
            let path = dir.join(&loading.manifest.shards[index].path);
            loading.add_shard(index, read(&path)?)?;
        }
        loading.finish()
    }

    /// Checks a request without running anything.
    pub fn check(&self, request: &GenerateRequest) -> Result<(Prompt, ClipSize)> {
        check(&self.manifest, &self.tokenizer, request)
    }

    /// Encodes the prompt and draws the noise.
    pub async fn begin(self: &Rc<Self>, request: &GenerateRequest) -> Result<Generation> {
        let (prompt, size) = self.check(request)?;
        let embeddings = self.text_encoder.encode(&self.compute, &prompt.ids).await?;
        let text = self.conditions(embeddings).await?;
        let shape = self.manifest.latent_shape(size.width, size.height, size.frames);
        let latents = noise::normal(request.seed, 0, shape.iter().product());
        let sampler = Sampler::new(&self.manifest.sampler);
        let clean = latents.clone();
        Ok(Generation {
            engine: self.clone(),
            size,
            shape,
            text,
            sampler,
            seed: request.seed,
            done: 0,
            latents,
            clean,
            decoder: None,
            decoded: 0,
            emitted: 0,
        })
    }

    /// What the denoiser is asked for, and what it is led away from where the model is guided.
    async fn conditions(&self, embeddings: Vec<f32>) -> Result<Conditions> {
        let config = &self.manifest.text_encoder;
        let context = |embeddings| self.denoiser.text_context(&self.compute, embeddings, config.max_tokens);
        let sampler = &self.manifest.sampler;
        let mut free = None;
        if sampler.guidance != 1.0 {
            let ids = self.tokenizer.encode_any(&sampler.negative_prompt)?;
            free = Some(context(self.text_encoder.encode(&self.compute, &ids).await?)?);
        }
        Ok(Conditions { captioned: context(embeddings)?, free })
    }

    /// All steps on given noise `[C, F, H, W]`: what `kinora stage sample` runs.
    pub async fn sample(&self, noise: Vec<f32>, shape: [usize; 4], embeddings: Vec<f32>) -> Result<Vec<f32>> {
        let text = self.conditions(embeddings).await?;
        let mut sampler = Sampler::new(&self.manifest.sampler);
        let mut latents = noise;
        for index in 0..sampler.steps() {
            latents = self.denoise_step(&latents, shape, &text, &mut sampler, index, 0).await?.0;
        }
        Ok(latents)
    }

    /// One step: the latents after it and the estimate of the clean ones.
    async fn denoise_step(
        &self,
        latents: &[f32],
        shape: [usize; 4],
        text: &Conditions,
        sampler: &mut Sampler,
        index: usize,
        seed: u64,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let config = &self.manifest.sampler;
        let timesteps = vec![(sampler.sigma(index) * config.timestep_scale) as f32; shape[1]];
        let mut velocity = self.denoiser.velocity(&self.compute, latents, shape, &timesteps, &text.captioned).await?;
        if let Some(free) = &text.free {
            let without = self.denoiser.velocity(&self.compute, latents, shape, &timesteps, free).await?;
            velocity = guided(&velocity, &without, config.guidance);
        }
        if let Some(bad) = velocity.iter().position(|v| !v.is_finite()) {
            return Err(Error::Numeric(format!(
                "the denoiser gave {} at value {bad} of step {}",
                velocity[bad],
                index + 1
            )));
        }
        let fresh = || noise::normal(seed, index as u32 + 1, latents.len());
        Ok(sampler.advance(index, latents, &velocity, fresh))
    }
}

/// Texts as the denoiser takes them.
struct Conditions {
    captioned: TextContext,
    /// Of the negative prompt, where there is guidance.
    free: Option<TextContext>,
}

/// Checks a request against a manifest, before or after the shards are there.
pub fn check(manifest: &Manifest, tokenizer: &Tokenizer, request: &GenerateRequest) -> Result<(Prompt, ClipSize)> {
    let size = manifest.find_size(request.width, request.height, request.frames)?;
    Ok((tokenizer.encode(&request.prompt)?, size))
}

/// A clip in the making. Each call does one bounded piece of work, so that the caller can show progress, stop, or do
/// something else in between; dropping it frees everything.
pub struct Generation {
    engine: Rc<Engine>,
    size: ClipSize,
    shape: [usize; 4],
    text: Conditions,
    sampler: Sampler,
    seed: u64,
    done: usize,
    latents: Vec<f32>,
    clean: Vec<f32>,
    decoder: Option<DecoderState>,
    decoded: usize,
    emitted: usize,
}

impl Generation {
    /// Width, height and number of frames.
    pub fn size(&self) -> ClipSize {
        self.size
    }

    /// Frames per second.
    pub fn fps(&self) -> u32 {
        self.engine.manifest.video.fps
    }

    /// Denoising steps in all.
    pub fn steps(&self) -> usize {
        self.sampler.steps()
    }

    /// One denoising step; `None` once all are done.
    pub async fn step(&mut self) -> Result<Option<StepInfo>> {
        let index = self.done;
        if index == self.steps() {
            return Ok(None);
        }
        let engine = self.engine.clone();
        (self.latents, self.clean) = engine
            .denoise_step(&self.latents, self.shape, &self.text, &mut self.sampler, index, self.seed)
            .await?;
        self.done += 1;
        Ok(Some(StepInfo { index, steps: self.steps(), sigma: self.sampler.sigma(index) }))
    }

    /// The middle of the clip as it is expected to look, RGBA, from the last step's estimate.
    pub async fn preview(&self) -> Result<Vec<u8>> {
        let middle = self.shape[1] / 2;
        let mut decoding = self.engine.autoencoder.decoding(self.engine.autoencoder.start_decoding());
        let mut last = None;
        // Two latent frames: the memory blocks want a past, one frame of it is enough for a preview.
        for index in middle.saturating_sub(1)..=middle {
            let latent = latent_frame(&self.clean, self.shape, index);
            last = decoding.next(&self.engine.compute, latent, self.shape[2], self.shape[3]).await?.pop().or(last);
        }
        let (frame, whole) = last.ok_or_else(|| Error::Internal("the decoder gave no frame".into()))?;
        Ok(self.rgba(&frame, whole))
    }

    /// Decodes the next latent frame; `None` at the end. All steps must be done.
    pub async fn next_frames(&mut self) -> Result<Option<FrameBatch>> {
        if self.done < self.steps() {
            return Err(Error::InvalidRequest("frames can be decoded after the last denoising step".into()));
        }
        let autoencoder = &self.engine.autoencoder;
        while self.decoded < self.shape[1] {
            let state = self.decoder.take().unwrap_or_else(|| autoencoder.start_decoding());
            let mut decoding = autoencoder.decoding(state);
            let latent = latent_frame(&self.latents, self.shape, self.decoded);
            let frames = decoding.next(&self.engine.compute, latent, self.shape[2], self.shape[3]).await?;
            self.decoder = Some(decoding.into_state());
            self.decoded += 1;
            if !frames.is_empty() {
                return Ok(Some(self.batch(frames)));
            }
        }
        Ok(None)
    }

    fn batch(&mut self, frames: Vec<(Frame, [usize; 2])>) -> FrameBatch {
        let batch = FrameBatch {
            first: self.emitted,
            count: frames.len(),
            rgba: frames.iter().flat_map(|(frame, whole)| self.rgba(frame, *whole)).collect(),
        };
        self.emitted += batch.count;
        batch
    }

    /// A decoded frame of `[height, width]` as RGBA of the clip's size.
    fn rgba(&self, frame: &Frame, whole: [usize; 2]) -> Vec<u8> {
        let (height, width) = (self.size.height as usize, self.size.width as usize);
        to_rgba(&cut(frame, whole, height, width), height, width)
    }
}

impl Compute {
    /// "cpu" or "webgpu", as the page calls them.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Cpu => "cpu",
            Kind::Gpu => "webgpu",
        }
    }
}

/// Runs a future to its end on this thread.
#[cfg(not(target_family = "wasm"))]
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}
