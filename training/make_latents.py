"""Stage 3: render scenes, encode them and keep the latents.

    python -m training.make_latents [--preset cpu] [--minutes 12]

Writes latents-NNNN.npz shards (f16 latents [N, C, F, H, W] and the scenes as
JSON) into the work folder; captions are drawn from the scenes when training.
Stops at the preset's number of clips or when the time is over; run again to go on.
"""

import json
import random
import time

import numpy as np
import torch

from . import presets, scenes, world
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
    """Latents (f16 tensor) and scenes of the shards from `first` on that exist, and the number of the next."""
    latents, described = [], []
    while shard_path(work, first).exists():
        shard = np.load(shard_path(work, first))
        latents.append(torch.from_numpy(shard["latents"]))
        described += json.loads(str(shard["scenes"]))
        first += 1
    return (torch.cat(latents) if latents else None), described, first


def main():
    args = presets.arguments("latents", __doc__).parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    device, video = options["device"], presets.VIDEO
    model = load_autoencoder(work, device)
    deadline = time.time() + 60 * options["minutes"]
    shards = -(-options["clips"] // options["shard"])
    note(work, "latents: rendering and encoding starts")
    count = 0
    for index in range(shards):
        if shard_path(work, index).exists():
            count += options["shard"]
            continue
        rng = random.Random(f"{options['seed']}-latents-{index}")
        batch = [scenes.random_scene(rng) for _ in range(options["shard"])]
        latents = []
        for i in range(0, len(batch), options["batch"]):
            clips = world.render(batch[i:i + options["batch"]], video["width"], video["height"], video["frames"],
                                 device, args.eager)
            with torch.no_grad():
                latents.append(model.encode(clips).half().cpu())
        path = shard_path(work, index)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, latents=torch.cat(latents).numpy(), scenes=np.array(json.dumps(batch)))
        temporary.replace(path)
        count += len(batch)
        if index % 4 == 0:
            print(f"{count} clips", flush=True)
        if time.time() > deadline:
            break
    note(work, f"latents: {count} clips")


if __name__ == "__main__":
    main()
