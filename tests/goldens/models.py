"""Builds the reference models of a manifest: diffusers' Wan transformer, transformers' UMT5 encoder, and the
autoencoder of the training code, which `check_autoencoder.py` holds to TAEHV.

Every function takes a manifest section and a dict of f32 tensors under the names of a Kinora model file.
"""

import contextlib
import sys
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers import transformer_wan
from transformers import UMT5Config, UMT5EncoderModel

sys.path.append(str(Path(__file__).parents[2]))
from training.autoencoder import Autoencoder  # noqa: E402


def text_encoder(section, eos=1, pad=0):
    config = UMT5Config(
        vocab_size=section["vocab_size"],
        d_model=section["d_model"],
        d_kv=section["d_kv"],
        d_ff=section["d_ff"],
        num_layers=section["num_layers"],
        num_heads=section["num_heads"],
        relative_attention_num_buckets=section["relative_attention_num_buckets"],
        relative_attention_max_distance=section["relative_attention_max_distance"],
        layer_norm_epsilon=section["layer_norm_epsilon"],
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    config._attn_implementation = "eager"
    return UMT5EncoderModel(config).eval()


def transformer(section):
    names = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "in_channels", "out_channels",
             "text_dim", "freq_dim", "eps", "cross_attn_norm", "rope_max_seq_len")
    config = {name: section[name] for name in names}
    return WanTransformer3DModel(patch_size=tuple(section["patch_size"]), **config).eval()


def autoencoder(section):
    return Autoencoder(section).eval()


BUILDERS = {"text_encoder": text_encoder, "transformer": transformer, "autoencoder": autoencoder}


def state(part, module):
    """The module's tensors under the names of a Kinora model file."""
    tensors = {f"{part}.{name}": tensor.detach() for name, tensor in module.state_dict().items()}
    # Tied to shared.weight; one of the two is enough.
    tensors.pop("text_encoder.encoder.embed_tokens.weight", None)
    return tensors


def build(manifest, tensors):
    """All three models with the given weights; raises where a tensor is missing, extra or of another shape."""
    built = {}
    for part, builder in BUILDERS.items():
        module = builder(manifest[part])
        own = {name.removeprefix(part + "."): t for name, t in tensors.items() if name.startswith(part + ".")}
        if part == "text_encoder":
            own["encoder.embed_tokens.weight"] = own["shared.weight"]
        module.load_state_dict(own, strict=True)
        built[part] = module.float()
    return built


def encode_text(models, input_ids):
    """Token ids (</s> included) -> embeddings [n, d] of the real tokens."""
    return models["text_encoder"](input_ids=input_ids[None]).last_hidden_state[0]


def pad_text(text, max_tokens):
    """Zero rows up to max_tokens: Wan's convention, after the encoder and without a mask."""
    return torch.nn.functional.pad(text, (0, 0, 0, max_tokens - len(text)))


def per_token(section, latents, timesteps):
    """One timestep per latent frame -> one per token, in token order (frame, row, column)."""
    time, height, width = section["patch_size"]
    assert time == 1
    return timesteps.repeat_interleave((latents.shape[2] // height) * (latents.shape[3] // width))


def denoise(manifest, models, latents, timesteps, text):
    """Velocity [C, F, H, W] of latents [C, F, H, W]; text [n, d] is zero-padded here."""
    padded = pad_text(text, manifest["text_encoder"]["max_tokens"])
    tokens = per_token(manifest["transformer"], latents, timesteps)
    return models["transformer"](latents[None], tokens[None], padded[None], return_dict=False)[0][0]


@contextlib.contextmanager
def causal_attention(grid, chunk, sink, window):
    """Within it, self-attention over a grid of (frame, row, column) tokens is causal from chunk to chunk.

    A chunk sees itself, the first `sink` frames and the `window` frames before it.
    """
    frame = torch.arange(grid[0]).repeat_interleave(grid[1] * grid[2])
    start = frame[:, None] // chunk * chunk
    own = frame[None] // chunk == frame[:, None] // chunk
    mask = own | (frame[None] < start) & ((frame[None] < sink) | (frame[None] >= start - window))
    original = transformer_wan.dispatch_attention_fn

    def masked(query, key, value, attn_mask=None, **options):
        if query.shape[1] == key.shape[1] == len(frame):
            attn_mask = mask
        return original(query, key, value, attn_mask=attn_mask, **options)

    transformer_wan.dispatch_attention_fn = masked
    try:
        yield
    finally:
        transformer_wan.dispatch_attention_fn = original


def schedule(section):
    """The sigmas of a run, shift applied and the final 0 appended."""
    shift = section["shift"]
    return [shift * s / (1 + (shift - 1) * s) for s in section["sigmas"]] + [0.0]


def sample(manifest, models, noise, text, fresh=None, free=None):
    """The whole denoising loop. `fresh(i)` gives the noise for re-noising before step i (i >= 1), `free` is the text
    that guidance leads away from."""
    sampler = manifest["sampler"]
    sigmas = schedule(sampler)
    told = sampler.get("timesteps") or [sampler["timestep_scale"] * sigma for sigma in sigmas]
    latents = noise
    for index, (sigma, following) in enumerate(zip(sigmas, sigmas[1:])):
        timesteps = torch.full((latents.shape[1],), told[index])
        velocity = denoise(manifest, models, latents, timesteps, text)
        if free is not None:
            without = denoise(manifest, models, latents, timesteps, free)
            velocity = without + sampler["guidance"] * (velocity - without)
        if sampler["step"] == "euler":
            latents = latents + velocity * (following - sigma)
        else:
            clean = latents - velocity * sigma
            latents = (1 - following) * clean + following * fresh(index + 1) if following else clean
    return latents


def decode(models, latents):
    """Latents [C, F, H, W] -> frames [N, 3, height, width] in 0..1."""
    return models["autoencoder"].decode(latents[None])[0].clamp(0, 1)


def encode(models, frames):
    """Frames [N, 3, height, width] in 0..1 -> latents [C, F, H, W]."""
    return models["autoencoder"].encode(frames[None])[0]
