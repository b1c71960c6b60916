"""The procedural world of the model in use: its names can be read from this module.

`meadow/__init__.py` says what each of them is.
"""

import importlib

from . import presets


def clips(described, device="cpu", eager=False, size=None, frames=None):
    """Clips [B, T, 3, H, W] of scenes at `size` (width, height), the model's first if absent, padded to tokens. With
    `frames` only so many, from the first to the last at equal distances."""
    video = presets.VIDEO
    width, height = presets.padded(size or video["sizes"][0])
    frames = frames or video["frames"]
    fps = video["fps"] * (frames - 1) / (video["frames"] - 1)
    return __getattr__("render")(described, width, height, frames, fps, device, eager)


def scene_like(rng, wanted, tries=50, **options):
    """A scene that `wanted(scene)` accepts, or any if none of the first `tries` is one; None looks for ever."""
    while True:
        scene = __getattr__("random_scene")(rng, **options)
        tries = tries and tries - 1
        if wanted(scene) or tries == 0:
            return scene


def __getattr__(name):
    return getattr(importlib.import_module(f".{presets.WORLD}", __package__), name)
