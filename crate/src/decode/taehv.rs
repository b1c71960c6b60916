//! The tiny autoencoder for video, both ways, one frame at a time.
//!
//! Follows `taehv.py` of github.com/madebyollin/taehv (MIT): only 2-D convolutions; time enters through memory blocks
//! that see the previous frame's features, and through layers that grow one frame into two or pool two into one.
//! Every layer here holds at most one earlier frame, so memory does not depend on the length of a clip. The reference
//! numbers its layers as one `nn.Sequential`; the tensor names keep those numbers.

use std::collections::VecDeque;

use burn::tensor::Tensor;

use crate::compute::Compute;
use crate::error::{Error, Result};
use crate::model::manifest::{AutoencoderConfig, EncoderPadding};
use crate::ops::Conv;
use crate::weights::WeightStore;

enum Layer {
    /// `tanh(x / 3) * 3`.
    Clamp,
    Conv {
        conv: Conv,
        rectify: bool,
        upsample: bool,
    },
    /// `relu(conv(relu(conv(relu(conv(cat(x, previous)))))) + x)`.
    Memory([Conv; 3]),
    /// One frame becomes `factor` frames: a 1x1 convolution to `factor` times the channels.
    Grow {
        conv: Conv,
        factor: usize,
    },
    /// `factor` frames become one: a 1x1 convolution over their stacked channels.
    Pool {
        conv: Conv,
        factor: usize,
    },
}

/// What a layer remembers between frames.
#[derive(Default)]
struct Memory(Vec<Tensor<4>>);

/// Autoencoder weights on a device.
pub struct Taehv {
    config: AutoencoderConfig,
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
}

/// Latents on their way to frames. Feed latent frames in order; frames come out in order.
pub struct Decoding<'a> {
    model: &'a Taehv,
    state: DecoderState,
}

/// The part of a decoding that outlives a borrow of the model.
pub struct DecoderState {
    memory: Vec<Memory>,
    /// Frames still to be dropped from the front.
    trim: usize,
}

/// One frame, planar RGB in 0..1: `[3, height, width]`.
pub type Frame = Vec<f32>;

impl Taehv {
    /// Takes the tensors `autoencoder.*` from the store.
    pub fn load(config: &AutoencoderConfig, store: &mut WeightStore) -> Result<Self> {
        let mut decoder = vec![Layer::Clamp, conv(store, "autoencoder.decoder.1", 1, true, false)?];
        let mut index = 3;
        for stage in 0..3 {
            for _ in 0..3 {
                decoder.push(memory_block(store, &format!("autoencoder.decoder.{index}"))?);
                index += 1;
            }
            let factor = if config.decoder_time_upscale[stage] { 2 } else { 1 };
            // The reference enlarges first and grows in time second; a 1x1 convolution and a nearest enlargement
            // commute, so growing first costs a quarter.
            decoder
                .push(Layer::Grow { conv: store.conv(&format!("autoencoder.decoder.{}.conv", index + 1), 1)?, factor });
            let last = stage == 2;
            let upsample = config.decoder_space_upscale[stage];
            decoder.push(conv(store, &format!("autoencoder.decoder.{}", index + 2), 1, last, upsample)?);
            index += 3;
        }
        decoder.push(conv(store, &format!("autoencoder.decoder.{}", index + 1), 1, false, false)?);

        let mut encoder = vec![conv(store, "autoencoder.encoder.0", 1, true, false)?];
        let mut index = 2;
        for stage in 0..3 {
            let factor = if config.encoder_time_downscale[stage] { 2 } else { 1 };
            encoder.push(Layer::Pool { conv: store.conv(&format!("autoencoder.encoder.{index}.conv"), 1)?, factor });
            encoder.push(conv(store, &format!("autoencoder.encoder.{}", index + 1), 2, false, false)?);
            index += 2;
            for _ in 0..3 {
                encoder.push(memory_block(store, &format!("autoencoder.encoder.{index}"))?);
                index += 1;
            }
        }
        encoder.push(conv(store, &format!("autoencoder.encoder.{index}"), 1, false, false)?);
        Ok(Self { config: config.clone(), encoder, decoder })
    }

    /// Starts decoding a clip.
    pub fn start_decoding(&self) -> DecoderState {
        DecoderState {
            memory: self.decoder.iter().map(|_| Memory::default()).collect(),
            trim: self.config.frames_to_trim(),
        }
    }

    /// Continues a decoding.
    pub fn decoding(&self, state: DecoderState) -> Decoding<'_> {
        Decoding { model: self, state }
    }

    /// Frames -> latents `[C, F, H, W]` and that shape. Width and height must divide by the compression.
    pub async fn encode(
        &self,
        compute: &Compute,
        frames: &[Frame],
        height: usize,
        width: usize,
    ) -> Result<(Vec<f32>, [usize; 4])> {
        let compression = self.config.space_compression();
        let channels = self.config.image_channels;
        let fits = frames.iter().all(|frame| frame.len() == channels * height * width);
        if frames.is_empty() || !fits || height % compression != 0 || width % compression != 0 || height * width == 0 {
            return Err(Error::InvalidRequest(format!(
                "{} frames of {width}x{height} cannot be encoded; both sides must be multiples of {compression}",
                frames.len()
            )));
        }
        let group = self.config.time_compression();
        let (first, last) = (&frames[0], &frames[frames.len() - 1]);
        let missing = frames.len().next_multiple_of(group) - frames.len();
        let (front, back) = match self.config.encoder_padding {
            EncoderPadding::Leading => (group - 1, (group - (frames.len() + group - 1) % group) % group),
            EncoderPadding::Trailing => (0, missing),
        };
        let padded = std::iter::repeat_n(first, front).chain(frames).chain(std::iter::repeat_n(last, back));

        let patch = self.config.patch_size;
        let (h, w) = (height / patch, width / patch);
        let mut memory: Vec<Memory> = self.encoder.iter().map(|_| Memory::default()).collect();
        let mut latents = Vec::new();
        for frame in padded {
            let x = compute.tensor(unshuffle(frame, channels, h, w, patch), [1, channels * patch * patch, h, w]);
            for latent in run(compute, &self.encoder, &mut memory, x) {
                latents.push(compute.read(latent).await?);
            }
        }
        let shape = [self.config.latent_channels, latents.len(), height / compression, width / compression];
        Ok((frames_inward(&latents, shape), shape))
    }
}

impl Decoding<'_> {
    /// Latent frame `[C, H, W]` -> the frames it completes (none, one or several), each with `[height, width]`.
    pub async fn next(
        &mut self,
        compute: &Compute,
        latent: Vec<f32>,
        height: usize,
        width: usize,
    ) -> Result<Vec<(Frame, [usize; 2])>> {
        let config = &self.model.config;
        if latent.len() != config.latent_channels * height * width {
            return Err(Error::InvalidRequest(format!(
                "a latent frame must be [{}, {height}, {width}], but it has {} values",
                config.latent_channels,
                latent.len()
            )));
        }
        let x = compute.tensor(latent, [1, config.latent_channels, height, width]);
        let mut frames = Vec::new();
        for x in run(compute, &self.model.decoder, &mut self.state.memory, x) {
            if self.state.trim > 0 {
                self.state.trim -= 1;
                continue;
            }
            let [_, _, h, w] = x.dims();
            let values = compute.read(x).await?;
            let patch = config.patch_size;
            frames.push((shuffle(&values, config.image_channels, h, w, patch), [h * patch, w * patch]));
        }
        Ok(frames)
    }

    /// Stops borrowing the model.
    pub fn into_state(self) -> DecoderState {
        self.state
    }
}

fn conv(store: &mut WeightStore, prefix: &str, stride: usize, rectify: bool, upsample: bool) -> Result<Layer> {
    Ok(Layer::Conv { conv: store.conv(prefix, stride)?, rectify, upsample })
}

fn memory_block(store: &mut WeightStore, prefix: &str) -> Result<Layer> {
    let mut part = |index: usize| store.conv(&format!("{prefix}.conv.{index}"), 1);
    Ok(Layer::Memory([part(0)?, part(2)?, part(4)?]))
}

/// Pushes one frame through all layers; a layer that grows queues its frames, one that pools may swallow it.
fn run(compute: &Compute, layers: &[Layer], memory: &mut [Memory], x: Tensor<4>) -> Vec<Tensor<4>> {
    let mut queue = VecDeque::from([(0, x)]);
    let mut done = Vec::new();
    while let Some((index, x)) = queue.pop_front() {
        let Some(layer) = layers.get(index) else {
            done.push(x);
            continue;
        };
        // Depth first: the first of two grown frames passes every later layer before the second one does, which is
        // the order their memories need.
        for (at, x) in step(compute, layer, &mut memory[index], x).into_iter().enumerate() {
            queue.insert(at, (index + 1, x));
        }
    }
    done
}

fn step(compute: &Compute, layer: &Layer, memory: &mut Memory, x: Tensor<4>) -> Vec<Tensor<4>> {
    match layer {
        Layer::Clamp => vec![x.div_scalar(3.0).tanh().mul_scalar(3.0)],
        Layer::Conv { conv, rectify, upsample } => vec![conv.forward(compute, x, None, None, *upsample, *rectify)],
        Layer::Memory([first, second, third]) => {
            let previous = memory.0.pop().unwrap_or_else(|| x.zeros_like());
            memory.0.push(x.clone());
            let h = first.forward(compute, x.clone(), Some(previous), None, false, true);
            let h = second.forward(compute, h, None, None, false, true);
            vec![third.forward(compute, h, None, Some(x), false, true)]
        }
        Layer::Grow { conv, factor } => {
            let y = conv.forward(compute, x, None, None, false, false);
            let channels = conv.out_channels() / factor;
            (0..*factor).map(|at| y.clone().narrow(1, at * channels, channels)).collect()
        }
        Layer::Pool { conv, factor } => {
            memory.0.push(x);
            if memory.0.len() < *factor {
                return Vec::new();
            }
            let stacked = Tensor::cat(std::mem::take(&mut memory.0), 1);
            vec![conv.forward(compute, stacked, None, None, false, false)]
        }
    }
}

/// `[3, h * p, w * p]` -> `[3 * p * p, h, w]`, as PyTorch's `pixel_unshuffle`.
fn unshuffle(frame: &[f32], channels: usize, h: usize, w: usize, p: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(frame.len());
    for c in 0..channels {
        for (dy, dx) in (0..p).flat_map(|dy| (0..p).map(move |dx| (dy, dx))) {
            for y in 0..h {
                let row = (c * h * p + y * p + dy) * w * p;
                out.extend((0..w).map(|x| frame[row + x * p + dx]));
            }
        }
    }
    out
}

/// `[3 * p * p, h, w]` -> `[3, h * p, w * p]`, as PyTorch's `pixel_shuffle`, clamped to 0..1.
fn shuffle(values: &[f32], channels: usize, h: usize, w: usize, p: usize) -> Frame {
    let mut out = vec![0.0; values.len()];
    for c in 0..channels {
        for (dy, dx) in (0..p).flat_map(|dy| (0..p).map(move |dx| (dy, dx))) {
            let plane = ((c * p + dy) * p + dx) * h * w;
            for y in 0..h {
                let row = (c * h * p + y * p + dy) * w * p;
                for x in 0..w {
                    out[row + x * p + dx] = values[plane + y * w + x].clamp(0.0, 1.0);
                }
            }
        }
    }
    out
}

/// `F` pieces `[C, H, W]` -> `[C, F, H, W]`.
pub fn frames_inward(frames: &[Vec<f32>], [c, f, h, w]: [usize; 4]) -> Vec<f32> {
    let area = h * w;
    let mut out = Vec::with_capacity(c * f * area);
    for channel in 0..c {
        for frame in frames {
            out.extend_from_slice(&frame[channel * area..(channel + 1) * area]);
        }
    }
    out
}

/// Latent frame `index` of `[C, F, H, W]` as `[C, H, W]`.
pub fn latent_frame(latents: &[f32], [c, f, h, w]: [usize; 4], index: usize) -> Vec<f32> {
    let area = h * w;
    (0..c)
        .flat_map(|channel| {
            let at = (channel * f + index) * area;
            latents[at..at + area].iter().copied()
        })
        .collect()
}
