//! The Wan 2.1 video transformer, with a timestep of its own for every latent frame.
//!
//! Follows diffusers `models/transformers/transformer_wan.py` (`WanTransformer3DModel`, the per-token timestep path):
//! adaptive layer norm modulated by the timestep, queries and keys RMS-normed over the full width, 3-D rotary
//! positions, cross-attention to the text without a mask, velocity output. Frames that are given rather than made are
//! held clean by handing them timestep 0.

use burn::tensor::Tensor;
use burn::tensor::activation::silu;

use crate::compute::Compute;
use crate::denoise::cache::{Kept, KeyValue, KvCache};
use crate::error::{Error, Result};
use crate::lora::{Chosen, SizeLoras};
use crate::model::manifest::{CausalConfig, Manifest, TransformerConfig};
use crate::ops::{self, Activation, Affine, Linear};
use crate::weights::WeightStore;

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm_q: Tensor<2>,
    norm_k: Tensor<2>,
}

impl Attention {
    fn load(store: &mut WeightStore, prefix: &str) -> Result<Self> {
        Ok(Self {
            q: store.linear(&format!("{prefix}.to_q"))?,
            k: store.linear(&format!("{prefix}.to_k"))?,
            v: store.linear(&format!("{prefix}.to_v"))?,
            out: store.linear(&format!("{prefix}.to_out.0"))?,
            norm_q: store.row(&format!("{prefix}.norm_q.weight"))?,
            norm_k: store.row(&format!("{prefix}.norm_k.weight"))?,
        })
    }

    fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.out]
    }
}

struct Block {
    modulation: Tensor<2>,
    attn1: Attention,
    norm2: Option<(Tensor<2>, Tensor<2>)>,
    attn2: Attention,
    ffn_in: Linear,
    ffn_out: Linear,
}

/// Keys and values of every block's cross-attention: computed once for a prompt, used in every step.
pub struct TextContext {
    blocks: Vec<(Tensor<2>, Tensor<2>)>,
}

/// What a pass through the transformer is given.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// `[C, F, H, W]`, as `shape` says.
    pub latents: &'a [f32],
    pub shape: [usize; 4],
    /// One for every latent frame, 0 to 1000.
    pub timesteps: &'a [f32],
    pub text: &'a TextContext,
}

/// Transformer weights on a device.
pub struct Wan {
    config: TransformerConfig,
    patch_embedding: Linear,
    time_in: Linear,
    time_out: Linear,
    time_proj: Linear,
    text_in: Linear,
    text_out: Linear,
    blocks: Vec<Block>,
    head_modulation: Tensor<2>,
    proj_out: Linear,
    size_loras: SizeLoras,
    /// Height and width of the latents that the layers are set for.
    grid: [usize; 2],
}

impl Wan {
    /// Takes the tensors `transformer.*` from the store.
    pub fn load(config: &TransformerConfig, store: &mut WeightStore) -> Result<Self> {
        let embedder = "transformer.condition_embedder";
        let mut blocks = Vec::with_capacity(config.num_layers);
        for index in 0..config.num_layers {
            let prefix = format!("transformer.blocks.{index}");
            blocks.push(Block {
                modulation: store.table(&format!("{prefix}.scale_shift_table"))?,
                attn1: Attention::load(store, &format!("{prefix}.attn1"))?,
                norm2: if config.cross_attn_norm {
                    let weight = store.row(&format!("{prefix}.norm2.weight"))?;
                    Some((weight, store.row(&format!("{prefix}.norm2.bias"))?))
                } else {
                    None
                },
                attn2: Attention::load(store, &format!("{prefix}.attn2"))?,
                ffn_in: store.linear(&format!("{prefix}.ffn.net.0.proj"))?,
                ffn_out: store.linear(&format!("{prefix}.ffn.net.2"))?,
            });
        }
        Ok(Self {
            config: config.clone(),
            patch_embedding: store.linear("transformer.patch_embedding")?,
            time_in: store.linear(&format!("{embedder}.time_embedder.linear_1"))?,
            time_out: store.linear(&format!("{embedder}.time_embedder.linear_2"))?,
            time_proj: store.linear(&format!("{embedder}.time_proj"))?,
            text_in: store.linear(&format!("{embedder}.text_embedder.linear_1"))?,
            text_out: store.linear(&format!("{embedder}.text_embedder.linear_2"))?,
            blocks,
            head_modulation: store.table("transformer.scale_shift_table")?,
            proj_out: store.linear("transformer.proj_out")?,
            size_loras: SizeLoras::default(),
            grid: [0, 0],
        })
    }

    /// As [`load`](Self::load), with the changes that belong to the model's sizes.
    pub(crate) fn with_sizes(manifest: &Manifest, store: &mut WeightStore) -> Result<Self> {
        let wan = Self::load(&manifest.transformer, store)?;
        Ok(Self { size_loras: SizeLoras::load(manifest, store)?, ..wan })
    }

    /// Whether the layers compute what latents of this height and width need.
    pub(crate) fn is_for(&self, grid: [usize; 2]) -> bool {
        self.grid == grid || (self.size_loras.of(self.grid).is_none() && self.size_loras.of(grid).is_none())
    }

    /// Sets every layer for latents of this height and width, and for what else was chosen.
    pub(crate) fn set_for(&mut self, grid: [usize; 2], chosen: &Chosen) {
        self.grid = grid;
        let own = self.size_loras.of(grid);
        chosen.apply(own, self.linears_mut());
    }

    /// As it is set, with other choices.
    pub(crate) fn set_loras(&mut self, chosen: &Chosen) {
        self.set_for(self.grid, chosen);
    }

    /// Every linear layer: what a LoRA may change.
    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let Self { patch_embedding, time_in, time_out, time_proj, text_in, text_out, blocks, proj_out, .. } = self;
        let inner = blocks.iter_mut().flat_map(|Block { attn1, attn2, ffn_in, ffn_out, .. }| {
            attn1.linears_mut().into_iter().chain(attn2.linears_mut()).chain([ffn_in, ffn_out])
        });
        [patch_embedding, time_in, time_out, time_proj, text_in, text_out, proj_out].into_iter().chain(inner)
    }

    /// Embeddings `[tokens, text_dim]`, zero-padded to `padded` rows as Wan was trained -> what all steps share.
    pub fn text_context(&self, compute: &Compute, mut embeddings: Vec<f32>, padded: usize) -> Result<TextContext> {
        let width = self.config.text_dim;
        if embeddings.is_empty() || embeddings.len() % width != 0 || embeddings.len() / width > padded {
            return Err(Error::InvalidRequest(format!(
                "text embeddings must be [1 to {padded}, {width}], but there are {} values",
                embeddings.len()
            )));
        }
        embeddings.resize(padded * width, 0.0);
        let text = compute.tensor(embeddings, [padded, width]);
        let text = Linear::mlp(&self.text_in, &self.text_out, text, Activation::Gelu);
        let blocks = self
            .blocks
            .iter()
            .map(|block| {
                let key = block.attn2.k.forward(text.clone(), Activation::None);
                let key = self.rms(compute, key, &block.attn2.norm_k);
                (key, block.attn2.v.forward(text.clone(), Activation::None))
            })
            .collect();
        Ok(TextContext { blocks })
    }

    /// Velocity `[C, F, H, W]` of latents.
    pub async fn velocity(&self, compute: &Compute, input: Input<'_>) -> Result<Vec<f32>> {
        self.run(compute, input, None, None).await
    }

    /// Velocity of a chunk that follows the frames in `past`.
    pub async fn velocity_after(&self, compute: &Compute, input: Input<'_>, past: &KvCache) -> Result<Vec<f32>> {
        self.run(compute, input, Some(past), None).await
    }

    /// Adds a finished chunk to `past`, at the timesteps that the model was trained to be shown context at.
    pub async fn remember(&self, compute: &Compute, input: Input<'_>, past: &mut KvCache) -> Result<()> {
        let mut chunk = Vec::with_capacity(self.blocks.len());
        self.run(compute, input, Some(&*past), Some(&mut chunk)).await?;
        past.add(chunk, input.shape[1] / self.config.patch_size[0]);
        Ok(())
    }

    /// An empty cache for clips of `shape` `[C, F, H, W]`.
    pub fn cache(&self, config: &CausalConfig, shape: [usize; 4]) -> KvCache {
        let [_, ph, pw] = self.config.patch_size;
        KvCache::new(config, &self.config, (shape[2] / ph) * (shape[3] / pw))
    }

    async fn run(
        &self,
        compute: &Compute,
        input: Input<'_>,
        past: Option<&KvCache>,
        mut kept: Option<&mut Vec<Kept>>,
    ) -> Result<Vec<f32>> {
        let start = past.map_or(0, KvCache::position);
        self.check(input, start)?;
        let Input { latents, shape, timesteps, text } = input;
        let [pt, ph, pw] = self.config.patch_size;
        let grid = [shape[1] / pt, shape[2] / ph, shape[3] / pw];
        let (rows, tokens) = (grid[1] * grid[2], grid.iter().product::<usize>());

        let patches = patchify(latents, shape, self.config.patch_size);
        let x = compute.tensor(patches, [tokens, self.config.in_channels * pt * ph * pw]);
        let mut x = self.patch_embedding.forward(x, Activation::None);

        let timesteps: Vec<f32> = timesteps.iter().step_by(pt).copied().collect();
        let (embedding, projection) = self.time_embedding(compute, &timesteps);
        let rotary = compute.tensor(self.rotary_table(grid, start), [tokens, self.config.attention_head_dim]);
        for (index, (block, cross)) in self.blocks.iter().zip(&text.blocks).enumerate() {
            let seen = past.map(|past| (past, index));
            let (after, own) = self.block(compute, block, x, &projection, cross, &rotary, rows, seen);
            x = after;
            if let (Some(kept), Some(past)) = (kept.as_mut(), past) {
                kept.push(past.keep(compute, own).await?);
            }
            compute.drain(&x).await?;
        }
        if kept.is_some() {
            // Only what the blocks offered was wanted.
            return Ok(Vec::new());
        }

        let width = self.config.inner_dim();
        let frames = grid[0];
        let part = |at: usize| self.head_modulation.clone().slice([at..at + 1]) + embedding.clone();
        let modulation = Affine::Modulation { shift: part(0), scale: part(1), rows };
        debug_assert_eq!(embedding.dims(), [frames, width]);
        let x = ops::norm(compute, x, modulation, true, self.config.eps);
        let out = compute.read(self.proj_out.forward(x, Activation::None)).await?;
        Ok(unpatchify(&out, [self.config.out_channels, shape[1], shape[2], shape[3]], self.config.patch_size))
    }

    /// The first block alone, for holding it against a reference: `[tokens, dim]`, projection `[F, 6 * dim]`, text
    /// `[padded, dim]` (already embedded) -> `[tokens, dim]`.
    pub async fn first_block(
        &self,
        compute: &Compute,
        hidden: Vec<f32>,
        projection: Vec<f32>,
        text: Vec<f32>,
        grid: [usize; 3],
    ) -> Result<Vec<f32>> {
        let width = self.config.inner_dim();
        let volume = |sides: &[usize]| sides.iter().try_fold(1, |count: usize, &side| count.checked_mul(side));
        let tokens = volume(&grid).filter(|&tokens| tokens > 0 && volume(&[tokens, width]) == Some(hidden.len()));
        let fits = projection.len() == grid[0] * 6 * width && !text.is_empty() && text.len().is_multiple_of(width);
        let Some(tokens) = tokens.filter(|_| fits) else {
            return Err(Error::InvalidRequest("the block's inputs do not fit its width or the grid".into()));
        };
        let text_rows = text.len() / width;
        let text: Tensor<2> = compute.tensor(text, [text_rows, width]);
        let block = &self.blocks[0];
        let key = block.attn2.k.forward(text.clone(), Activation::None);
        let cross = (self.rms(compute, key, &block.attn2.norm_k), block.attn2.v.forward(text, Activation::None));
        let rotary = compute.tensor(self.rotary_table(grid, 0), [tokens, self.config.attention_head_dim]);
        let x = compute.tensor(hidden, [tokens, width]);
        let projection = compute.tensor(projection, [grid[0], 6 * width]);
        compute.read(self.block(compute, block, x, &projection, &cross, &rotary, grid[1] * grid[2], None).0).await
    }

    #[allow(clippy::too_many_arguments, reason = "the inputs of a block, each used once")]
    fn block(
        &self,
        compute: &Compute,
        block: &Block,
        x: Tensor<2>,
        projection: &Tensor<2>,
        cross: &(Tensor<2>, Tensor<2>),
        rotary: &Tensor<2>,
        rows: usize,
        past: Option<(&KvCache, usize)>,
    ) -> (Tensor<2>, KeyValue) {
        let eps = self.config.eps;
        let (heads, width) = (self.config.num_attention_heads, self.config.inner_dim());
        let scale = 1.0 / (self.config.attention_head_dim as f32).sqrt();
        // shift, scale, gate of the self-attention, then of the feed-forward: [F, dim] each.
        let part = |at: usize| {
            projection.clone().slice([0..projection.dims()[0], at * width..(at + 1) * width])
                + block.modulation.clone().slice([at..at + 1])
        };

        let modulation = Affine::Modulation { shift: part(0), scale: part(1), rows };
        let h = ops::norm(compute, x.clone(), modulation, true, eps);
        let q = self.rms(compute, block.attn1.q.forward(h.clone(), Activation::None), &block.attn1.norm_q);
        let k = self.rms(compute, block.attn1.k.forward(h.clone(), Activation::None), &block.attn1.norm_k);
        let v = block.attn1.v.forward(h, Activation::None);
        let (q, own) = (ops::rope(compute, q, rotary), (ops::rope(compute, k, rotary), v));
        let (k, v) = past.map_or_else(|| own.clone(), |(cache, index)| cache.joined(index, &own));
        let h = ops::attention(compute, q, k, v, None, heads, scale);
        let x = ops::gated_residual(x, block.attn1.out.forward(h, Activation::None), part(2), rows);

        let h = match &block.norm2 {
            Some((weight, bias)) => ops::norm(compute, x.clone(), Affine::Weight(weight, Some(bias)), true, eps),
            None => x.clone(),
        };
        let q = self.rms(compute, block.attn2.q.forward(h, Activation::None), &block.attn2.norm_q);
        let h = ops::attention(compute, q, cross.0.clone(), cross.1.clone(), None, heads, scale);
        let x = x + block.attn2.out.forward(h, Activation::None);

        let modulation = Affine::Modulation { shift: part(3), scale: part(4), rows };
        let h = ops::norm(compute, x.clone(), modulation, true, eps);
        let h = Linear::mlp(&block.ffn_in, &block.ffn_out, h, Activation::Gelu);
        (ops::gated_residual(x, h, part(5), rows), own)
    }

    fn rms(&self, compute: &Compute, x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
        ops::norm(compute, x, Affine::Weight(weight, None), false, self.config.eps)
    }

    /// Embedding `[F, dim]` for the head and projection `[F, 6 * dim]` for the blocks.
    fn time_embedding(&self, compute: &Compute, timesteps: &[f32]) -> (Tensor<2>, Tensor<2>) {
        let half = self.config.freq_dim / 2;
        let mut values = Vec::with_capacity(timesteps.len() * self.config.freq_dim);
        for &t in timesteps {
            // In f32 as the reference does it: at timestep 1000 the rounding of the frequencies is visible.
            let angle = |i: usize| f64::from(t * (-(10_000f32.ln()) * i as f32 / half as f32).exp());
            values.extend((0..half).map(|i| angle(i).cos() as f32));
            values.extend((0..half).map(|i| angle(i).sin() as f32));
        }
        let x = compute.tensor(values, [timesteps.len(), self.config.freq_dim]);
        let embedding = self.time_out.forward(self.time_in.forward(x, Activation::Silu), Activation::None);
        let projection = self.time_proj.forward(silu(embedding.clone()), Activation::None);
        (embedding, projection)
    }

    /// (cos, sin) of every pair for every token: `[tokens, head_dim]`. The head is split between time, height and
    /// width; a third of the pairs each, the remainder to time. Frames count from `start`.
    fn rotary_table(&self, grid: [usize; 3], start: usize) -> Vec<f32> {
        let dim = self.config.attention_head_dim;
        let side = 2 * (dim / 6);
        let parts = [dim - 2 * side, side, side];
        let mut table = Vec::with_capacity(grid.iter().product::<usize>() * dim);
        for f in 0..grid[0] {
            for h in 0..grid[1] {
                for w in 0..grid[2] {
                    for (position, part) in [start + f, h, w].into_iter().zip(parts) {
                        for i in 0..part / 2 {
                            let angle = position as f64 / 10_000f64.powf((2 * i) as f64 / part as f64);
                            table.extend([angle.cos() as f32, angle.sin() as f32]);
                        }
                    }
                }
            }
        }
        table
    }

    fn check(&self, Input { latents, shape, timesteps, .. }: Input<'_>, start: usize) -> Result<()> {
        let wrong = |what: String| Err(Error::InvalidRequest(what));
        let patch = self.config.patch_size;
        if shape[0] != self.config.in_channels || latents.len() != shape.iter().product::<usize>() {
            return wrong(format!("latents must be [{}, F, H, W], not {shape:?}", self.config.in_channels));
        }
        if (0..3).any(|i| shape[i + 1] == 0 || shape[i + 1] % patch[i] != 0) {
            return wrong(format!("latents {shape:?} do not divide into patches of {patch:?}"));
        }
        let positions = [start + shape[1] / patch[0], shape[2] / patch[1], shape[3] / patch[2]];
        if positions.iter().any(|&count| count > self.config.rope_max_seq_len) {
            return wrong(format!(
                "latents {shape:?} from frame {start} on have more positions than the model's {}",
                self.config.rope_max_seq_len
            ));
        }
        if timesteps.len() != shape[1] {
            return wrong(format!("{} timesteps for {} latent frames", timesteps.len(), shape[1]));
        }
        Ok(())
    }
}

/// `[C, F, H, W]` -> `[tokens, C * pt * ph * pw]`, the inner order of the reference's convolution weight.
fn patchify(latents: &[f32], [c, f, h, w]: [usize; 4], [pt, ph, pw]: [usize; 3]) -> Vec<f32> {
    let mut out = Vec::with_capacity(latents.len());
    for tf in 0..f / pt {
        for th in 0..h / ph {
            for tw in 0..w / pw {
                for channel in 0..c {
                    for df in 0..pt {
                        for dh in 0..ph {
                            let row = ((channel * f + tf * pt + df) * h + th * ph + dh) * w + tw * pw;
                            out.extend_from_slice(&latents[row..row + pw]);
                        }
                    }
                }
            }
        }
    }
    out
}

/// `[tokens, pt * ph * pw * C]` -> `[C, F, H, W]`: here the channel runs fastest, as in the reference.
fn unpatchify(tokens: &[f32], [c, f, h, w]: [usize; 4], [pt, ph, pw]: [usize; 3]) -> Vec<f32> {
    let mut out = vec![0.0; c * f * h * w];
    let mut values = tokens.iter();
    for tf in 0..f / pt {
        for th in 0..h / ph {
            for tw in 0..w / pw {
                for df in 0..pt {
                    for dh in 0..ph {
                        for dw in 0..pw {
                            for channel in 0..c {
                                let at = ((channel * f + tf * pt + df) * h + th * ph + dh) * w + tw * pw + dw;
                                out[at] = values.next().copied().unwrap_or(0.0);
                            }
                        }
                    }
                }
            }
        }
    }
    out
}
