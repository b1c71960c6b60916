//! A loaded model and what it takes to make a clip with it.

use std::rc::Rc;

use crate::compute::{Compute, Kind};
use crate::decode::taehv::Taehv;
use crate::denoise::cache::KvCache;
use crate::denoise::sampler::{Sampler, guided};
use crate::denoise::wan::{Input, TextContext, Wan};
use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::gpu::{self, GpuOptions};
use crate::latents::noise::normal;
use crate::lora::{LoraId, Loras};
use crate::model::layout::Part;
use crate::model::manifest::{ClipSize, Manifest};
use crate::model::plan::{Limits, MemoryPlan, ModelNeeds, PlanRequest, Target, TextWeights};
use crate::model::shards::{ShardAssembler, verify_file};
use crate::text::prompts::{Embeddings, PromptPack};
use crate::text::stream::StreamedUmt5;
use crate::text::tokenizer::{Prompt, Tokenizer};
use crate::text::umt5::Umt5;
use crate::text::{TextEncoder, TextPlan};
use crate::weights::WeightStore;

/// Weights widened to f32 on the CPU device at load only while they stay below this.
pub(crate) const WIDEN_LIMIT_BYTES: u64 = 256 << 20;

/// What a wasm memory has for models: its 4 GiB without the engine's own data and stack, and without what lies idle
/// between its pieces.
const WASM_BYTES: u64 = (4 << 30) - (128 << 20);

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

/// A prompt pack and where it came from.
pub enum PackFile<'a> {
    /// The one that the manifest names; its hash has to be the manifest's.
    Named(&'a [u8]),
    /// Any other.
    Given(&'a [u8]),
}

/// What prompts are turned into embeddings with, besides the encoder itself.
struct Texts {
    tokenizer: Option<Tokenizer>,
    pack: Option<PromptPack>,
    /// Whether an encoder is or will be there.
    encoder: bool,
}

impl Texts {
    /// Token ids of a prompt that is in no pack.
    fn ids(&self, prompt: &str) -> Result<Prompt> {
        match &self.tokenizer {
            Some(tokenizer) if self.encoder => tokenizer.encode(prompt),
            _ if prompt.trim().is_empty() => Err(Error::EmptyPrompt),
            _ => Err(PromptPack::unknown(self.pack.as_ref())),
        }
    }

    fn check(
        &self,
        manifest: &Manifest,
        request: &GenerateRequest,
        compute: &Compute,
        text: TextWeights,
    ) -> Result<Checked> {
        let size = manifest.find_size(request.width, request.height, request.frames)?;
        let packed = self.pack.as_ref().and_then(|pack| pack.tokens(&request.prompt));
        let (tokens, unknown_words) = match packed {
            Some(tokens) => (tokens, Vec::new()),
            None => {
                let Prompt { ids, unknown_words } = self.ids(&request.prompt)?;
                (ids.len(), unknown_words)
            }
        };
        let packed = packed.is_some();
        let (most, target) = (Some(tokens as u64), compute.target());
        let asked = PlanRequest { size, tokens: most, target, text, packed, lora_bytes: request.lora_bytes };
        let plan = MemoryPlan::within(manifest, &asked, &compute.limits())?;
        Ok(Checked { tokens, unknown_words, packed, size, plan })
    }
}

/// What a request that can be carried out asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Tokens of the prompt, the end mark included.
    pub tokens: usize,
    /// Words the model never saw in training; empty where the manifest lists no vocabulary.
    pub unknown_words: Vec<String>,
    /// Whether the prompt is in the prompt pack and needs no text encoder.
    pub packed: bool,
    /// The clip.
    pub size: ClipSize,
    /// What it will need.
    pub plan: MemoryPlan,
}

/// A model on its way into memory: manifest and tokenizer are checked, shards arrive one by one.
pub struct Loading {
    manifest: Manifest,
    texts: Texts,
    plan: TextPlan,
    shards: ShardAssembler,
    store: WeightStore,
}

impl Loading {
    /// Checks manifest and tokenizer and opens the device. Nothing is fetched here.
    pub async fn new(manifest: &str, tokenizer: &str, device: DeviceChoice) -> Result<Self> {
        Self::with(manifest, Some(tokenizer), device, TextPlan::Resident, None).await
    }

    /// As [`new`](Self::new), with a say in what becomes of the text encoder, and a prompt pack.
    ///
    /// # Errors
    /// Those of [`Manifest::parse`], [`Tokenizer::parse`], [`PromptPack::parse`] and [`gpu::open`];
    /// [`Error::Integrity`] for a tokenizer or a named pack that is not what the manifest says;
    /// [`Error::InvalidRequest`] for an encoder without its tokenizer.
    pub async fn with(
        manifest: &str,
        tokenizer: Option<&str>,
        device: DeviceChoice,
        plan: TextPlan,
        pack: Option<PackFile<'_>>,
    ) -> Result<Self> {
        let manifest = Manifest::parse(manifest)?;
        let encoder = !matches!(plan, TextPlan::Absent);
        if encoder && tokenizer.is_none() {
            return Err(Error::InvalidRequest("a text encoder needs its tokenizer".into()));
        }
        let tokenizer = tokenizer.map(|text| {
            verify_file(&manifest.text_encoder.tokenizer, text.as_bytes())?;
            Tokenizer::parse(text, &manifest)
        });
        let pack = pack.map(|file| match (file, &manifest.prompt_pack) {
            (PackFile::Named(bytes), Some(info)) => {
                verify_file(info, bytes)?;
                PromptPack::parse(bytes, &manifest)
            }
            (PackFile::Named(_), None) => Err(Error::InvalidRequest("the manifest names no prompt pack".into())),
            (PackFile::Given(bytes), _) => PromptPack::parse(bytes, &manifest),
        });
        let texts = Texts { tokenizer: tokenizer.transpose()?, pack: pack.transpose()?, encoder };
        let mut compute = open_device(&manifest, device).await?;
        let resident = matches!(plan, TextPlan::Resident);
        let wanted = |name: &str| resident || !name.starts_with(Part::TextEncoder.prefix());
        let tensors = manifest.tensors.iter().filter(|(name, _)| wanted(name));
        let elements: u64 = tensors.map(|(_, tensor)| tensor.elements() as u64).sum();
        compute.widen_on_load = elements * 4 <= WIDEN_LIMIT_BYTES;
        let shards = ShardAssembler::of(&manifest, wanted);
        Ok(Self { shards, store: WeightStore::new(compute), manifest, texts, plan })
    }

    /// The device that was opened.
    pub fn compute(&self) -> &Compute {
        self.store.compute()
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Checks a request before the shards are there.
    pub fn check(&self, request: &GenerateRequest) -> Result<Checked> {
        self.texts.check(&self.manifest, request, self.compute(), self.plan.weights())
    }

    /// Shards that have to be added and have not been, in order of first use.
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
        let text_encoder = match self.plan {
            TextPlan::Resident => TextEncoder::Resident(Umt5::load(&self.manifest.text_encoder, &mut self.store)?),
            TextPlan::Streamed(source) => TextEncoder::Streamed(StreamedUmt5::new(&self.manifest, source)),
            TextPlan::Absent => TextEncoder::Absent,
        };
        Ok(Engine {
            text_encoder,
            denoiser: Wan::load(&self.manifest.transformer, &mut self.store)?,
            autoencoder: Taehv::load(&self.manifest.autoencoder, &mut self.store)?,
            manifest: self.manifest,
            texts: self.texts,
            compute,
            loras: Loras::default(),
        })
    }
}

/// Opens a device with the limits that a model asks for, and no less than its clips need.
pub(crate) async fn open_device(manifest: &Manifest, device: DeviceChoice) -> Result<Compute> {
    let requires = &manifest.requires;
    match device {
        DeviceChoice::Cpu => Ok(Compute::cpu()),
        DeviceChoice::Gpu { strict_limits } => {
            gpu::fits(manifest)?;
            let buffer = ModelNeeds::of(manifest)?.buffer;
            gpu::open(GpuOptions {
                strict_limits,
                max_storage_buffer_binding_size: requires.max_storage_buffer_binding_size.max(buffer),
                max_buffer_size: requires.max_buffer_size.max(buffer),
            })
            .await
        }
    }
}

/// A model ready to run.
pub struct Engine {
    /// What the model is.
    pub manifest: Manifest,
    /// Prompts to ids, and the prompts that need none.
    texts: Texts,
    /// Ids to embeddings.
    pub text_encoder: TextEncoder,
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
    /// Bytes of the LoRA files that are to be used with it, as far as they are known; for the memory plan alone.
    #[serde(default, rename = "loraBytes")]
    pub lora_bytes: u64,
}

impl Engine {
    /// Prompts to ids; `None` where the model was loaded for a prompt pack alone.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.texts.tokenizer.as_ref()
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
    ///
    /// # Errors
    /// [`Error::UnsupportedSize`], [`Error::TooLarge`] for a clip that the device cannot hold, those of
    /// [`Tokenizer::encode`], and [`Error::UnknownPrompt`] for a prompt that is not in the prompt pack where there is
    /// no text encoder.
    pub fn check(&self, request: &GenerateRequest) -> Result<Checked> {
        self.texts.check(&self.manifest, request, &self.compute, self.text_encoder.weights())
    }

    /// Turns a prompt into embeddings: those of the prompt pack where it has them, else what the text encoder gives.
    ///
    /// # Errors
    /// As [`check`](Self::check) and [`TextEncoder::encode`].
    pub async fn embed(&self, prompt: &str) -> Result<Embeddings> {
        if let Some(found) = self.texts.pack.as_ref().and_then(|pack| pack.embeddings(prompt)) {
            return Ok(found);
        }
        let prompt = self.texts.ids(prompt)?;
        let texts: Vec<&[u32]> = std::iter::once(prompt.ids.as_slice()).chain(self.negative_ids()).collect();
        let mut all = self.text_encoder.encode_all(&self.compute, &texts).await?.into_iter();
        let prompt = all.next().ok_or_else(|| Error::Internal("the text encoder gave nothing".into()))?;
        Ok(Embeddings { prompt, negative: all.next() })
    }

    fn negative_ids(&self) -> Option<&[u32]> {
        self.texts.tokenizer.as_ref().and_then(Tokenizer::negative)
    }

    /// Encodes the prompt. Nothing of the clip is made yet.
    ///
    /// # Errors
    /// As [`embed`](Self::embed) and [`begin_with`](Self::begin_with).
    pub async fn begin(self: &Rc<Self>, request: &GenerateRequest) -> Result<Generation> {
        // A wrong size should not cost the encoder's work.
        self.check(request)?;
        let embeddings = self.embed(&request.prompt).await?;
        self.begin_with(&embeddings, request).await
    }

    /// Begins a clip from given embeddings; the request's prompt is not looked at. The same embeddings give the same
    /// clip as the prompt that they came from.
    ///
    /// # Errors
    /// [`Error::UnsupportedSize`]; [`Error::InvalidRequest`] for embeddings of the wrong shape, with a number that is
    /// not finite, or without the negative ones in a guided model.
    pub async fn begin_with(self: &Rc<Self>, embeddings: &Embeddings, request: &GenerateRequest) -> Result<Generation> {
        let size = self.manifest.find_size(request.width, request.height, request.frames)?;
        let shape = self.manifest.latent_shape(size.width, size.height, size.frames);
        Ok(Generation::new(self.clone(), size, shape, self.conditions(embeddings)?, request.seed))
    }

    /// What the denoiser is asked for, and what it is led away from where the model is guided.
    fn conditions(&self, embeddings: &Embeddings) -> Result<Conditions> {
        let most = self.manifest.text_encoder.max_tokens;
        let context = |values: &Vec<f32>| {
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::InvalidRequest(format!("the text embeddings hold {value}, not a finite number")));
            }
            self.denoiser.text_context(&self.compute, values.clone(), most)
        };
        let free = match &embeddings.negative {
            Some(values) if self.manifest.guided() => Some(context(values)?),
            None if self.manifest.guided() => {
                return Err(Error::InvalidRequest("a guided model needs the embeddings of its negative prompt".into()));
            }
            _ => None,
        };
        Ok(Conditions { captioned: context(&embeddings.prompt)?, free })
    }

    /// All steps on given noise `[C, F, H, W]`: what `kinora stage sample` runs. Not for causal models, which never see
    /// a clip as a whole.
    pub async fn sample(&self, noise: Vec<f32>, shape: [usize; 4], embeddings: Vec<f32>) -> Result<Vec<f32>> {
        if self.manifest.sampler.causal.is_some() {
            return Err(Error::InvalidRequest("a causal model makes its clips chunk by chunk, use generate".into()));
        }
        let negative = match self.negative_ids() {
            Some(ids) => Some(self.text_encoder.encode(&self.compute, ids).await?),
            None => None,
        };
        let text = self.conditions(&Embeddings { prompt: embeddings, negative })?;
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
        let timesteps = vec![sampler.timestep(index) as f32; shape[1]];
        let (denoiser, compute) = (&self.denoiser, &self.compute);
        let input = Input { latents, shape, timesteps: &timesteps, text: &text.captioned };
        let mut velocity = match past {
            None => denoiser.velocity(compute, input).await?,
            Some(past) => denoiser.velocity_after(compute, input, past).await?,
        };
        if let Some(free) = &text.free {
            let without = denoiser.velocity(compute, Input { text: free, ..input }).await?;
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

impl Compute {
    /// "cpu" or "webgpu", as the page calls them.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Cpu => "cpu",
            Kind::Gpu => "webgpu",
        }
    }

    /// What a memory plan has to count with. In a browser there is one thread.
    pub fn target(&self) -> Target {
        let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        match self.kind {
            Kind::Cpu => Target::Cpu { threads },
            Kind::Gpu => Target::Gpu,
        }
    }

    /// What is known to end: the device's buffers, and in a browser the memory of the engine.
    fn limits(&self) -> Limits {
        Limits { memory: None, host: cfg!(target_family = "wasm").then_some(WASM_BYTES), buffer: self.longest_buffer }
    }
}

/// Runs a future to its end on this thread.
#[cfg(not(target_family = "wasm"))]
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}
