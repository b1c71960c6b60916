//! The denoiser at work: `denoise/wan.rs`, `denoise/cache`, and the latents that `generation.rs` and `engine.rs`
//! hold.

use crate::model::cache::{CacheFormat, CacheLayout};
use crate::model::manifest::{CausalConfig, ClipSize, Manifest, SamplerStep};
use crate::model::plan::bytes::{Bytes, Held, Machine, Walk};
use crate::model::plan::weights::{Matrix, Weights};
use crate::model::plan::{Both, Target};

/// What a clip takes in the denoiser.
pub(super) struct Denoising {
    /// Keys and values of the prompt (and of the negative one) in every block; stay until the clip is done.
    pub(super) text: Bytes,
    /// The most while those are computed, they included.
    pub(super) text_work: Bytes,
    /// Keys and values of finished frames; none where the clip is made at once.
    pub(super) cache: Bytes,
    /// The clip's latents as the sampler has them, in host memory.
    pub(super) latents: Bytes,
    /// Latents of earlier chunks, where all of them wait until the last one is finished.
    pub(super) waiting: Bytes,
    /// Whether the clip is made in several chunks, with decoding between them.
    pub(super) chunked: bool,
    /// Most that one pass holds besides all these.
    pub(super) work: Bytes,
    /// The longest single piece.
    pub(super) largest: Bytes,
    /// Pages of a GPU once the prompt's keys and values are there, and after the last step.
    pub(super) pages: [Bytes; 2],
    /// What stays on a GPU until the clip is done.
    pub(super) kept: Vec<Held>,
}

/// The sizes that a pass depends on.
struct Sizes {
    tokens: u64,
    frames: u64,
    width: u64,
    heads: u64,
    text: u64,
    /// Tokens of the frames that are looked back at.
    past: u64,
    /// Bytes of a token's key in one block, or of its value, as the cache stores them.
    cached: Bytes,
    /// Whether that is in fewer bits than f32.
    packed: bool,
}

struct Matrices {
    patch: Matrix,
    time_proj: Matrix,
    attention: Matrix,
    ffn_in: Matrix,
    ffn_out: Matrix,
    proj_out: Matrix,
    norm2: bool,
}

pub(super) fn denoising(
    manifest: &Manifest,
    weights: &Weights<'_>,
    size: ClipSize,
    machine: &Machine,
    lora: bool,
) -> Denoising {
    let target = machine.target;
    let wan = &manifest.transformer;
    let [channels, frames, height, width] =
        manifest.latent_shape(size.width, size.height, size.frames).map(|n| n as u64);
    let rows = (height / wan.patch_size[1] as u64) * (width / wan.patch_size[2] as u64);
    let layers = wan.num_layers as u64;
    let inner = wan.inner_dim() as u64;
    let block = "transformer.blocks.0";
    let matrices = Matrices {
        patch: weights.matrix("transformer.patch_embedding"),
        time_proj: weights.matrix("transformer.condition_embedder.time_proj"),
        attention: weights.matrix(&format!("{block}.attn1.to_q")),
        ffn_in: weights.matrix(&format!("{block}.ffn.net.0.proj")),
        ffn_out: weights.matrix(&format!("{block}.ffn.net.2")),
        proj_out: weights.matrix("transformer.proj_out"),
        norm2: wan.cross_attn_norm,
    };
    let causal = manifest.sampler.causal.as_ref();
    let format = causal.map_or(CacheFormat::F32, |causal| causal.cache);
    let layout = CacheLayout::new(format, wan.num_attention_heads, wan.attention_head_dim);
    let chunk = causal.map_or(frames, |causal| (causal.chunk_frames as u64).min(frames));
    let chunks = frames.div_ceil(chunk.max(1));
    // Frames in front of the last chunk that are still held, and in front of the last one that is remembered.
    let held = |chunks: u64| causal.map_or(0, |causal| held_frames(causal, chunks * chunk, target));
    let seen = |chunks: u64| causal.map_or(0, |causal| (chunks * chunk).min(window(causal)));
    let sizes = Sizes {
        tokens: chunk * rows,
        frames: chunk,
        width: inner,
        heads: wan.num_attention_heads as u64,
        text: manifest.text_encoder.max_tokens as u64,
        past: seen(chunks - 1) * rows,
        cached: Bytes::new(4) * layout.words() as u64,
        packed: format != CacheFormat::F32,
    };
    // A key and a value a token and block.
    let cache = sizes.cached * (2 * layers * rows) * held(chunks - 1);

    let guided = if manifest.guided() { 2 } else { 1 };
    let text = Bytes::f32s(&[2 * layers, sizes.text, inner]);
    let (text_work, mut kept) = text_work(manifest, weights, &matrices, sizes.text, machine, lora);
    let (text_work, beside) = (text_work + text * (guided - 1), Walk::new(machine, lora));
    if guided > 1 {
        kept.extend((0..2 * layers).map(|_| beside.tensor(&[sizes.text, inner])));
    }
    let prompted = machine.pages();
    // The cache grows until its window is full; what it had is let go of once what it has is there.
    let (mut cached, mut length) = (Vec::new(), 0);
    for grown in (1..chunks).map(held).take_while(|&grown| std::mem::replace(&mut length, grown) < grown) {
        cached = (0..2 * layers).map(|_| beside.hold(sizes.cached * rows * grown)).collect::<Vec<_>>();
    }
    kept.append(&mut cached);

    let walk = Walk::new(machine, lora);
    pass(&walk, &matrices, &sizes, channels, None);
    let mut work = walk.peak();
    if chunks > 1 {
        // A finished chunk passes once more: its keys and values wait beside the cache until they are joined to it.
        let before = Sizes { past: seen(chunks - 2) * rows, ..sizes };
        let again = Walk::new(machine, lora);
        pass(&again, &matrices, &before, channels, Some(layers));
        work = work.max(again.peak());
    }

    // Latents before and after a step, two estimates, velocity, noise; the multistep solver remembers four more.
    let copies = 6 + if manifest.sampler.step == SamplerStep::Unipc { 4 } else { 0 } + 2 * (guided - 1);
    // And the finished ones that wait for the decoder.
    let latents = Bytes::f32s(&[copies + 1, channels, chunk, height, width]);
    let waiting = Bytes::f32s(&[channels, frames - chunk, height, width]);
    let (text, chunked, largest) = (text * guided, chunks > 1, walk.largest());
    let pages = [prompted, machine.pages()];
    Denoising { text, text_work, cache, latents, waiting, chunked, work, largest, pages, kept }
}

fn window(causal: &CausalConfig) -> u64 {
    (causal.sink_frames as u64).saturating_add(causal.window_frames as u64)
}

/// Frames whose memory the cache holds after `frames` finished ones.
fn held_frames(causal: &CausalConfig, frames: u64, target: Target) -> u64 {
    // On the CPU a window is a view of what it was cut from, unless it is joined to a sink; packed rows keep the room
    // of those that left.
    let room = target != Target::Gpu && (causal.sink_frames == 0 || causal.cache != CacheFormat::F32);
    frames.min(window(causal) + if room { causal.chunk_frames as u64 } else { 0 })
}

/// `Wan::text_context`: the most that it takes, and the keys and values that are left.
fn text_work(
    manifest: &Manifest,
    weights: &Weights<'_>,
    matrices: &Matrices,
    tokens: u64,
    machine: &Machine,
    lora: bool,
) -> (Bytes, Vec<Held>) {
    let walk = Walk::new(machine, lora);
    let embedder = "transformer.condition_embedder.text_embedder";
    let linear = |index: usize| weights.matrix(&format!("{embedder}.linear_{index}"));
    let x = walk.tensor(&[tokens, manifest.transformer.text_dim as u64]);
    let text = walk.mlp(linear(1), linear(2), x, tokens);
    let mut blocks = Vec::new();
    for _ in 0..manifest.transformer.num_layers {
        let key = walk.linear(matrices.attention, tokens);
        blocks.push(walk.own_norm(key, tokens, matrices.attention.n));
        blocks.push(walk.linear(matrices.attention, tokens));
    }
    drop(text);
    (walk.peak(), blocks)
}

/// `Wan::run`, with the keys and values of `kept` blocks kept.
fn pass(walk: &Walk, matrices: &Matrices, sizes: &Sizes, channels: u64, kept: Option<u64>) {
    let &Sizes { tokens, frames, width, heads, past, cached, packed, .. } = sizes;
    let patches = walk.tensor(&[tokens, matrices.patch.k]);
    let x = walk.linear(matrices.patch, tokens);
    drop(patches);
    // Embedding, projection and the block's sums of both; the projection's matrix is the widest of them.
    let time = walk.tensor(&[frames, 10 * width]);
    drop(walk.linear(matrices.time_proj, frames));
    let rotary = walk.tensor(&[tokens, width / heads.max(1)]);
    // All blocks but the last have left their keys and values.
    let own = kept.map(|layers| walk.hold(cached * (2 * (layers - 1) * tokens)));
    let (k, v) = block(walk, matrices, sizes);
    if own.is_some() {
        if packed {
            // Read back and packed.
            walk.during(Bytes::f32s(&[tokens, width]) + cached * (2 * tokens));
        }
        // Joined to the cache one block after the other, keys and values by themselves.
        walk.during(cached * (4 * (past + tokens)));
    } else {
        drop((k, v));
        let h = walk.norm(tokens, width);
        let out = walk.linear(matrices.proj_out, tokens);
        // Read back, and put in order.
        walk.during(Bytes::f32s(&[2, channels, tokens, matrices.proj_out.n / channels.max(1)]));
        drop((h, out));
    }
    drop((own, rotary, time, x));
}

/// `Wan::block`, which takes its input; gives the keys and values that it leaves.
fn block(walk: &Walk, matrices: &Matrices, sizes: &Sizes) -> (Held, Held) {
    let &Sizes { tokens, width, heads, text, past, packed, .. } = sizes;
    let linear = || walk.linear(matrices.attention, tokens);
    let h = walk.norm(tokens, width);
    let q = walk.own_norm(linear(), tokens, width);
    let k = walk.own_norm(linear(), tokens, width);
    let v = linear();
    drop(h);
    let q = walk.rope(q, tokens, width);
    let k = walk.rope(k, tokens, width);
    let keys = past + tokens;
    let join = || {
        // On the CPU packed rows are widened first; a GPU does both at once.
        let _past = (packed && !walk.on_gpu()).then(|| walk.tensor(&[past, width]));
        walk.tensor(&[keys, width])
    };
    let joined = (past > 0).then(|| (join(), join()));
    let h = walk.attention(q, tokens, keys, heads, width);
    drop(joined);
    drop((linear(), h));

    let h = matrices.norm2.then(|| walk.norm(tokens, width));
    let q = linear();
    drop(h);
    let q = walk.own_norm(q, tokens, width);
    let h = walk.attention(q, tokens, text, heads, width);
    drop((linear(), h));

    let h = walk.norm(tokens, width);
    drop(walk.mlp(matrices.ffn_in, matrices.ffn_out, h, tokens));
    (k, v)
}

impl Denoising {
    /// What stays while a clip is made, by where it lies.
    pub(super) fn staying(&self, target: Target) -> [(&'static str, Both); 3] {
        [
            ("keys and values of the prompt", Both::on(target, self.text)),
            ("key and value cache", Both::on(target, self.cache)),
            ("latents", Both::host(self.latents)),
        ]
    }
}
