//! A clip in the making, piece by piece.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::decode::taehv::{DecoderState, Frame, latent_frame};
use crate::denoise::cache::KvCache;
use crate::denoise::sampler::Sampler;
use crate::denoise::wan::Input;
use crate::engine::{Conditions, Engine};
use crate::error::{Error, Result};
use crate::frames::{cut, to_rgba};
use crate::latents::noise;
use crate::model::manifest::{ClipSize, SamplerConfig};
use crate::model::plan::Residency;
use crate::parts::Turn;

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

/// A clip in the making. Each call does one bounded piece of work, so that the caller can show progress, stop, or do
/// something else in between; dropping it frees everything.
///
/// Most models denoise the whole clip at once. Causal ones make it chunk by chunk: [`step`](Self::step) ends after each
/// chunk, [`next_frames`](Self::next_frames) gives the chunk's frames, and so on until [`finished`](Self::finished).
/// Where the parts of the model take turns, all steps come first and all frames last.
pub struct Generation {
    engine: Rc<Engine>,
    residency: Residency,
    size: ClipSize,
    /// Of the whole clip.
    shape: [usize; 4],
    /// `None` once the last step is done, where the memory is needed for the decoder.
    text: Option<Conditions>,
    seed: u64,
    /// What finished chunks left for the later ones, in causal models.
    past: Option<KvCache>,
    chunk: Chunk,
    /// Latent frames of the clip before the chunk.
    before: usize,
    /// Steps before the chunk.
    steps_before: usize,
    decoder: Option<DecoderState>,
    /// Finished latent frames `[C, H, W]` that have not been decoded.
    waiting: VecDeque<Vec<f32>>,
    decoded: usize,
    emitted: usize,
}

/// The latent frames that are denoised together: all of them, or a causal model's next ones.
struct Chunk {
    index: usize,
    shape: [usize; 4],
    sampler: Sampler,
    done: usize,
    latents: Vec<f32>,
    clean: Vec<f32>,
}

impl Chunk {
    fn new(config: &SamplerConfig, clip: [usize; 4], index: usize, before: usize, seed: u64) -> Self {
        let length = config.causal.as_ref().map_or(clip[1], |causal| causal.chunk_frames);
        let shape = [clip[0], length.min(clip[1] - before), clip[2], clip[3]];
        let first = config.causal.as_ref().and_then(|causal| causal.first_sigmas.clone()).filter(|_| index == 0);
        let sampler = Sampler::new(&match first {
            Some(sigmas) => SamplerConfig { sigmas, timesteps: None, ..config.clone() },
            None => config.clone(),
        });
        let latents = sampler.start(noise::normal(seed, stream(index, 0), shape.iter().product()));
        Self { index, shape, sampler, done: 0, clean: latents.clone(), latents }
    }

    fn finished(&self) -> bool {
        self.done == self.sampler.steps()
    }
}

/// Every chunk has noise of its own, and so has every step that re-noises.
fn stream(chunk: usize, step: usize) -> u32 {
    (chunk * 1024 + step) as u32
}

impl Generation {
    pub(crate) fn new(
        engine: Rc<Engine>,
        residency: Residency,
        size: ClipSize,
        shape: [usize; 4],
        text: Conditions,
        past: Option<KvCache>,
        seed: u64,
    ) -> Self {
        let chunk = Chunk::new(&engine.manifest.sampler, shape, 0, 0, seed);
        Self {
            residency,
            size,
            shape,
            text: Some(text),
            seed,
            past,
            chunk,
            before: 0,
            steps_before: 0,
            decoder: None,
            waiting: VecDeque::new(),
            decoded: 0,
            emitted: 0,
            engine,
        }
    }

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
        let config = &self.engine.manifest.sampler;
        let Some(causal) = &config.causal else { return config.sigmas.len() };
        let first = causal.first_sigmas.as_ref().unwrap_or(&config.sigmas).len();
        first + (self.shape[1].div_ceil(causal.chunk_frames) - 1) * config.sigmas.len()
    }

    /// Whether every frame has been given.
    pub fn finished(&self) -> bool {
        self.decoded == self.shape[1]
    }

    /// Whether the parts of the model are in memory together. In turns there are no previews.
    pub fn residency(&self) -> Residency {
        self.residency
    }

    /// Whether the last step of the clip has been done.
    fn denoised(&self) -> bool {
        self.chunk.finished() && self.before + self.chunk.shape[1] == self.shape[1]
    }

    /// One denoising step; `None` once there are frames to fetch, or at the end.
    pub async fn step(&mut self) -> Result<Option<StepInfo>> {
        let Some(text) = self.text.as_ref().filter(|_| !self.chunk.finished()) else { return Ok(None) };
        self.engine.turn(self.residency, Turn::Denoiser).await?;
        let index = self.chunk.done;
        let number = self.chunk.index;
        let (seed, length) = (self.seed, self.chunk.latents.len());
        let fresh = || noise::normal(seed, stream(number, index + 1), length);
        let chunk = &mut self.chunk;
        (chunk.latents, chunk.clean) = self
            .engine
            .denoise_step(&chunk.latents, chunk.shape, text, self.past.as_ref(), &mut chunk.sampler, index, fresh)
            .await?;
        chunk.done += 1;
        if chunk.finished() {
            self.waiting.extend((0..chunk.shape[1]).map(|frame| latent_frame(&chunk.latents, chunk.shape, frame)));
        }
        let sigma = self.chunk.sampler.sigma(index);
        Ok(Some(StepInfo { index: self.steps_before + index, steps: self.steps(), sigma }))
    }

    /// The middle of what is being denoised as it is expected to look, RGBA, from the last step's estimate.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where the parts of the model take turns: a preview would need two of them at once.
    pub async fn preview(&self) -> Result<Vec<u8>> {
        if self.residency == Residency::Turns {
            return Err(Error::InvalidRequest("there are no previews where the parts of a model take turns".into()));
        }
        let shape = self.chunk.shape;
        let middle = shape[1] / 2;
        let autoencoder = self.engine.autoencoder().await?;
        let mut decoding = autoencoder.decoding(autoencoder.start_decoding());
        let mut last = None;
        // Two latent frames: the memory blocks want a past, one frame of it is enough for a preview.
        for index in middle.saturating_sub(1)..=middle {
            let latent = latent_frame(&self.chunk.clean, shape, index);
            // The picture of the first is not wanted: it would only take up memory while the second is made.
            drop(last.take());
            last = decoding.next(&self.engine.compute, latent, shape[2], shape[3]).await?.pop();
        }
        let (frame, whole) = last.ok_or_else(|| Error::Internal("the decoder gave no frame".into()))?;
        let mut rgba = Vec::with_capacity(self.frame_bytes());
        self.append_rgba(&frame, whole, &mut rgba);
        Ok(rgba)
    }

    /// Decodes the next latent frame; `None` when there are steps to do first, or at the end.
    pub async fn next_frames(&mut self) -> Result<Option<FrameBatch>> {
        if !self.chunk.finished() {
            // At the start of a later chunk the frames before it have been fetched.
            let between = self.chunk.done == 0 && self.before > 0;
            let early = Error::InvalidRequest("frames can be decoded after the last denoising step".into());
            return if between { Ok(None) } else { Err(early) };
        }
        if self.residency == Residency::Turns {
            if !self.denoised() {
                self.next_chunk().await?;
                return Ok(None);
            }
            // What only the denoiser looks at makes room, too.
            (self.text, self.past) = (None, None);
            self.engine.turn(self.residency, Turn::Autoencoder).await?;
        }
        while let Some(latent) = self.waiting.front() {
            // It stays until it has been decoded: a decoder that cannot be read now may be readable later.
            let autoencoder = self.engine.autoencoder().await?;
            let mut decoding =
                autoencoder.decoding(self.decoder.take().unwrap_or_else(|| autoencoder.start_decoding()));
            let frames = decoding.next(&self.engine.compute, latent.clone(), self.shape[2], self.shape[3]).await?;
            self.waiting.pop_front();
            self.decoder = Some(decoding.into_state());
            self.decoded += 1;
            if !frames.is_empty() {
                return Ok(Some(self.batch(frames)));
            }
        }
        if !self.finished() {
            self.next_chunk().await?;
        }
        Ok(None)
    }

    /// Shows the finished chunk to the model once more, for its keys and values, and goes on to the next.
    async fn next_chunk(&mut self) -> Result<()> {
        let config = &self.engine.manifest.sampler;
        if let (Some(causal), Some(past), Some(text)) = (&config.causal, &mut self.past, &self.text) {
            self.engine.turn(self.residency, Turn::Denoiser).await?;
            let timesteps = vec![causal.context_timestep as f32; self.chunk.shape[1]];
            let Chunk { latents, shape, .. } = &self.chunk;
            let input = Input { latents, shape: *shape, timesteps: &timesteps, text: &text.captioned };
            let denoiser = self.engine.denoiser_for([shape[2], shape[3]]).await?;
            denoiser.remember(&self.engine.compute, input, past).await?;
        }
        self.before += self.chunk.shape[1];
        self.steps_before += self.chunk.done;
        self.chunk = Chunk::new(config, self.shape, self.chunk.index + 1, self.before, self.seed);
        Ok(())
    }

    fn batch(&mut self, frames: Vec<(Frame, [usize; 2])>) -> FrameBatch {
        let mut rgba = Vec::with_capacity(frames.len() * self.frame_bytes());
        for (frame, whole) in &frames {
            self.append_rgba(frame, *whole, &mut rgba);
        }
        let batch = FrameBatch { first: self.emitted, count: frames.len(), rgba };
        self.emitted += batch.count;
        batch
    }

    /// RGBA bytes of one frame.
    fn frame_bytes(&self) -> usize {
        4 * self.size.width as usize * self.size.height as usize
    }

    /// A decoded frame of `[height, width]` as RGBA of the clip's size, behind those that are there.
    fn append_rgba(&self, frame: &Frame, whole: [usize; 2], rgba: &mut Vec<u8>) {
        let (height, width) = (self.size.height as usize, self.size.width as usize);
        to_rgba(&cut(frame, whole, height, width), height, width, rgba);
    }
}
