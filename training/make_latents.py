"""Stage 3: render scenes, encode them and keep the latents.

    python -m training.make_latents [--preset cpu] [--minutes 12]

Writes latents-NNNN.npz shards (f16 latents [N, C, F, H, W] and the scenes as
JSON) into the work folder; captions are drawn from the scenes when training.
Stops at the preset's number of clips or when the time is over, and then writes
latents.json; run again to go on.
With --ahead only pictures are rendered (clips-NNNN.npy, removed once encoded):
that may be done while the autoencoder still trains.
"""

import json
import random
import time

import numpy as np
import torch

from . import data, presets, worlds
from .autoencoder import Autoencoder
from .progress import note


def load_autoencoder(work, device):
    model = Autoencoder(presets.AUTOENCODER)
    model.load_state_dict(torch.load(work / "autoencoder.pt", map_location="cpu"))
    model.to(device=device, memory_format=torch.channels_last)
    model.channels_last = True
    return model.eval().requires_grad_(False)


def shard_path(work, index):
    return work / f"latents-{index:04d}.npz"


def load_shards(work, first=0):
    """(latents f16, scenes, cells with objects, attributes) of the shards from `first` on; the number of the next."""
    shards = []
    while shard_path(work, first).exists():
        shard = np.load(shard_path(work, first))
        described, latents = json.loads(str(shard["scenes"])), torch.from_numpy(shard["latents"])
        if "near" in shard:
            near, attributes = torch.from_numpy(shard["near"]), torch.from_numpy(shard["attributes"])
        else:  # made before shards had them
            near, attributes = data.object_cells(described, latents.shape[1:]), data.attribute_indices(described)
        shards.append((latents, described, near, attributes))
        first += 1
    return shards, first


def render_shard(work, options, index, eager):
    """Scenes of a shard and its clips as bytes [N, T, 3, H, W], from clips-NNNN.npy if rendered ahead.

    The model's sizes take turns from shard to shard.
    """
    sizes = presets.VIDEO["sizes"]
    rng = random.Random(f"{options['seed']}-latents-{index}")
    batch = [worlds.random_scene(rng) for _ in range(options["shard"])]
    path = clips_path(work, index)
    if path.exists():
        return batch, torch.from_numpy(np.load(path))
    clips = []
    for i in range(0, len(batch), options["batch"]):
        rendered = worlds.clips(batch[i:i + options["batch"]], options["device"], eager, sizes[index % len(sizes)])
        clips.append((rendered * 255).round().byte().cpu())
    return batch, torch.cat(clips)


def clips_path(work, index):
    return work / f"clips-{index:04d}.npy"


def write(path, save):
    """Write through a temporary file, so that a reader never sees half a shard."""
    temporary = path.with_name("part-" + path.name)
    save(temporary)
    temporary.replace(path)


def main():
    parser = presets.arguments("latents", __doc__)
    parser.add_argument("--ahead", action="store_true", help="only render")
    args = parser.parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    device = options["device"]
    model = None if args.ahead else load_autoencoder(work, device)
    deadline = time.time() + 60 * options["minutes"]
    note(work, f"latents: rendering {'ahead' if args.ahead else 'and encoding'} starts")
    count = 0
    for index in range(-(-options["clips"] // options["shard"])):
        path = clips_path(work, index) if args.ahead else shard_path(work, index)
        if not path.exists():
            batch, clips = render_shard(work, options, index, args.eager)
            if args.ahead:
                write(path, lambda to: np.save(to, clips.numpy()))
            else:
                with torch.no_grad():
                    latents = torch.cat([model.encode(part.to(device).float() / 255).half().cpu()
                                         for part in clips.split(options["batch"])])
                near = data.object_cells(batch, latents.shape[1:])
                write(path, lambda to: np.savez(
                    to, latents=latents.numpy(), scenes=np.array(json.dumps(batch)), near=near.numpy(),
                    attributes=data.attribute_indices(batch).numpy()))
                clips_path(work, index).unlink(missing_ok=True)
        count += options["shard"]
        if index % 4 == 0:
            print(f"{count} clips", flush=True)
        # every size has its turn before time counts
        if time.time() > deadline and index + 1 >= len(presets.VIDEO["sizes"]):
            break
    if not args.ahead:
        (work / "latents.json").write_text(json.dumps({"clips": count}))
    note(work, f"latents: {count} clips")


if __name__ == "__main__":
    main()
