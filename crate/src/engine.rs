//! A loaded model and what it takes to make a clip with it.

use std::rc::Rc;

use crate::compute::{Compute, Kind};
use crate::decode::taehv::Taehv;
use crate::denoise::cache::KvCache;
use crate::denoise::sampler::{Sampler, guided};
use crate::denoise::wan::{TextContext, Wan};
use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::gpu::{self, GpuOptions};
use crate::latents::noise::normal;
use crate::lora::{LoraId, Loras};
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
            loras: Loras::default(),
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
    loras: Loras,
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

    /// Puts a LoRA, a safetensors file, on the device beside the weights; `name` is for messages. It changes nothing
    /// until [`use_loras`](Self::use_loras) asks for it.
    ///
    /// # Errors
    /// [`Error::Lora`] with everything that is wrong with the file; [`Error::UnsupportedFeature`] for one that is too
    /// large for the device.
    pub fn add_lora(&mut self, name: &str, bytes: &[u8]) -> Result<LoraId> {
        self.loras.add(&self.compute, &self.manifest, name, bytes)
    }

    /// From here on clips are made with exactly these LoRAs at these strengths; 1 is what a LoRA was trained for, 0 is
    /// as if it were not there. The base weights stay where and as they are.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a LoRA that is not there or is named twice, and a strength that is not finite.
    /// Nothing is changed then.
    pub fn use_loras(&mut self, loras: &[(LoraId, f32)]) -> Result<()> {
        self.loras.apply(loras, self.denoiser.linears_mut())
    }

    /// Forgets a LoRA. Its memory is free once [`use_loras`](Self::use_loras) does not ask for it any more.
    pub fn remove_lora(&mut self, lora: LoraId) {
        self.loras.remove(lora);
    }

    /// Checks a request without running anything.
    pub fn check(&self, request: &GenerateRequest) -> Result<(Prompt, ClipSize)> {
        check(&self.manifest, &self.tokenizer, request)
    }

    /// Encodes the prompt. Nothing of the clip is made yet.
    pub async fn begin(self: &Rc<Self>, request: &GenerateRequest) -> Result<Generation> {
        let (prompt, size) = self.check(request)?;
        let embeddings = self.text_encoder.encode(&self.compute, &prompt.ids).await?;
        let shape = self.manifest.latent_shape(size.width, size.height, size.frames);
        Ok(Generation::new(self.clone(), size, shape, self.conditions(embeddings).await?, request.seed))
    }

    /// What the denoiser is asked for, and what it is led away from where the model is guided.
    async fn conditions(&self, embeddings: Vec<f32>) -> Result<Conditions> {
        let config = &self.manifest.text_encoder;
        let context = |embeddings| self.denoiser.text_context(&self.compute, embeddings, config.max_tokens);
        let mut free = None;
        if let Some(ids) = self.tokenizer.negative() {
            free = Some(context(self.text_encoder.encode(&self.compute, ids).await?)?);
        }
        Ok(Conditions { captioned: context(embeddings)?, free })
    }

    /// All steps on given noise `[C, F, H, W]`: what `kinora stage sample` runs. Not for causal models, which never see
    /// a clip as a whole.
    pub async fn sample(&self, noise: Vec<f32>, shape: [usize; 4], embeddings: Vec<f32>) -> Result<Vec<f32>> {
        if self.manifest.sampler.causal.is_some() {
            return Err(Error::InvalidRequest("a causal model makes its clips chunk by chunk, use generate".into()));
        }
        let text = self.conditions(embeddings).await?;
        let mut sampler = Sampler::new(&self.manifest.sampler);
        let fresh = |index: usize| normal(0, index as u32 + 1, shape.iter().product());
        let mut latents = sampler.start(noise);
        for index in 0..sampler.steps() {
            latents = self.denoise_step(&latents, shape, &text, None, &mut sampler, index, || fresh(index)).await?.0;
        }
        Ok(latents)
    }

    /// One step: the latents after it and the estimate of the clean ones.
    #[allow(clippy::too_many_arguments, reason = "the inputs of a step, each used once")]
    pub(crate) async fn denoise_step(
        &self,
        latents: &[f32],
        shape: [usize; 4],
        text: &Conditions,
        past: Option<&KvCache>,
        sampler: &mut Sampler,
        index: usize,
        fresh: impl FnOnce() -> Vec<f32>,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let config = &self.manifest.sampler;
        let timesteps = vec![(sampler.sigma(index) * config.timestep_scale) as f32; shape[1]];
        let (denoiser, compute) = (&self.denoiser, &self.compute);
        let mut velocity = match past {
            None => denoiser.velocity(compute, latents, shape, &timesteps, &text.captioned).await?,
            Some(past) => denoiser.velocity_after(compute, latents, shape, &timesteps, &text.captioned, past).await?,
        };
        if let Some(free) = &text.free {
            let without = denoiser.velocity(compute, latents, shape, &timesteps, free).await?;
            velocity = guided(&velocity, &without, config.guidance);
        }
        if let Some(bad) = velocity.iter().position(|v| !v.is_finite()) {
            return Err(Error::Numeric(format!(
                "the denoiser gave {} at value {bad} of step {}",
                velocity[bad],
                index + 1
            )));
        }
        Ok(sampler.advance(index, latents, &velocity, fresh))
    }
}

/// Texts as the denoiser takes them.
pub(crate) struct Conditions {
    pub(crate) captioned: TextContext,
    /// Of the negative prompt, where there is guidance.
    free: Option<TextContext>,
}

/// Checks a request against a manifest, before or after the shards are there.
pub fn check(manifest: &Manifest, tokenizer: &Tokenizer, request: &GenerateRequest) -> Result<(Prompt, ClipSize)> {
    let size = manifest.find_size(request.width, request.height, request.frames)?;
    Ok((tokenizer.encode(&request.prompt)?, size))
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
