"""Weights in parts small enough to travel: f16 tensors of several checkpoints, cut into pieces.

    python -m training.parts split PARTS autoencoder teacher student     # from the work folder
    python -m training.parts join PARTS                                  # into the work folder

Optimiser states stay behind; a stage without its state trains on from the weights.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load, save

from . import lora

PART_BYTES = 15 * 2 ** 20


def split(folder, work, names):
    """Writes folder/part-NN.bin and parts.json, all at once; checkpoints that don't exist are left out."""
    tensors = {}
    for name in names:
        if (work / f"{name}.pt").exists():
            state = torch.load(work / f"{name}.pt", map_location="cpu")
            # the format has neither two names of one tensor, as tied tables are, nor a channels-last order
            tensors.update({f"{name}/{key}": value.half().contiguous().clone() for key, value in state.items()})
        for path in sorted(work.glob(f"{name}-*x*.safetensors")):  # low-rank changes (`lora.py`)
            tensors.update({f"{path.name}/{key}": value for key, value in load(path.read_bytes()).items()})
    blob = save(tensors)
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    pieces = [blob[i:i + PART_BYTES] for i in range(0, len(blob), PART_BYTES)]
    for number, piece in enumerate(pieces):
        (fresh / f"part-{number:02d}.bin").write_bytes(piece)
    texts = sorted([*work.glob("*.json"), *work.glob("*-curve.txt")])
    small = {path.name: path.read_text() for path in texts if path.stat().st_size < 2 ** 20}
    small.pop("latents.json", None)  # latents don't travel
    facts = {"parts": len(pieces), "sha256": hashlib.sha256(blob).hexdigest(), "files": small}
    (fresh / "parts.json").write_text(json.dumps(facts))
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return len(blob)


def join(folder, work):
    """Puts the checkpoints and the small files back where no newer ones are."""
    facts = json.loads((folder / "parts.json").read_text())
    data = b"".join((folder / f"part-{number:02d}.bin").read_bytes() for number in range(facts["parts"]))
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise SystemExit(f"{folder}: the parts don't fit together, fetch them again")
    states = {}
    for key, value in load(data).items():
        name, _, tensor = key.partition("/")
        states.setdefault(name, {})[tensor] = value.float()
    for name, state in states.items():
        if name.endswith(".safetensors"):
            if not (work / name).exists():
                lora.write(work / name, state)
        elif not (work / f"{name}.pt").exists():
            torch.save(state, work / f"{name}.pt")
    for name, text in facts["files"].items():
        if not (work / name).exists():
            (work / name).write_text(text)
    return sorted(states)


def main():
    from . import presets
    action, folder, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    work = presets.work_dir()
    if action == "split":
        print(f"{split(folder, work, names) / 2 ** 20:.1f} MiB in {folder}")
    else:
        print(f"put back {', '.join(join(folder, work))}")


if __name__ == "__main__":
    main()
