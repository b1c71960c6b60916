"""What the physics of this world can be measured on, and how pixels become metres."""

import math

from . import captions, scenes, world

TRUE = {"gravity": scenes.GRAVITY, "restitution": scenes.RESTITUTION}
# attributes of the scenes that show it; the scenery has no tint there, so that the object's tint is its own
SHOWN = {
    "gravity": {"motion": ("falls",)},
    "restitution": {"motion": ("bounces",)},
    "constancy": {"motion": ("rolls left", "rolls right")},
}
PLAIN = {"camera": ("still",), "sky": ("overcast",), "ground": ("stone", "snow"),
         "colour": ("red", "purple", "pink", "green", "blue")}


def measured_scenes(measure, count, rng):
    """Scenes that show a measure, with full captions: [(scene, caption)]."""
    drawn = []
    for _ in range(count):
        fixed = {name: rng.choice(values) for name, values in {**PLAIN, **SHOWN[measure]}.items()}
        scene = scenes.random_scene(rng, allow_held_out=True, **fixed)
        drawn.append((scene, captions.caption(scene, rng, full=True)))
    return drawn


def tints(scene):
    """Colours of the objects, lit by the sky."""
    return [tuple(c * (0.65 * light + 0.35) for c, light in zip(world.OBJECT[scene["colour"]], world.SKY[scene["sky"]][10]))]


def masses(scene):
    return [1.0]


def on_stage(points, width, height):
    """Metres (x, y) [T, 2] of what is seen at pixels (u, v) [T, 2], on the upright plane of the objects."""
    focal, middle, above = world.lens(width, height)
    tan = (above - points[:, 1]) / focal
    cos, sin = math.cos(world.PITCH), math.sin(world.PITCH)
    up = scenes.DISTANCE * (tan * cos + sin) / (cos - tan * sin)
    ahead = up * sin + scenes.DISTANCE * cos
    side = (points[:, 0] - middle) * ahead / focal
    return side, up + world.CAMERA_HEIGHT
