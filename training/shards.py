"""Reads a packed model (manifest and shards) as f32 tensors, apart from the engine's own reader.

    python -m training.shards FOLDER    # puts a packed model back into the work folder, to train on from it

Writes autoencoder.pt, teacher.pt (or student.pt and student.json, `--as student`), vocabulary.json and tokenizer.json.
Quantized weights come back with their rounding; training goes on from them all the same, which saves the first hour on
a machine that has no checkpoint. Files that are there are kept.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from . import lora


def read_shards(folder, manifest):
    """The shards as bytes, each held to its size and SHA-256."""
    shards = []
    for shard in manifest["shards"]:
        data = (folder / shard["path"]).read_bytes()
        if len(data) != shard["bytes"] or hashlib.sha256(data).hexdigest() != shard["sha256"]:
            raise SystemExit(f"{shard['path']}: not the bytes that the manifest names")
        shards.append(data)
    return shards


def read_tensor(name, entry, shards):
    """One tensor as f32, dequantized."""
    data = b"".join(shards[p["shard"]][p["offset"] : p["offset"] + p["bytes"]] for p in entry["parts"])
    shape, count = entry["shape"], int(np.prod(entry["shape"]))
    kind = entry["dtype"]
    if kind in ("f32", "f16"):
        values = np.frombuffer(data, "<f4" if kind == "f32" else "<f2")
    else:
        payload = count if kind == "q8" else count // 2
        if kind == "q8":
            codes = np.frombuffer(data, np.int8, payload).astype(np.float32)
        else:
            packed = np.frombuffer(data, np.uint8, payload)
            codes = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1).astype(np.float32) - 8
        scales = np.frombuffer(data, "<f2", offset=payload).astype(np.float32)
        values = codes.reshape(len(scales), entry["group"]) * scales[:, None]
    if values.size != count:
        raise SystemExit(f"{name}: {values.size} values where the shape says {count}")
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def load(folder):
    """The manifest of a packed model and its tensors by name."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shards = read_shards(folder, manifest)
    return manifest, {name: read_tensor(name, entry, shards) for name, entry in manifest["tensors"].items()}


def parts(tensors):
    """State dictionaries of the autoencoder and of the text encoder with the denoiser, and the low-rank changes by size
    (`lora.py`)."""
    tensors, changes = lora.taken_apart(tensors)
    autoencoder = {name.removeprefix("autoencoder."): value for name, value in tensors.items()
                   if name.startswith("autoencoder.")}
    both = {name: value for name, value in tensors.items() if not name.startswith("autoencoder.")}
    # transformers keeps a second name for the tied table
    both["text_encoder.encoder.embed_tokens.weight"] = both["text_encoder.shared.weight"]
    return autoencoder, both, changes


def main():
    from . import presets
    from .progress import note
    parser = presets.arguments("restore", __doc__)
    parser.add_argument("folder", type=Path, help="folder with manifest.json and its shards")
    parser.add_argument("--as", dest="role", choices=("teacher", "student"), default="teacher")
    args = parser.parse_args()
    work = presets.work_dir(args.work)
    manifest, tensors = load(args.folder)
    autoencoder, both, changes = parts(tensors)
    for size, change in changes.items():
        path = work / f"{args.role}-{size}.safetensors"
        if not path.exists():
            lora.write(path, change)
    for part, state in (("autoencoder", autoencoder), (args.role, both)):
        if not (work / f"{part}.pt").exists():
            torch.save(state, work / f"{part}.pt")
    if args.role == "student" and not (work / "student.json").exists():
        sampler = manifest["sampler"]
        facts = {**manifest["training"].get("student", {}), "sigmas": sampler["sigmas"],
                 "shift": manifest["training"].get("sigma_shift")}
        (work / "student.json").write_text(json.dumps(facts))
    if not (work / "vocabulary.json").exists():
        (work / "vocabulary.json").write_text(json.dumps(manifest["vocabulary"]))
    if not (work / "tokenizer.json").exists():
        shutil.copy(args.folder / manifest["text_encoder"]["tokenizer"]["path"], work / "tokenizer.json")
    note(work, f"restored {manifest['name']} from its shards")


if __name__ == "__main__":
    main()
