"""Times the denoiser of the public model on a graphics device, by Vulkan, with random weights of full size.

    python tests/full-size/gpu.py --kinora target/release/kinora [--keep DIR] [--repeat 5]

Writes the denoiser (1 418 996 800 parameters), packs it to q4 and runs one step at each size of SIZES. Prints a line of
JSON a size: seconds of a step once its kernels are compiled, and the share of the rate at which PyTorch multiplies
matrices in f32 on the same device. First a small step is held to the engine's CPU device. One layer and 1024 words of
the text encoder make the model complete; no step runs them.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checkpoint
import models
import reference
import torch
from safetensors.torch import load_file, save_file

SIZES = ((320, 192, 33), (416, 240, 33))  # width, height, frames
SMALL = (16, 2, 16, 12)  # latents [C, F, H, W] of the step that is held to the CPU


def write_export(folder, seed):
    """`model.json`, `tokenizer.json` and `weights.safetensors`, which `kinora pack --in` takes."""
    family = checkpoint.published_config()
    sampler = {"step": "renoise", "shift": 1.0, "timestep_scale": 1000.0, "sigmas": [1.0, 0.757, 0.522]}
    text = dict(family["text_encoder"], num_layers=1, vocab_size=1024, tokenizer={"path": "tokenizer.json"})
    sections = {"transformer": family["transformer"], "text_encoder": text, "autoencoder": family["autoencoder"]}
    shapes = {}
    for part, section in sections.items():
        with torch.device("meta"):
            state = models.state(part, models.BUILDERS[part](section))
        shapes.update({name: tuple(tensor.shape) for name, tensor in state.items()})
    folder.mkdir(parents=True)
    checkpoint.write_safetensors(folder / "weights.safetensors", shapes, Named(seed))
    shutil.copy(checkpoint.ROOT / "tests/goldens/tiny/tokenizer.json", folder / "tokenizer.json")
    sizes = [{"width": width, "height": height, "frames": [frames]} for width, height, frames in SIZES]
    (folder / "model.json").write_text(json.dumps({
        "interface": "kinora-wan-1", "name": "random", "title": "Random weights of full size", "description": "",
        "license": "none", "examples": [], "training": {}, "sampler": sampler, "video": {"fps": 16, "sizes": sizes},
        **sections}))


class Named(checkpoint.Values):
    """Values by the names that an export has: with the part in front."""

    def pieces(self, name, shape):
        return super().pieces(name.partition(".")[2], shape)


def run(kinora, *words):
    """Seconds of each repetition of a stage."""
    command = [kinora, "stage", "denoise", *map(str, words)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {done.stderr[-2000:]}")
    return [float(seconds) for seconds in re.findall(r"ran in ([\d.]+) s", done.stderr)]


def peak(dtype, size=8192, repeat=10):
    """FLOP/s of PyTorch's matrix product on random values."""
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeat):
        a @ b
    torch.cuda.synchronize()
    return 2 * size**3 * repeat / (time.perf_counter() - started)


def operations(config, tokens, words):
    """Multiplications and additions of a step: the matrices of every block, and attention."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    layer = tokens * (6 * width * width + 2 * width * config["ffn_dim"]) + 2 * words * width * width
    attention = 2 * tokens * (tokens + words) * width
    return 2 * config["num_layers"] * (layer + attention)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinora", required=True)
    parser.add_argument("--keep", type=Path, help="folder for the files, which stay there")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    if args.repeat < 2:
        parser.error("--repeat must be 2 or more: the first step compiles the kernels")
    work = args.keep or Path(tempfile.mkdtemp(prefix="kinora-gpu-"))
    try:
        measure(work, args)
    finally:
        if not args.keep:
            shutil.rmtree(work)


def measure(work, args):
    started = time.monotonic()
    if not (work / "export").exists():
        write_export(work / "export", args.seed)
    print(json.dumps({"step": "checkpoint", "seconds": round(time.monotonic() - started, 1)}), flush=True)
    started = time.monotonic()
    if not (work / "packed").exists():
        subprocess.run([args.kinora, "pack", "--in", work / "export", "--out", work / "packed", "--format", "q4"],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(json.dumps({"step": "pack", "seconds": round(time.monotonic() - started, 1)}), flush=True)

    manifest = json.loads((work / "packed" / "manifest.json").read_text())
    save_file(reference.inputs(manifest, SMALL)["denoise"], work / "small.safetensors")
    found = {}
    for device in ("gpu", "cpu"):
        run(args.kinora, "--model", work / "packed", "--in", work / "small.safetensors",
            "--out", work / "velocity.safetensors", "--device", device)
        found[device] = load_file(work / "velocity.safetensors")["velocity"]
    worst, decibels = reference.differences(found["gpu"], found["cpu"])
    print(json.dumps({"step": "gpu against cpu", "relative_max_error": float(f"{worst:.2e}"),
                      "decibels": round(decibels, 1)}), flush=True)
    peaks = {}
    if torch.cuda.is_available():
        peaks = {"f32": peak(torch.float32), "bf16": peak(torch.bfloat16)}
        print(json.dumps({"step": "peak", "device": torch.cuda.get_device_name(),
                          **{f"{name}_tflops": round(rate / 1e12, 1) for name, rate in peaks.items()}}), flush=True)
        torch.cuda.empty_cache()
    for width, height, frames in SIZES:
        shape = (16, (frames + 3) // 4, height // 8, width // 8)
        tokens = shape[1] * shape[2] * shape[3] // 4
        tensors = reference.inputs(manifest, shape)["denoise"]
        save_file(tensors, work / "sized.safetensors")
        seconds = run(args.kinora, "--model", work / "packed", "--in", work / "sized.safetensors",
                      "--out", work / "velocity.safetensors", "--device", "gpu", "--repeat", args.repeat)
        middle = statistics.median(seconds[1:])
        work_done = operations(manifest["transformer"], tokens, manifest["text_encoder"]["max_tokens"])
        facts = {"step": "denoise", "size": f"{width}x{height}x{frames}", "tokens": tokens, "first_seconds": seconds[0],
                 "seconds": middle, "tflops": round(work_done / middle / 1e12, 2)}
        if peaks:
            facts["share_of_f32_peak"] = round(work_done / middle / peaks["f32"], 3)
        print(json.dumps(facts), flush=True)
    if worst > 1e-3:
        sys.exit(1)


if __name__ == "__main__":
    main()
