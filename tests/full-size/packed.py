"""A packed model tensor by tensor, and a smaller model made of some of its tensors without a byte being copied."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))
from training import shards  # noqa: E402

TABLE = "text_encoder.shared.weight"


def cut(parts, start, count):
    """The parts that hold the `count` bytes of a tensor from byte `start` on."""
    found, at = [], 0
    for part in parts:
        first, last = max(start, at), min(start + count, at + part["bytes"])
        if first < last:
            found.append({"shard": part["shard"], "offset": part["offset"] + first - at, "bytes": last - first})
        at += part["bytes"]
    return found


def cut_rows(entry, first, count):
    """Some rows of a q8 matrix as a tensor of its own: their values, then their scales."""
    rows, width = entry["shape"]
    assert entry["dtype"] == "q8", entry["dtype"]
    scales = 2 * width // entry["group"]
    parts = cut(entry["parts"], first * width, count * width)
    return {**entry, "shape": [count, width],
            "parts": parts + cut(entry["parts"], rows * width + first * scales, count * scales)}


class Packed:
    """Reads with `training.shards`, which is not the engine's reader, through memory maps."""

    def __init__(self, folder):
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.shards = [np.memmap(folder / shard["path"], np.uint8, "r") for shard in self.manifest["shards"]]

    def tensor(self, name):
        """f32, dequantized."""
        return shards.read_tensor(name, self.manifest["tensors"][name], self.shards)

    def token_rows(self, ids):
        """Rows of the token table, f32 [n, d]."""
        entry = self.manifest["tensors"][TABLE]
        rows = [shards.read_tensor(TABLE, cut_rows(entry, int(row), 1), self.shards) for row in ids]
        return np.concatenate([row.numpy() for row in rows])


def write_denoiser_view(folder, out, layers=1, words=1024):
    """A model with all of the denoiser and the autoencoder and the first layers and words of the text encoder, whose
    clips have the smallest possible size. Its shards are hard links; those without any of its tensors are left out."""
    manifest = json.loads((folder / "manifest.json").read_text())
    text = manifest["text_encoder"]
    left_out = tuple(f"text_encoder.encoder.block.{layer}." for layer in range(layers, text["num_layers"]))
    tensors = {name: entry for name, entry in manifest["tensors"].items() if not name.startswith(left_out)}
    tensors[TABLE] = cut_rows(tensors[TABLE], 0, words)
    used = sorted({part["shard"] for entry in tensors.values() for part in entry["parts"]})
    numbers = {old: new for new, old in enumerate(used)}
    for entry in tensors.values():
        entry["parts"] = [{**part, "shard": numbers[part["shard"]]} for part in entry["parts"]]
    text.update(num_layers=layers, vocab_size=words)
    manifest.update(name="full-size-denoiser", title="Random weights of full size", tensors=tensors,
                    shards=[manifest["shards"][old] for old in used],
                    video={"fps": 16, "sizes": [{"width": 48, "height": 32, "frames": [1]}]})
    shutil.rmtree(out, ignore_errors=True)  # of an earlier run
    out.mkdir(parents=True)
    for shard in manifest["shards"]:
        os.link(folder / shard["path"], out / shard["path"])
    shutil.copy(folder / text["tokenizer"]["path"], out / text["tokenizer"]["path"])
    (out / "manifest.json").write_text(json.dumps(manifest))
