"""The procedural world of the model in use: its names can be read from this module.

A world is a package with `ATTRIBUTES`, `labels`, `random_scene`, `held_out`, `render`, `object_boxes`, `caption`,
`vocabulary`, `held_out_prompts` and `EXAMPLES`; `meadow` says what each is.
"""

import importlib

from . import presets


def clips(described, device="cpu", eager=False, size=None):
    """Clips [B, T, 3, H, W] of scenes at `size` (width, height), the model's first one if absent, padded to whole tokens."""
    video = presets.VIDEO
    width, height = presets.padded(size or video["sizes"][0])
    return __getattr__("render")(described, width, height, video["frames"], video["fps"], device, eager)


def __getattr__(name):
    return getattr(importlib.import_module(f".{presets.WORLD}", __package__), name)
