"""What PyTorch computes with the packed values: diffusers' denoiser and transformers' text encoder in f32, with the
weights of one block in memory at a time."""

import numpy as np
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

import checkpoint  # noqa: F401  puts the references on the path
import models

SEED = 20
WORDS = 12


def inputs(manifest, shape):
    """Tensors for the stages `encode-text`, `denoise` and `decode`; latents of `shape` [C, F, H, W]."""
    torch.manual_seed(SEED)
    text = manifest["text_encoder"]
    ids = torch.randint(3, text["vocab_size"], (WORDS,), dtype=torch.int32)
    ids[-1] = 1
    latents = torch.randn(shape)
    return {
        "encode-text": {"input_ids": ids},
        # A timestep of its own for every frame, the last one that of a given frame.
        "denoise": {"latents": latents, "timesteps": torch.linspace(757.0, 0.0, shape[1] + 1)[: shape[1]],
                    "text": 0.2 * torch.randn(WORDS, text["d_model"])},
        "decode": {"latents": latents[:, :1].contiguous()},
    }


def fill(packed, prefix, module, names):
    """Gives a module without values the packed ones."""
    state = {name: packed.tensor(prefix + name) for name in names}
    module.load_state_dict(state, strict=False, assign=True)


def stream(packed, prefix, blocks):
    """Blocks get their weights when they are called and let go of them afterwards."""
    for index, block in enumerate(blocks):
        def load(module, _, prefix=f"{prefix}.{index}."):
            fill(packed, prefix, module, module.state_dict())

        def drop(module, *_):
            module.to("meta")

        block.register_forward_pre_hook(load)
        block.register_forward_hook(drop)


def hollow(part, section):
    """A reference model without values."""
    with torch.device("meta"):
        return models.BUILDERS[part](section)


def encode_text(packed, tensors):
    """Embeddings [n, d]."""
    module = hollow("text_encoder", packed.manifest["text_encoder"])
    fill(packed, "text_encoder.", module, ["encoder.final_layer_norm.weight"])
    stream(packed, "text_encoder.encoder.block", module.encoder.block)
    rows = torch.from_numpy(packed.token_rows(tensors["input_ids"]))
    return {"embeddings": module(inputs_embeds=rows[None]).last_hidden_state[0]}


def denoise(packed, tensors):
    """Velocity [C, F, H, W]."""
    section = packed.manifest["transformer"]
    module = hollow("transformer", section)
    # The table of positions is computed, not stored.
    module.rope = WanRotaryPosEmbed(section["attention_head_dim"], section["patch_size"], section["rope_max_seq_len"])
    fill(packed, "transformer.", module, [name for name in module.state_dict() if not name.startswith("blocks.")])
    stream(packed, "transformer.blocks", module.blocks)
    return {"velocity": models.denoise(packed.manifest, {"transformer": module}, **tensors)}


def decode(packed, tensors):
    """Frames [N, 3, H, W]."""
    module = hollow("autoencoder", packed.manifest["autoencoder"])
    fill(packed, "autoencoder.", module, module.state_dict())
    return {"frames": models.decode({"autoencoder": module}, tensors["latents"])}


STAGES = {"encode-text": encode_text, "denoise": denoise, "decode": decode}


@torch.no_grad()
def run(stage, packed, tensors):
    return STAGES[stage](packed, tensors)


def differences(found, expected):
    """Largest difference as a share of the largest value, and the signal-to-noise ratio in decibels."""
    found, expected = (np.asarray(value, dtype=np.float64) for value in (found, expected))
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise SystemExit(f"the engine gave {found.shape} where PyTorch gives {expected.shape}, or no finite numbers")
    error = found - expected
    decibels = 10 * np.log10((expected**2).mean() / max((error**2).mean(), 1e-300))
    return float(np.abs(error).max() / np.abs(expected).max()), float(decibels)
