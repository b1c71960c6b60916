//! A loaded model and what it takes to make a clip with it.

use std::rc::Rc;

use crate::compute::{Compute, Kind};
use crate::denoise::cache::KvCache;
use crate::denoise::sampler::{Sampler, guided};
use crate::denoise::wan::{Input, TextContext, Wan};
use crate::error::{Error, Result};
use crate::generation::Generation;
use crate::latents::noise::normal;
pub use crate::loading::{DeviceChoice, LoadOptions, Loading, PackFile};
use crate::lora::{LoraId, Loras};
use crate::model::manifest::{ClipSize, Manifest};
use crate::model::plan::{Limits, MemoryPlan, PlanRequest, Residency, Target, TextWeights};
use crate::parts::{Parts, Turn};
use crate::text::prompts::{Embeddings, PromptPack};
use crate::text::tokenizer::{Prompt, Tokenizer};

/// What prompts are turned into embeddings with, besides the encoder itself.
pub(crate) struct Texts {
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) pack: Option<PromptPack>,
    /// Whether an encoder is or will be there.
    pub(crate) encoder: bool,
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

    pub(crate) fn check(
        &self,
        manifest: &Manifest,
        request: &GenerateRequest,
        compute: &Compute,
        text: TextWeights,
        limits: &Limits,
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
        let asked = PlanRequest {
            size,
            tokens: Some(tokens as u64),
            target: compute.target(),
            text,
            packed,
            lora_bytes: request.lora_bytes,
            residency: Residency::Together,
        };
        let plan = MemoryPlan::within(manifest, &asked, limits)?;
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

/// A model ready to run.
pub struct Engine {
    /// What the model is.
    pub manifest: Manifest,
    /// Prompts to ids, and the prompts that need none.
    pub(crate) texts: Texts,
    /// Text encoder, denoiser and autoencoder.
    pub(crate) parts: Parts,
    /// Where all of it lives.
    pub compute: Compute,
    /// What there is for a clip.
    pub(crate) limits: Limits,
    pub(crate) loras: Loras,
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
        self.set_loras(loras)
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
        self.texts.check(&self.manifest, request, &self.compute, self.text_encoder().weights(), &self.limits)
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
        let encoder = self.text_encoder();
        let mut all = encoder.encode_all(&self.compute, &texts).await?.into_iter();
        if encoder.weights() == TextWeights::Streamed {
            // Its layers were the largest pieces that came and went; what follows has other sizes.
            self.compute.give_back().await?;
        }
        let prompt = all.next().ok_or_else(|| Error::Internal("the text encoder gave nothing".into()))?;
        Ok(Embeddings { prompt, negative: all.next() })
    }

    fn negative_ids(&self) -> Option<&[u32]> {
        self.texts.tokenizer.as_ref().and_then(Tokenizer::negative)
    }

    /// Encodes the prompt. Nothing of the clip is made yet. Where memory is short, the parts of the model take turns
    /// from here on.
    ///
    /// # Errors
    /// As [`embed`](Self::embed) and [`begin_with`](Self::begin_with).
    pub async fn begin(self: &Rc<Self>, request: &GenerateRequest) -> Result<Generation> {
        // A wrong size should not cost the encoder's work.
        let Checked { plan: MemoryPlan { residency, .. }, packed, .. } = self.check(request)?;
        if !packed {
            self.turn(residency, Turn::Text).await?;
        }
        let embeddings = self.embed(&request.prompt).await?;
        self.begin_as(residency, &embeddings, request).await
    }

    /// Begins a clip from given embeddings; the request's prompt is not looked at. The same embeddings give the same
    /// clip as the prompt that they came from.
    ///
    /// # Errors
    /// [`Error::UnsupportedSize`]; [`Error::TooLarge`] for a clip that the device cannot hold;
    /// [`Error::InvalidRequest`] for embeddings of the wrong shape, with a number that is not finite, or without the
    /// negative ones in a guided model; what reading the denoiser reports.
    pub async fn begin_with(self: &Rc<Self>, embeddings: &Embeddings, request: &GenerateRequest) -> Result<Generation> {
        let size = self.manifest.find_size(request.width, request.height, request.frames)?;
        let asked = PlanRequest {
            size,
            tokens: None,
            target: self.compute.target(),
            text: self.text_encoder().weights(),
            packed: true,
            lora_bytes: request.lora_bytes,
            residency: Residency::Together,
        };
        let plan = MemoryPlan::within(&self.manifest, &asked, &self.limits)?;
        self.begin_as(plan.residency, embeddings, request).await
    }

    async fn begin_as(
        self: &Rc<Self>,
        residency: Residency,
        embeddings: &Embeddings,
        request: &GenerateRequest,
    ) -> Result<Generation> {
        let size = self.manifest.find_size(request.width, request.height, request.frames)?;
        let shape = self.manifest.latent_shape(size.width, size.height, size.frames);
        self.turn(residency, Turn::Denoiser).await?;
        let denoiser = self.denoiser().await?;
        let text = self.conditions(&denoiser, embeddings)?;
        let past = self.manifest.sampler.causal.as_ref().map(|causal| denoiser.cache(causal, shape));
        Ok(Generation::new(self.clone(), residency, size, shape, text, past, request.seed))
    }

    /// What the denoiser is asked for, and what it is led away from where the model is guided.
    fn conditions(&self, denoiser: &Wan, embeddings: &Embeddings) -> Result<Conditions> {
        let most = self.manifest.text_encoder.max_tokens;
        let context = |values: &Vec<f32>| {
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(Error::InvalidRequest(format!("the text embeddings hold {value}, not a finite number")));
            }
            denoiser.text_context(&self.compute, values.clone(), most)
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
            Some(ids) => Some(self.text_encoder().encode(&self.compute, ids).await?),
            None => None,
        };
        let text = self.conditions(&*self.denoiser().await?, &Embeddings { prompt: embeddings, negative })?;
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
        let (denoiser, compute) = (self.denoiser_for([shape[2], shape[3]]).await?, &self.compute);
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
}

/// Runs a future to its end on this thread.
#[cfg(not(target_family = "wasm"))]
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}
