"""Writes the committed goldens: a tiny seeded model and what the PyTorch references compute with it.

    python tests/goldens/make.py            # needs torch, diffusers, transformers, tokenizers, safetensors

Writes tiny/ (an export directory), tiny.safetensors, tokens.json and sampler.json next to this file.
"""

import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

import models  # first: puts the project on the path
from training import noise

HERE = Path(__file__).parent
WORDS = ("a red blue green white ball cube bird cat rolls bounces flies on over under the grass sea hill left right slow"
         " fast and night").split()
PROMPTS = (
    "a red ball bounces on green grass",
    "The  Blue bird flies over the sea",
    "a slow cat",
    "zebra rolls left",
    "n\u0061\u00efve \u7434 ball",
    "and " * 3 + "night",
)


def manifest():
    return {
        "interface": "kinora-wan-1",
        "name": "tiny",
        "title": "Random weights for the tests",
        "description": "Seeded random weights in the smallest useful shapes. It draws nothing; it only pins numbers.",
        "license": "CC0-1.0 (weights)",
        "text_encoder": {
            "kind": "umt5", "vocab_size": 0, "d_model": 64, "d_kv": 32, "num_heads": 2, "num_layers": 2, "d_ff": 96,
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
            "layer_norm_epsilon": 1e-6, "max_tokens": 16, "tokenizer": {"path": "tokenizer.json"},
        },
        "transformer": {
            "kind": "wan", "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 160,
            "in_channels": 8, "out_channels": 8, "text_dim": 64, "freq_dim": 64, "patch_size": [1, 2, 2],
            "eps": 1e-6, "cross_attn_norm": True, "rope_max_seq_len": 1024,
        },
        "autoencoder": {
            "kind": "taehv", "image_channels": 3, "latent_channels": 8, "patch_size": 2,
            "encoder_channels": [16, 8, 8, 8], "decoder_channels": [24, 16, 8, 8],
            "encoder_time_downscale": [True, True, False], "decoder_time_upscale": [False, True, True],
            "decoder_space_upscale": [True, True, True], "encoder_padding": "leading",
        },
        "sampler": {"sigmas": [1.0, 0.75, 0.5, 0.25], "shift": 3.0, "step": "euler", "timestep_scale": 1000.0},
        "video": {"fps": 12, "sizes": [{"width": 96, "height": 64, "frames": [9, 5]}]},
        "vocabulary": sorted(WORDS),
        "examples": list(PROMPTS[:1]),
        "requires": {"features": [], "max_buffer_size": 1 << 20, "max_storage_buffer_binding_size": 1 << 20,
                     "memory_bytes": 1 << 24},
        "training": {"steps": 0, "note": "untrained: seeded random weights"},
    }


def tokenizer():
    """Unigram with whole words, so that a wrong search over pieces shows, and letters to fall back on."""
    letters = "abcdefghilnorstuvwy"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.5)]
    pieces += [("\u2581" + word, -3.0 - 0.125 * index) for index, word in enumerate(WORDS)]
    pieces += [("es", -4.0), ("ing", -4.5), ("ball", -5.0), ("s", -3.5)]
    pieces += [(letter, -6.0 - 0.0625 * index) for index, letter in enumerate(letters) if letter != "s"]
    built = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=False))
    built.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Metaspace()
    built.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    built.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return built, len(pieces)


def randomize(module):
    """Random values everywhere: zeros and ones, the usual initial norms and biases, would hide a missing term."""
    for name, parameter in sorted(module.named_parameters()):
        if "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.2 * torch.randn_like(parameter)
        elif name.endswith("bias"):
            parameter.data = 0.2 * torch.randn_like(parameter)
        elif "relative_attention_bias" in name or "shared" in name:
            parameter.data = torch.randn_like(parameter)
        elif "scale_shift_table" in name:
            parameter.data = 0.5 * torch.randn_like(parameter)
        else:
            fan_in = parameter[0].numel()
            # T5 attention has no 1/sqrt(d): its queries are small by training.
            gain = 32**-0.25 if name.endswith((".q.weight", ".k.weight")) else 1.0
            parameter.data = gain * torch.randn_like(parameter) / fan_in**0.5
        # Exact in f16, so that a model packed as f16 must give the very same numbers.
        parameter.data = parameter.data.half().float()


def scale_output(convolution, run, spread, offset):
    """Rescales a last convolution until the output has the given spread, and stays off the clamp."""
    convolution.bias.data.zero_()
    convolution.weight.data *= spread / run().std()
    convolution.weight.data = convolution.weight.data.half().float()
    convolution.bias.data = (offset + 0.1 * torch.randn_like(convolution.bias)).half().float()


def smooth(*shape):
    """A random video whose neighbouring frames and pixels are alike, [T, 3, H, W] in 0..1."""
    coarse = torch.rand(1, 3, shape[0] // 3, shape[1] // 8, shape[2] // 8)
    return torch.nn.functional.interpolate(coarse, shape, mode="trilinear")[0].transpose(0, 1).contiguous()


def goldens(config, built, encode_prompt):
    pairs = {}

    def put(stage, inputs, outputs):
        for side, values in (("in", inputs), ("out", outputs)):
            pairs.update({f"{stage}.{side}.{name}": value.clone().contiguous() for name, value in values.items()})

    input_ids = torch.tensor(encode_prompt(PROMPTS[0]), dtype=torch.int32)
    text = models.encode_text(built, input_ids)
    put("encode-text", {"input_ids": input_ids}, {"embeddings": text})

    latents = torch.randn(8, 3, 4, 6)
    timesteps = torch.tensor([0.0, 312.5, 875.0])
    transformer = built["transformer"]
    seen = {}
    hook = transformer.blocks[0].register_forward_hook(lambda _, inputs, output: seen.update(i=inputs, o=output))
    velocity = models.denoise(config, built, latents, timesteps, text)
    hook.remove()
    put("denoise", {"latents": latents, "timesteps": timesteps, "text": text}, {"velocity": velocity})

    hidden, context, projected = (value[0] for value in seen["i"][:3])
    grid = [3, 2, 3]
    per_frame = projected.unflatten(0, (grid[0], -1))
    assert (per_frame == per_frame[:, :1]).all()
    put("block0",
        {"hidden": hidden, "timestep_proj": per_frame[:, 0], "text": context,
         "grid": torch.tensor(grid, dtype=torch.int32)},
        {"hidden": seen["o"][0]})

    # Another prompt, so that the number of real tokens differs from the other stages.
    text = models.encode_text(built, torch.tensor(encode_prompt(PROMPTS[2]), dtype=torch.int32))
    start = torch.from_numpy(noise.normal(42, 0, latents.shape))
    put("sample", {"noise": start, "text": text}, {"latents": models.sample(config, built, start, text)})
    free = models.encode_text(built, torch.tensor(encode_prompt(""), dtype=torch.int32))
    guided = {**config, "sampler": {**config["sampler"], "guidance": 3.0}}
    put("sample-guided", {"noise": start, "text": text},
        {"latents": models.sample(guided, built, start, text, free=free)})

    # The last chunk of a clip whose earlier chunks are finished, in one masked pass over all of it.
    clip = torch.from_numpy(noise.normal(43, 0, (8, 4, 4, 6)))
    for case, chunk, sink, window in (("causal", 2, 0, 8), ("causal-window", 1, 1, 1)):
        timesteps = torch.where(torch.arange(4) < 4 - chunk, 0.0, 640.0)
        with models.causal_attention((4, 2, 3), chunk, sink, window):
            velocity = models.denoise(config, built, clip, timesteps, text)
        put(case, {"latents": clip, "text": text}, {"velocity": velocity[:, 4 - chunk:]})

    small = torch.randn(8, 3, 2, 3)
    put("decode", {"latents": small}, {"frames": models.decode(built, small)})
    video = smooth(9, 32, 48)
    put("encode", {"frames": video}, {"latents": models.encode(built, video)})
    # TAEHV's own padding, with a number of frames that needs some.
    trailing = models.autoencoder({**config["autoencoder"], "encoder_padding": "trailing"})
    trailing.load_state_dict(built["autoencoder"].state_dict())
    put("encode-trailing", {"frames": video[:6]}, {"latents": models.encode({"autoencoder": trailing}, video[:6])})
    return pairs


def step_tables():
    """Four-step schedules, held to diffusers' scheduler, and the flow-matching identities on plain numbers."""
    tables = []
    for shift in (1.0, 3.0, 5.0, 8.0):
        sampler = {"sigmas": [1.0, 0.75, 0.5, 0.25], "shift": shift}
        sigmas = models.schedule(sampler)
        reference = FlowMatchEulerDiscreteScheduler(shift=shift)
        reference.set_timesteps(sigmas=sampler["sigmas"])
        torch.testing.assert_close(torch.tensor(sigmas), reference.sigmas, rtol=0, atol=1e-6)
        tables.append({
            **sampler,
            "shifted": sigmas,
            "timesteps": [1000.0 * sigma for sigma in sigmas[:-1]],
            "deltas": [following - sigma for sigma, following in zip(sigmas, sigmas[1:])],
        })
    cases = []
    for clean, epsilon, sigma, following, fresh in (
        (0.5, -1.25, 1.0, 0.75, 0.3), (-2.0, 0.625, 0.75, 0.5, -0.7), (1.5, 2.0, 0.25, 0.0, 1.1)
    ):
        noisy = (1 - sigma) * clean + sigma * epsilon
        velocity = epsilon - clean
        assert abs(noisy - sigma * velocity - clean) < 1e-12
        euler = noisy + velocity * (following - sigma)
        assert abs(euler - ((1 - following) * clean + following * epsilon)) < 1e-12
        cases.append({
            "sigma": sigma, "next": following, "x0": clean, "eps": epsilon, "x": noisy, "v": velocity,
            "euler": euler, "fresh": fresh, "renoise": (1 - following) * clean + following * fresh,
        })
    return {"schedules": tables, "steps": cases}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@torch.no_grad()
def main():
    torch.manual_seed(20)
    torch.set_num_threads(1)
    config = manifest()
    words, vocab_size = tokenizer()
    config["text_encoder"]["vocab_size"] = vocab_size

    built = {part: builder(config[part]) for part, builder in models.BUILDERS.items()}
    for module in built.values():
        randomize(module)
    autoencoder = built["autoencoder"]
    video = smooth(9, 32, 48)
    latents = torch.randn(8, 3, 2, 3)
    scale_output(autoencoder.encoder[-1], lambda: models.encode(built, video), 1.0, 0.0)
    scale_output(autoencoder.decoder[-1], lambda: autoencoder.decode(latents[None]), 0.2, 0.5)

    export = HERE / "tiny"
    export.mkdir(exist_ok=True)
    words.save(str(export / "tokenizer.json"), pretty=False)
    write_json(export / "model.json", config)
    weights = {name: value for part, module in built.items() for name, value in models.state(part, module).items()}
    save_file(weights, export / "weights.safetensors")

    # Read back what was written, so that the goldens belong to the files and not to this process.
    built = models.build(config, load_file(export / "weights.safetensors"))
    words = Tokenizer.from_file(str(export / "tokenizer.json"))
    pairs = goldens(config, built, lambda prompt: words.encode(prompt).ids)
    # One entry only: safetensors writes several in an order of its own, and the file would differ from run to run.
    about = f"prompts {PROMPTS[0]!r}, sample {PROMPTS[2]!r}; noise of seed 42, stream 0"
    save_file(pairs, HERE / "tiny.safetensors", metadata={"about": about})
    cases = [{"prompt": p, "input_ids": words.encode(p).ids, "pieces": words.encode(p).tokens} for p in PROMPTS]
    write_json(HERE / "tokens.json", cases)
    write_json(HERE / "sampler.json", step_tables())

    for name, value in pairs.items():
        value = value.float()
        print(f"{name:32} {str(list(value.shape)):16} mean {value.mean():+.3f} std {value.std():.3f} max {value.abs().max():.2f}")
    for path in [*sorted(export.iterdir()), HERE / "tiny.safetensors"]:
        print(f"{path.relative_to(HERE)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
