"""Writes a checkpoint of the public model's exact shapes with seeded random values.

Names and shapes are those of diffusers' `WanTransformer3DModel`, transformers' `UMT5EncoderModel` and taehv, built with
the published configuration; nothing of Kinora has a say in them. One piece of a tensor is in memory at a time.
"""

import json
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "goldens")]
import models  # noqa: E402  puts the project on the path
from training import noise  # noqa: E402

FAMILY = "wan2.1-t2v-1.3b"
# Published files: 5.68 GB in f32, 11.4 GB in bf16 and 22.64 MB in f16.
PARAMETERS = {"transformer": 1_418_996_800, "text_encoder": 5_680_910_336, "autoencoder": 11_315_539}
# A prime, so that the rows of a matrix do not repeat when a tensor takes more values than there are.
PERIOD = 4_194_301


def published_config():
    """The configuration of the family, which the registry copies from the authors' files."""
    registry = json.loads((ROOT / "crate/src/pack/registry/models.json").read_text())
    return next(family for family in registry["families"] if family["id"] == FAMILY)


def published_shapes(part, section):
    """Names (those of the published file) and shapes of one part, from the reference implementation."""
    with torch.device("meta"):
        state = models.state(part, models.BUILDERS[part](section))
    shapes = {name.removeprefix(part + "."): tuple(tensor.shape) for name, tensor in state.items()}
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    if count != PARAMETERS[part]:
        raise SystemExit(f"{part} has {count} parameters and is published with {PARAMETERS[part]}")
    return shapes


class Values:
    """Random values by tensor name: one block of normal deviates, read from a place and at a scale of its own for
    every tensor, and once more scaled row by row, as trained matrices are. Drawing 7.1 thousand million deviates one
    by one would take longer than everything else."""

    def __init__(self, seed):
        block = noise.normal(seed, 0, (PERIOD,))
        self.block = np.concatenate([block, block])

    def run(self, name, first, count):
        """`count` (at most PERIOD) deviates of a tensor from its value number `first` on."""
        start = (zlib.crc32(name.encode()) + first) % PERIOD
        return self.block[start : start + count]

    def pieces(self, name, shape):
        """The tensor in f32, a few rows at a time."""
        centre, spread = distribution(name, shape)
        matrix = len(shape) > 1
        rows, width = (shape[0], int(np.prod(shape[1:]))) if matrix else (1, shape[0])
        step = max(1, PERIOD // width)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            piece = self.run(name, first * width, count * width).reshape(count, width) * np.float32(spread)
            if matrix:
                piece *= np.exp2(0.5 * self.run(name + " by row", first, count))[:, None]
            yield piece + np.float32(centre)


def distribution(name, shape):
    """Centre and spread of a tensor's values: no norm is one and no bias zero, since those would hide a missing term,
    and matrices keep the size of what they are multiplied with."""
    if name == "decoder.22.weight":
        return 0.0, 0.002  # the frames stay off the clamp
    if name == "decoder.22.bias":
        return 0.5, 0.1
    if "norm" in name and name.endswith("weight"):
        return 1.0, 0.2
    if name.endswith("bias"):
        return 0.0, 0.1
    if "relative_attention_bias" in name or name == "shared.weight":
        return 0.0, 1.0
    if "scale_shift_table" in name:
        return 0.0, 0.3
    fan_in = float(np.prod(shape[1:]))
    # UMT5's attention has no 1/sqrt(64): its queries and keys are small by training.
    gain = 64**-0.25 if name.endswith((".q.weight", ".k.weight")) else 1.0
    return 0.0, gain / fan_in**0.5


def write_safetensors(path, shapes, values):
    """All tensors in bf16, streamed."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for piece in values.pieces(name, shape):
                file.write(torch.from_numpy(piece).bfloat16().view(torch.int16).numpy().tobytes())


def write(folder, seed):
    """The four files that `kinora pack --family` takes, by option."""
    folder.mkdir(parents=True, exist_ok=True)
    config, values = published_config(), Values(seed)
    files = {}
    for part in models.BUILDERS:
        files[part] = folder / f"{part}.safetensors"
        write_safetensors(files[part], published_shapes(part, config[part]), values)
    # The published tokenizer cannot be made up; one with a few words says as much about the weights.
    files["tokenizer"] = folder / "tokenizer.json"
    shutil.copy(ROOT / "tests/goldens/tiny/tokenizer.json", files["tokenizer"])
    return files
