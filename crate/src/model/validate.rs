//! The checks behind [`Manifest::parse`]. All products and sums of untrusted numbers are made in `u64` with checks:
//! in the browser `usize` has 32 bits and wraps.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};
use crate::model::cache::CacheFormat;
use crate::model::manifest::{
    FileInfo, INTERFACE, MAX_SHARD_BYTES, Manifest, SCHEMA_VERSION, TENSOR_ALIGNMENT, TensorInfo,
};
use crate::model::quant::{GROUPS, row_width, stored_bytes};

const MAX_SHARDS: usize = 4096;
const MAX_TENSORS: usize = 20_000;
const MAX_RANK: usize = 8;
const MAX_DIM: u64 = 1 << 31;
const MAX_ELEMENTS: u64 = (1 << 31) - 1;
/// One tensor is assembled in one piece of memory, and a 32-bit heap has no piece above this.
const MAX_TENSOR_BYTES: u64 = (1 << 31) - 1;
const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
pub(crate) const MAX_PROMPT_PACK_BYTES: u64 = 256 << 20;
const MAX_WIDTH: usize = 1 << 16;
const MAX_LAYERS: usize = 256;
const MAX_TOKENS: u64 = 1 << 20;
const MAX_LORA_RANK: usize = 256;

fn invalid<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::Manifest(reason.into()))
}

fn require(holds: bool, reason: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { invalid(reason()) }
}

fn within(name: &str, value: usize, min: usize, max: usize) -> Result<()> {
    require((min..=max).contains(&value), || format!("{name} is {value} and must be from {min} to {max}"))
}

fn real(name: &str, value: f64, max: f64) -> Result<()> {
    require(value.is_finite() && value > 0.0 && value <= max, || {
        format!("{name} is {value} and must be above 0 and at most {max}")
    })
}

/// Checks everything but the shards and tensors.
pub(crate) fn config(manifest: &Manifest) -> Result<()> {
    let Manifest { schema_version, interface, name, .. } = manifest;
    require(*schema_version == SCHEMA_VERSION, || {
        format!("schema_version is {schema_version} and this engine reads {SCHEMA_VERSION}")
    })?;
    require(interface == INTERFACE, || format!("interface is {interface:?} and this engine runs {INTERFACE:?}"))?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    require((1..=64).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.'), || {
        format!("name is {name:?} and must be 1 to 64 of a-z, 0-9, '.', '_', '-', not starting with '.'")
    })?;
    text_encoder(manifest)?;
    transformer(manifest)?;
    autoencoder(manifest)?;
    sampler(manifest)?;
    video(manifest)?;
    require(manifest.requires.features.len() <= 64, || "requires.features has more than 64 entries".into())?;
    Ok(())
}

fn text_encoder(manifest: &Manifest) -> Result<()> {
    let text = &manifest.text_encoder;
    within("text_encoder.vocab_size", text.vocab_size, 3, 1 << 20)?;
    if let Some(full) = text.full_vocab_size {
        within("text_encoder.full_vocab_size", full, text.vocab_size, 1 << 20)?;
    }
    within("text_encoder.d_model", text.d_model, 1, MAX_WIDTH)?;
    within("text_encoder.d_kv", text.d_kv, 1, 1024)?;
    within("text_encoder.num_heads", text.num_heads, 1, 256)?;
    within("text_encoder.num_layers", text.num_layers, 1, MAX_LAYERS)?;
    within("text_encoder.d_ff", text.d_ff, 1, MAX_WIDTH)?;
    let buckets = text.relative_attention_num_buckets;
    within("text_encoder.relative_attention_num_buckets", buckets, 4, 1024)?;
    require(buckets.is_multiple_of(4), || {
        format!("text_encoder.relative_attention_num_buckets is {buckets} and must be a multiple of 4")
    })?;
    // A quarter of the buckets hold exact distances; the logarithmic ones need room above them.
    let distance = text.relative_attention_max_distance;
    within("text_encoder.relative_attention_max_distance", distance, buckets / 4 + 1, 1 << 20)?;
    real("text_encoder.layer_norm_epsilon", text.layer_norm_epsilon, 0.1)?;
    within("text_encoder.max_tokens", text.max_tokens, 2, 4096)?;
    file("the tokenizer", &text.tokenizer, MAX_TOKENIZER_BYTES)
}

fn transformer(manifest: &Manifest) -> Result<()> {
    let wan = &manifest.transformer;
    within("transformer.num_layers", wan.num_layers, 1, MAX_LAYERS)?;
    within("transformer.num_attention_heads", wan.num_attention_heads, 1, 256)?;
    let head = wan.attention_head_dim;
    within("transformer.attention_head_dim", head, 6, 1024)?;
    require(head.is_multiple_of(2), || {
        format!("transformer.attention_head_dim is {head} and must be even, rotation works on pairs")
    })?;
    within("transformer.ffn_dim", wan.ffn_dim, 1, MAX_WIDTH)?;
    let latent = manifest.autoencoder.latent_channels;
    for (name, value) in [("in_channels", wan.in_channels), ("out_channels", wan.out_channels)] {
        require(value == latent, || {
            format!("transformer.{name} is {value} and autoencoder.latent_channels is {latent}; they must be equal")
        })?;
    }
    let (text, model) = (wan.text_dim, manifest.text_encoder.d_model);
    require(text == model, || {
        format!("transformer.text_dim is {text} and text_encoder.d_model is {model}; they must be equal")
    })?;
    within("transformer.freq_dim", wan.freq_dim, 2, MAX_WIDTH)?;
    require(wan.freq_dim.is_multiple_of(2), || {
        format!("transformer.freq_dim is {} and must be even, it holds cosines and sines", wan.freq_dim)
    })?;
    let [frames, height, width] = wan.patch_size;
    require(frames == 1, || {
        format!("transformer.patch_size has {frames} latent frames and must have 1, each has its own timestep")
    })?;
    within("transformer.patch_size[1]", height, 1, 16)?;
    within("transformer.patch_size[2]", width, 1, 16)?;
    real("transformer.eps", wan.eps, 0.1)?;
    within("transformer.rope_max_seq_len", wan.rope_max_seq_len, 1, 1 << 16)
}

fn autoencoder(manifest: &Manifest) -> Result<()> {
    let auto = &manifest.autoencoder;
    within("autoencoder.image_channels", auto.image_channels, 3, 3)?;
    within("autoencoder.latent_channels", auto.latent_channels, 1, 1024)?;
    within("autoencoder.patch_size", auto.patch_size, 1, 8)?;
    for (index, &width) in auto.encoder_channels.iter().enumerate() {
        within(&format!("autoencoder.encoder_channels[{index}]"), width, 1, 4096)?;
    }
    for (index, &width) in auto.decoder_channels.iter().enumerate() {
        within(&format!("autoencoder.decoder_channels[{index}]"), width, 1, 4096)?;
    }
    let down = auto.encoder_time_downscale.iter().filter(|&&on| on).count();
    let up = auto.decoder_time_upscale.iter().filter(|&&on| on).count();
    require(down == up, || {
        format!("autoencoder halves the frame rate {down} times and doubles it {up} times; they must be equal")
    })?;
    // The encoder has a stride of 2 in each of its three stages, always.
    require(auto.decoder_space_upscale.iter().all(|&on| on), || {
        "autoencoder.decoder_space_upscale must be true three times, the encoder halves the size three times".into()
    })
}

fn sigmas(name: &str, sigmas: &[f64]) -> Result<()> {
    within(&format!("the number of {name}"), sigmas.len(), 1, 1000)?;
    for (index, &sigma) in sigmas.iter().enumerate() {
        real(&format!("{name}[{index}]"), sigma, 1.0)?;
    }
    for pair in sigmas.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        require(after < before, || format!("{name} must decrease and {after} follows {before}"))?;
    }
    Ok(())
}

fn sampler(manifest: &Manifest) -> Result<()> {
    let sampler = &manifest.sampler;
    sigmas("sampler.sigmas", &sampler.sigmas)?;
    real("sampler.shift", sampler.shift, 100.0)?;
    real("sampler.timestep_scale", sampler.timestep_scale, 1e6)?;
    if let Some(timesteps) = &sampler.timesteps {
        let (count, steps) = (timesteps.len(), sampler.sigmas.len());
        require(count == steps, || format!("sampler.timesteps has {count} numbers for {steps} sigmas"))?;
        for (index, &timestep) in timesteps.iter().enumerate() {
            real(&format!("sampler.timesteps[{index}]"), timestep, sampler.timestep_scale)?;
        }
        let first = sampler.causal.as_ref().is_some_and(|causal| causal.first_sigmas.is_some());
        require(!first, || "sampler.timesteps and sampler.causal.first_sigmas exclude each other".into())?;
    }
    real("sampler.initial_scale", sampler.initial_scale, 100.0)?;
    real("sampler.guidance", sampler.guidance, 100.0)?;
    if let Some(causal) = &sampler.causal {
        within("sampler.causal.chunk_frames", causal.chunk_frames, 1, 1024)?;
        within("sampler.causal.window_frames", causal.window_frames, causal.chunk_frames, 1 << 20)?;
        within("sampler.causal.sink_frames", causal.sink_frames, 0, 1 << 20)?;
        require((0.0..=sampler.timestep_scale).contains(&causal.context_timestep), || {
            format!("sampler.causal.context_timestep is {}, outside of the timesteps", causal.context_timestep)
        })?;
        if let Some(first) = &causal.first_sigmas {
            sigmas("sampler.causal.first_sigmas", first)?;
        }
        let head = manifest.transformer.attention_head_dim;
        require(causal.cache == CacheFormat::F32 || head.is_multiple_of(4), || {
            let format = causal.cache.name();
            format!(
                "sampler.causal.cache is {format:?}, which needs heads of a multiple of 4 values; {head} need \"f32\""
            )
        })?;
        require(sampler.guidance == 1.0, || "sampler.guidance must be 1 in a causal model".into())?;
    }
    Ok(())
}

fn video(manifest: &Manifest) -> Result<()> {
    let (video, auto, wan) = (&manifest.video, &manifest.autoencoder, &manifest.transformer);
    within("video.fps", video.fps as usize, 1, 240)?;
    within("the number of video.sizes", video.sizes.len(), 1, 256)?;
    let (space, time) = (auto.space_compression(), auto.time_compression());
    let (mut seen, mut grids) = (HashSet::new(), HashMap::new());
    for size in &video.sizes {
        let (width, height) = (size.width as usize, size.height as usize);
        for (name, value, patch) in [("width", width, wan.patch_size[2]), ("height", height, wan.patch_size[1])] {
            within(&format!("a {name} in video.sizes"), value, 2, 8192)?;
            // Video codecs store colour at half the size.
            require(value.is_multiple_of(2), || format!("a {name} in video.sizes is {value} pixels and must be even"))?;
            within(&format!("tokens along the {name}"), value.div_ceil(space * patch), 1, wan.rope_max_seq_len)?;
        }
        require(seen.insert((width, height)), || format!("video.sizes has {width}x{height} twice"))?;
        let [_, _, rows, columns] = manifest.latent_shape(size.width, size.height, 1);
        if let Some(rank) = size.lora_rank {
            within("lora_rank in video.sizes", rank, 1, MAX_LORA_RANK)?;
        }
        // What a clip's latents look like decides whether the change is used.
        require(
            grids
                .insert([rows, columns], size.lora_rank.is_some())
                .is_none_or(|other| !other && size.lora_rank.is_none()),
            || {
                format!(
                    "video.sizes has another size with the latents of {width}x{height}, and one of both has a lora_rank"
                )
            },
        )?;
        within("the number of frames in a video size", size.frames.len(), 1, 256)?;
        let mut counts = HashSet::new();
        for &frames in &size.frames {
            within("frames in video.sizes", frames as usize, 1, 10_000)?;
            require((frames as usize - 1).is_multiple_of(time), || {
                format!("video.sizes has {frames} frames and must have a multiple of {time}, plus 1")
            })?;
            require(counts.insert(frames), || format!("video.sizes has {frames} frames twice for one size"))?;
            let [_, latent_frames, latent_height, latent_width] =
                manifest.latent_shape(size.width, size.height, frames);
            within("tokens along time", latent_frames, 1, wan.rope_max_seq_len)?;
            let tokens = latent_frames as u64
                * (latent_height / wan.patch_size[1]) as u64
                * (latent_width / wan.patch_size[2]) as u64;
            require(tokens <= MAX_TOKENS, || {
                format!("a clip in video.sizes has {tokens} tokens and {MAX_TOKENS} are the most")
            })?;
        }
    }
    Ok(())
}

/// A path that stays below the folder of the manifest wherever it is resolved: on disk, or by `new URL(path, base)`.
fn plain_path(path: &str) -> bool {
    let segment = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.starts_with("..");
    let byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    (1..=255).contains(&path.len()) && path.bytes().all(byte) && path.split('/').all(segment)
}

fn file(what: &str, info: &FileInfo, max_bytes: u64) -> Result<()> {
    let FileInfo { path, bytes, sha256 } = info;
    require(plain_path(path), || {
        format!("the path of {what} must be relative, of letters, digits, '.', '_', '-' and '/' only, and is {path:?}")
    })?;
    require((1..=max_bytes).contains(bytes), || {
        format!("{what} has {bytes} bytes and must have from 1 to {max_bytes}")
    })?;
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    require(sha256.len() == 64 && sha256.bytes().all(digit), || {
        format!("sha256 of {what} must be 64 lower-case hexadecimal digits and is {sha256:?}")
    })
}

/// Checks the shards and tensors: each tensor has exactly the bytes it needs, inside its shards, shared with no other.
pub(crate) fn files(manifest: &Manifest) -> Result<()> {
    within("the number of shards", manifest.shards.len(), 1, MAX_SHARDS)?;
    within("the number of tensors", manifest.tensors.len(), 1, MAX_TENSORS)?;
    let mut paths: HashSet<&str> = [manifest.text_encoder.tokenizer.path.as_str()].into();
    if let Some(pack) = &manifest.prompt_pack {
        file("the prompt pack", pack, MAX_PROMPT_PACK_BYTES)?;
        require(paths.insert(&pack.path), || format!("two files have the path {:?}", pack.path))?;
    }
    for (index, shard) in manifest.shards.iter().enumerate() {
        file(&format!("shard {index}"), shard, MAX_SHARD_BYTES)?;
        require(paths.insert(&shard.path), || format!("two files have the path {:?}", shard.path))?;
    }
    let mut used: HashMap<usize, Vec<(u64, u64, &str)>> = HashMap::new();
    for (name, info) in &manifest.tensors {
        let graphic = name.bytes().all(|byte| byte.is_ascii_graphic());
        require((1..=255).contains(&name.len()) && graphic, || {
            format!("a tensor's name must be 1 to 255 printable ASCII characters and is {name:?}")
        })?;
        let needed = needed_bytes(name, info)?;
        let mut total = 0u64;
        let mut last = None;
        require(!info.parts.is_empty(), || format!("tensor {name:?} has no parts"))?;
        for part in &info.parts {
            let Some(shard) = manifest.shards.get(part.shard) else {
                return invalid(format!("tensor {name:?} lies in shard {}, which does not exist", part.shard));
            };
            require(last.is_none_or(|last| part.shard > last), || {
                format!("tensor {name:?} goes on in shard {}, its parts must go on in later shards", part.shard)
            })?;
            require(last.is_some() || part.offset.is_multiple_of(TENSOR_ALIGNMENT), || {
                format!("tensor {name:?} starts at {}, not at a multiple of {TENSOR_ALIGNMENT}", part.offset)
            })?;
            last = Some(part.shard);
            let end = part.offset.checked_add(part.bytes).filter(|&end| end <= shard.bytes);
            let Some(end) = end.filter(|_| part.bytes > 0) else {
                return invalid(format!(
                    "tensor {name:?} has {} bytes from {} on, shard {} has {}",
                    part.bytes, part.offset, part.shard, shard.bytes
                ));
            };
            total += part.bytes;
            used.entry(part.shard).or_default().push((part.offset, end, name));
        }
        require(total == needed, || {
            format!("tensor {name:?} of shape {:?} as {} needs {needed} bytes and has {total}", info.shape, info.dtype)
        })?;
    }
    for (shard, mut runs) in used {
        runs.sort_unstable();
        for pair in runs.windows(2) {
            require(pair[0].1 <= pair[1].0, || {
                format!("tensors {:?} and {:?} overlap in shard {shard}", pair[0].2, pair[1].2)
            })?;
        }
    }
    Ok(())
}

/// Bytes that a tensor of this format, shape and group takes.
fn needed_bytes(name: &str, info: &TensorInfo) -> Result<u64> {
    let TensorInfo { dtype, shape, group, .. } = info;
    let fail = |reason: String| invalid(format!("tensor {name:?} of shape {shape:?} {reason}"));
    if shape.is_empty() || shape.len() > MAX_RANK {
        return fail(format!("must have from 1 to {MAX_RANK} axes"));
    }
    let mut elements = 1u64;
    for &dim in shape {
        if dim == 0 || dim as u64 > MAX_DIM {
            return fail(format!("has an axis of {dim}, from 1 to {MAX_DIM} is possible"));
        }
        match elements.checked_mul(dim as u64).filter(|&product| product <= MAX_ELEMENTS) {
            Some(product) => elements = product,
            None => return fail(format!("has more than {MAX_ELEMENTS} values")),
        }
    }
    match group {
        Some(_) if !dtype.quantized() => return fail(format!("is {dtype} and has a group")),
        Some(group) if GROUPS.contains(group) => {
            let width = row_width(shape).unwrap_or(1);
            if !width.is_multiple_of(*group) {
                return fail(format!("has rows of {width} values, which groups of {group} do not divide"));
            }
        }
        None if !dtype.quantized() => {}
        _ => return fail(format!("is {dtype} and must have a group of 32 or 64")),
    }
    match stored_bytes(*dtype, elements, *group) {
        Some(bytes) if bytes <= MAX_TENSOR_BYTES => Ok(bytes),
        _ => fail(format!("needs more than the {MAX_TENSOR_BYTES} bytes that one tensor may have")),
    }
}
