"""The first world: one ball or cube on a wide ground.

`ATTRIBUTES` maps each attribute's name to its values, `labels(scene)` gives a scene's value of each, None where it has
none; `readings(scene)` gives the scenes that a clip of it may rightly be taken for, one for the same picture first.
`random_scene(rng, allow_held_out, **fixed)` draws one, `held_out(scene)` tells the combinations never trained
on. `render(scenes, width, height, frames, fps, device, eager)` makes clips [B, T, 3, H, W] in 0..1 and
`object_boxes(scenes, width, height, frames, fps)` says where their objects are: [B, T, N, 4] of left, top, right and
bottom in 0..1 of the picture. `caption(scene, rng, full)`, `vocabulary()`, `held_out_prompts(count, seed)` and
`EXAMPLES` are the words, `caption_spans(scene, rng, full)` a caption and which of its words speak of which object, where
there are several; `told(scene)` names the attributes that a full caption speaks of, `confusable(scene)` says
whether it takes care to tell them apart, `fast(scene)` whether its motion is hard to draw. `SHOWN`, `TRUE` and
`measured_scenes` say what physics can be measured on (`measures.py`).
"""

from .captions import EXAMPLES, caption, held_out_prompts, vocabulary
from .measures import SHOWN, TRUE, masses, measured_scenes, on_stage, tints
from .scenes import ATTRIBUTES, held_out, random_scene
from .world import object_boxes, render

TITLE = "Kinora Meadow"
DESCRIPTION = ("A small model of balls and cubes that bounce, roll, fall and rise, on five grounds under four skies, "
               "trained from nothing on a procedural world.")


def labels(scene):
    return {name: scene[name] for name in ATTRIBUTES}


def caption_spans(scene, rng, full=False):
    return caption(scene, rng, full), []


def readings(scene):
    return [scene]


def confusable(scene):
    """Whether two words of a full caption could change places: object and camera go in opposite directions."""
    directions = [scene[name].rpartition(" ")[2] for name in ("motion", "camera")]
    return set(directions) == {"left", "right"}


def fast(scene):
    """Whether the object crosses much of the picture in a few frames, so that a decoder smears it."""
    return scene["motion"] in ("bounces", "falls")


def told(scene):
    """Everything but the size and a camera that stands still."""
    return [name for name in ATTRIBUTES if name != "size" and (name, scene[name]) != ("camera", "still")]
