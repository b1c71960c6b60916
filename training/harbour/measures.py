"""What the physics of this world can be measured on, and how pixels become metres."""

import torch

from . import camera, captions, physics, scenes
from .. import presets
from .objects import COLOUR

TRUE = {"gravity": physics.GRAVITY, "restitution": physics.BOUNCE, "momentum change": 0.0}
# attributes of the scenes that show it
SHOWN = {
    "gravity": {"motion": ("falls",), "kind": ("ball", "cube", "cylinder")},
    "restitution": {"motion": ("bounces",), "kind": ("ball", "cube")},
    "momentum change": {"motion": ("collides",), "kind": ("ball", "cube")},
    "permanence": {"motion": ("passes",), "kind": ("ball",)},
    "constancy": {"motion": ("rolls",), "kind": ("ball",)},
}
# scenery without a tint, so that the object's tint is its own
PLAIN = {"camera": ("still",), "weather": ("clear",), "time": ("noon",), "setting": ("stone",),
         "material": ("matte",), "colour": ("red", "green", "purple", "pink", "orange")}


def measured_scenes(measure, count, rng):
    """Scenes that show a measure, with full captions: [(scene, caption)]."""
    drawn, duration = [], (presets.VIDEO["frames"] - 1) / presets.VIDEO["fps"]
    while len(drawn) < count:
        fixed = {name: rng.choice(values) for name, values in {**PLAIN, **SHOWN[measure]}.items()}
        if measure not in ("momentum change", "permanence"):
            fixed["layout"] = "single"
        scene = scenes.random_scene(rng, allow_held_out=True, duration=duration, **fixed)
        # the second object must not be taken for the first, and for momentum it has to be found as well
        if len(scene["objects"]) > 1 and alike(*tints(scene)[:2]):
            continue
        if measure == "momentum change" and scene["objects"][1]["colour"] not in PLAIN["colour"]:
            continue
        drawn.append((scene, captions.caption(scene, rng, full=True)))
    return drawn


def alike(one, other):
    """Whether tracking could take one colour for another."""
    tints = [torch.tensor(colour) - sum(colour) / 3 for colour in (one, other)]
    return torch.nn.functional.cosine_similarity(*tints, dim=0).item() > 0.75


def tints(scene):
    """Colours of the objects, in order."""
    return [COLOUR[thing["colour"]] for thing in scene["objects"]]


def masses(scene):
    return [physics.mass(thing) for thing in scene["objects"]]


def on_stage(points, width, height):
    """Metres x and y [T] of what is seen at pixels (u, v) [T, 2] by the still camera, on the upright plane z = 0."""
    eye, axes = camera.view({"camera": "still"}, 1)
    right, up, ahead = axes[0].to(points.dtype)
    eye, focal = eye[0].to(points.dtype), camera.focal(width, height)
    side, rise = (points[:, :1] - width / 2) / focal, (height / 2 - points[:, 1:]) / focal
    ray = ahead + side * right + rise * up
    place = eye - ray * (eye[2] / ray[:, 2:])
    return place[:, 0], place[:, 1]


def boxes(described, width, height, frames, fps):
    """Where the objects are, left, top, right and bottom in 0..1 of the picture: [B, T, 3, 4], empty ones for none."""
    out = torch.full((len(described), frames, 3, 4), -1.0)
    progress = torch.arange(frames, dtype=torch.float64) / fps
    for row, scene in enumerate(described):
        if scene["type"] == "abstract":
            continue
        path = physics.trajectory(scene, progress)
        eye, axes = camera.view(scene, frames)
        screen = camera.project(path["position"], eye, axes, width, height)  # [K, T, 3]
        for index, thing in enumerate(scene["objects"]):
            u, v, depth = screen[index].float().unbind(-1)
            scale = physics.RADIUS[thing["size"]] * camera.focal(width, height) / depth.clamp_min(0.3)
            half = physics.BOX[thing["kind"]]
            wide, high = scale * max(half[0], half[2]), scale * half[1]
            out[row, :, index] = torch.stack(((u - wide) / width, (v - high) / height, (u + wide) / width,
                                              (v + high) / height), -1)
    return out
