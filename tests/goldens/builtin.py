"""Runs a packed model from its shards with the PyTorch references, apart from the engine's own reader.

    python tests/goldens/builtin.py model-shards --prompt "a red ball bounces on green grass" --seed 7
    python tests/goldens/builtin.py model-shards --against FRAMES    # PSNR of `kinora generate --out FRAMES` to it

Writes builtin.safetensors: `input_ids` [n] i32, `embeddings` [n, d], `noise` and `latents` [C, F, H, W], and
`frames` [k, 3, H, W] u8, every fourth frame from the first. Its metadata names the request and the manifest's SHA-256.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import models  # first: puts the project on the path
from training import lora, noise, shards

KEEP_EVERY = 4


def load(folder, size=None):
    manifest, tensors = shards.load(folder)
    size = chosen(manifest, size)
    tensors, changes = lora.taken_apart(tensors)
    change = changes.get(f"{size['width']}x{size['height']}", {})
    return manifest, models.build(manifest, lora.merged(tensors, change))


def chosen(manifest, size):
    """An offered size, written 176x96; the default if absent."""
    offered = {f"{each['width']}x{each['height']}": each for each in reversed(manifest["video"]["sizes"])}
    size = size or list(offered)[-1]
    if size not in offered:
        raise SystemExit(f"--size {size}: the model offers {', '.join(offered)}")
    return offered[size]


def latent_shape(manifest, size):
    """Of a size in whole tokens; `padded.py` is about others."""
    autoencoder = manifest["autoencoder"]
    down = autoencoder["patch_size"] * 2 ** len(autoencoder["encoder_time_downscale"])
    per_latent = 2 ** sum(autoencoder["decoder_time_upscale"])
    frames = (size["frames"][0] + per_latent - 1) // per_latent
    return autoencoder["latent_channels"], frames, size["height"] // down, size["width"] // down


@torch.no_grad()
def run(folder, prompt, seed, size=None):
    manifest, built = load(folder, size)
    words = Tokenizer.from_file(str(folder / manifest["text_encoder"]["tokenizer"]["path"]))
    input_ids = torch.tensor(words.encode(prompt).ids, dtype=torch.int32)
    text = models.encode_text(built, input_ids)
    shape = latent_shape(manifest, chosen(manifest, size))

    def draw(stream):
        return torch.from_numpy(noise.normal(seed, stream, shape))

    start = draw(0)
    latents = models.sample(manifest, built, start, text, fresh=draw)
    frames = models.decode(built, latents)
    pixels = (frames * 255).round().to(torch.uint8)
    return {"input_ids": input_ids, "embeddings": text, "noise": start, "latents": latents.contiguous(),
            "frames": pixels[::KEEP_EVERY].contiguous()}, pixels


def psnr(first, second):
    """Decibels between two u8 videos of one shape; infinite where they are equal."""
    error = (first.astype(np.float64) - second.astype(np.float64)) ** 2
    return float("inf") if not error.any() else float(10 * np.log10(255**2 / error.mean()))


def read_frames(path):
    """u8 [n, 3, H, W] of a folder that `kinora generate` wrote, or the kept frames of a file that this script wrote."""
    if path.is_dir():
        images = [np.asarray(Image.open(name).convert("RGB")) for name in sorted(path.glob("frame-*.png"))]
        return np.stack(images).transpose(0, 3, 1, 2)
    return load_file(path)["frames"].numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with manifest.json and its shards")
    parser.add_argument("--prompt")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--size", metavar="WxH", help="one that the model offers, its first if absent")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("builtin.safetensors"))
    parser.add_argument("--frames", type=Path, help="also write every frame as PNG into this folder")
    parser.add_argument("--against", type=Path, help="PNG folder or .safetensors to compare with; writes no golden")
    arguments = parser.parse_args()

    prompt, seed = arguments.prompt, arguments.seed
    if arguments.against and prompt is None and arguments.out.exists():
        with safe_open(arguments.out, "pt") as golden:
            request = json.loads(golden.metadata()["request"])
        prompt, seed = request["prompt"], request["seed"] if seed is None else seed
    if prompt is None:
        parser.error("--prompt is missing")

    seed = 0 if seed is None else seed
    tensors, pixels = run(arguments.model, prompt, seed, arguments.size)
    latents = tensors["latents"]
    print(f"{len(tensors['input_ids'])} tokens; latents mean {latents.mean():+.3f} std {latents.std():.3f};"
          f" {len(pixels)} frames of {pixels.shape[3]}x{pixels.shape[2]}")
    if arguments.frames:
        arguments.frames.mkdir(parents=True, exist_ok=True)
        for number, frame in enumerate(pixels.permute(0, 2, 3, 1).numpy(), start=1):
            Image.fromarray(frame).save(arguments.frames / f"frame-{number:05}.png")
    if arguments.against:
        other = read_frames(arguments.against)
        own = pixels.numpy() if len(other) == len(pixels) else tensors["frames"].numpy()
        print(f"PSNR {psnr(own, other):.2f} dB over {len(own)} frames")
        return
    manifest_hash = hashlib.sha256((arguments.model / "manifest.json").read_bytes()).hexdigest()
    height, width = pixels.shape[2:]
    request = {"prompt": prompt, "seed": seed, "width": width, "height": height, "manifest_sha256": manifest_hash}
    save_file(tensors, arguments.out, metadata={"request": json.dumps(request)})
    print("wrote", arguments.out)


if __name__ == "__main__":
    main()
