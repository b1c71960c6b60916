//! One stage of the pipeline on given tensors, so that anyone can hold it against any reference.
//!
//! Input and output are safetensors files; all tensors are f32, ids i32.
//!
//! | stage | input | output |
//! |---|---|---|
//! | encode-text | `input_ids` `[n]` | `embeddings` `[n, d]` |
//! | block0 | `hidden` `[tokens, dim]`, `timestep_proj` `[F, 6, dim]`, `text` `[n, dim]`, `grid` `[3]` i32 | `hidden` |
//! | denoise | `latents` `[C, F, H, W]`, `timesteps` `[F]` (0 to 1000), `text` `[n, d]` | `velocity` `[C, F, H, W]` |
//! | sample | `noise` `[C, F, H, W]`, `text` `[n, d]` | `latents` `[C, F, H, W]` |
//! | decode | `latents` `[C, F, H, W]` | `frames` `[N, 3, H, W]` in 0..1 |
//! | encode | `frames` `[N, 3, H, W]` in 0..1 | `latents` `[C, F, H, W]` |

use std::collections::HashMap;
use std::str::FromStr;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::decode::taehv::latent_frame;
use crate::denoise::wan::Input;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Most bytes that a stage's input may have.
const MAX_INPUT_BYTES: usize = 1 << 30;

/// A part of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Token ids to embeddings.
    EncodeText,
    /// The transformer's first block.
    Block0,
    /// One velocity.
    Denoise,
    /// All denoising steps.
    Sample,
    /// Latents to frames.
    Decode,
    /// Frames to latents.
    Encode,
}

impl FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "encode-text" => Self::EncodeText,
            "block0" => Self::Block0,
            "denoise" => Self::Denoise,
            "sample" => Self::Sample,
            "decode" => Self::Decode,
            "encode" => Self::Encode,
            other => {
                return Err(Error::InvalidRequest(format!(
                    "there is no stage {other}; there are encode-text, block0, denoise, sample, decode and encode"
                )));
            }
        })
    }
}

/// Runs a stage on the tensors of a safetensors file and gives back the file of its results.
pub async fn run_stage(engine: &Engine, stage: Stage, input: &[u8]) -> Result<Vec<u8>> {
    let inputs = Inputs::parse(input)?;
    let compute = &engine.compute;
    match stage {
        Stage::EncodeText => {
            let ids = inputs.ids("input_ids")?;
            let embeddings = engine.text_encoder().encode(compute, &ids).await?;
            let width = engine.manifest.text_encoder.d_model;
            output("embeddings", &[ids.len(), width], &embeddings)
        }
        Stage::Block0 => {
            let (hidden, shape) = inputs.floats::<2>("hidden")?;
            let (projection, _) = inputs.floats::<3>("timestep_proj")?;
            let (text, _) = inputs.floats::<2>("text")?;
            let grid = inputs.ids("grid")?;
            let grid: [usize; 3] = grid
                .iter()
                .map(|&side| side as usize)
                .collect::<Vec<_>>()
                .try_into()
                .map_err(|_| Error::InvalidRequest("grid must hold three numbers".into()))?;
            let [_, rows, columns] = engine.manifest.transformer.patch_size;
            let denoiser = engine.denoiser_for([grid[1].saturating_mul(rows), grid[2].saturating_mul(columns)]).await?;
            let out = denoiser.first_block(compute, hidden, projection, text, grid).await?;
            output("hidden", &shape, &out)
        }
        Stage::Denoise => {
            let (latents, shape) = inputs.floats::<4>("latents")?;
            let (timesteps, _) = inputs.floats::<1>("timesteps")?;
            let (text, _) = inputs.floats::<2>("text")?;
            let denoiser = engine.denoiser_for([shape[2], shape[3]]).await?;
            let context = denoiser.text_context(compute, text, engine.manifest.text_encoder.max_tokens)?;
            let input = Input { latents: &latents, shape, timesteps: &timesteps, text: &context };
            let velocity = denoiser.velocity(compute, input).await?;
            output("velocity", &shape, &velocity)
        }
        Stage::Sample => {
            let (noise, shape) = inputs.floats::<4>("noise")?;
            let (text, _) = inputs.floats::<2>("text")?;
            output("latents", &shape, &engine.sample(noise, shape, text).await?)
        }
        Stage::Decode => {
            let (latents, shape) = inputs.floats::<4>("latents")?;
            if shape[0] != engine.manifest.autoencoder.latent_channels {
                return Err(Error::InvalidRequest(format!("latents {shape:?} do not have the model's channels")));
            }
            let autoencoder = engine.autoencoder().await?;
            let mut decoding = autoencoder.decoding(autoencoder.start_decoding());
            let (mut values, mut count, mut size) = (Vec::new(), 0, [0, 0]);
            for index in 0..shape[1] {
                let latent = latent_frame(&latents, shape, index);
                for (frame, frame_size) in decoding.next(compute, latent, shape[2], shape[3]).await? {
                    values.extend(frame);
                    count += 1;
                    size = frame_size;
                }
            }
            output("frames", &[count, engine.manifest.autoencoder.image_channels, size[0], size[1]], &values)
        }
        Stage::Encode => {
            let (frames, [_, channels, height, width]) = inputs.floats::<4>("frames")?;
            let size = (channels * height * width).max(1);
            let frames: Vec<Vec<f32>> = frames.chunks(size).map(<[f32]>::to_vec).collect();
            let (latents, shape) = engine.autoencoder().await?.encode(compute, &frames, height, width).await?;
            output("latents", &shape, &latents)
        }
    }
}

struct Inputs<'a>(HashMap<String, TensorView<'a>>);

impl<'a> Inputs<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > MAX_INPUT_BYTES {
            return Err(Error::InvalidRequest(format!(
                "the input has {} bytes, at most {MAX_INPUT_BYTES} are read",
                bytes.len()
            )));
        }
        let file = SafeTensors::deserialize(bytes)
            .map_err(|e| Error::InvalidRequest(format!("the input is not a safetensors file ({e})")))?;
        Ok(Self(file.tensors().into_iter().collect()))
    }

    fn get(&self, name: &str, dtype: Dtype) -> Result<&TensorView<'a>> {
        let tensor = self.0.get(name).ok_or_else(|| {
            let mut have: Vec<_> = self.0.keys().map(String::as_str).collect();
            have.sort_unstable();
            Error::InvalidRequest(format!("the input has no tensor {name}, only: {}", have.join(", ")))
        })?;
        if tensor.dtype() != dtype {
            return Err(Error::InvalidRequest(format!("tensor {name} must be {dtype:?}, not {:?}", tensor.dtype())));
        }
        Ok(tensor)
    }

    fn floats<const D: usize>(&self, name: &str) -> Result<(Vec<f32>, [usize; D])> {
        let tensor = self.get(name, Dtype::F32)?;
        let shape = tensor.shape().try_into().map_err(|_| {
            Error::InvalidRequest(format!("tensor {name} must have {D} dimensions, not {:?}", tensor.shape()))
        })?;
        let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Ok((values, shape))
    }

    fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let tensor = self.get(name, Dtype::I32)?;
        tensor
            .data()
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .map(|id| {
                u32::try_from(id).map_err(|_| Error::InvalidRequest(format!("{name} holds the negative value {id}")))
            })
            .collect()
    }
}

fn output(name: &str, shape: &[usize], values: &[f32]) -> Result<Vec<u8>> {
    let wrong = |e| Error::Internal(format!("the result {name} {shape:?} could not be written ({e})"));
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(wrong)?;
    safetensors::serialize([(name, view)], None).map_err(wrong)
}
