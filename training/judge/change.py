"""How much the area of an object changes from one frame to the next: what the eye takes for unsteady.

    python -m training.judge.change model-shards [--clips 16]

For rolling, bouncing and falling objects before a camera that stands still, whose true areas hardly change: the mean
change as a share of the area, the median over the clips, for renders, for renders that went through the model's
autoencoder, which tells its share of the blame, and for the packed model. First and last frames are left out, where
objects enter and leave.
"""

import argparse
import random
import statistics
from pathlib import Path

from .. import tokenizer as tokenizers, worlds
from . import sources
from .tracking import track


def change(clip, rgb):
    area = track(clip, rgb)[1][1:-1]
    return ((area[1:] - area[:-1]).abs() / area[:-1].clamp_min(1)).mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder with manifest.json and its shards")
    parser.add_argument("--clips", type=int, default=16, help="of each kind of motion")
    args = parser.parse_args()
    tokenizer = tokenizers.load(args.model)
    packed = sources.packed(args.model, tokenizer, "cpu")
    judged = [sources.Renders(), sources.Reconstructions(packed.autoencoder), packed]
    for kind in worlds.SHOWN:
        described, prompts = zip(*worlds.measured_scenes(kind, args.clips, random.Random(f"change-{kind}")))
        for source in judged:
            clips = source.clips(prompts, described, range(7000, 7000 + args.clips))
            changes = [change(clip, worlds.tints(scene)[0]) for clip, scene in zip(clips, described)]
            motions = " and ".join(worlds.SHOWN[kind]["motion"])
            print(f"{motions}, {source.name}: {100 * statistics.median(changes):.2f} %", flush=True)


if __name__ == "__main__":
    main()
