"""Contact sheets of the world, for the eye: `python -m training.harbour.preview OUT.png [PART] [SIZE]`.

PART is settings, objects, motions, cameras, abstract, random or a text like "motion=swings,setting=harbour".
"""

import random
import sys
from pathlib import Path

import torch

from .. import sheet
from . import scenes as S
from .captions import caption
from .render import render


def chosen(part, rng):
    if part == "settings":
        return [S.random_scene(rng, True, setting=setting, time=time, weather="clear", camera="still")
                for setting in S.SETTINGS for time in (S.TIMES if setting != "studio" else ("noon",))]
    if part == "weather":
        return [S.random_scene(rng, True, setting=setting, weather=weather, camera="still")
                for setting in S.SETTINGS if setting != "studio" for weather in S.WEATHERS[1:]
                if (weather, setting) not in S.ODD]
    if part == "objects":
        return [S.random_scene(rng, True, kind=kind, layout="single", camera="still", size=size)
                for kind in S.KINDS for size in S.SIZES]
    if part == "motions":
        return [S.random_scene(rng, True, motion=motion) for motion in S.MOTIONS for _ in range(2)]
    if part == "cameras":
        return [S.random_scene(rng, True, camera=camera) for camera in S.CAMERAS for _ in range(2)]
    if part == "relations":
        return [S.random_scene(rng, True, relation=relation) for relation in S.RELATIONS for _ in range(2)] + \
            [S.random_scene(rng, True, layout=layout) for layout in ("group", "trio") for _ in range(3)]
    if part == "abstract":
        return [S.random_scene(rng, True, style=style, tone=tone)
                for style in S.STYLES for tone in S.TONES for _ in range(2)]
    if part == "random":
        return [S.random_scene(rng) for _ in range(16)]
    fixed = dict(item.split("=") for item in part.split(","))
    return [S.random_scene(rng, True, **fixed) for _ in range(8)]


def main():
    path, part = Path(sys.argv[1]), (sys.argv[2:] or ["settings"])[0]
    width, height = (int(v) for v in ((sys.argv[3:] or ["128x128"])[0]).split("x"))
    torch.set_num_threads(1)
    rng = random.Random(int((sys.argv[4:] or ["5"])[0]))
    scenes = chosen(part, rng)
    clips = render(scenes, width, height)
    sheet.contact_sheet(clips, [caption(scene, rng, full=True)[:130] for scene in scenes], path, (0, 4, 8, 12, 16), 1)


if __name__ == "__main__":
    main()
