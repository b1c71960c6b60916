"""The second procedural world: objects on land, on water and in a lit harbour, and brand backgrounds.

`scenes` draws what happens (a JSON-able dictionary), `physics` where everything is at any time, `lights` the light of
an hour and a weather. `render` paints clips out of `camera`, `sky`, `ground`, `trace` and `shade` for `objects`, and
`weather`; `abstract` the brand backgrounds. `captions` says it in `words`. `python -m training.harbour.check` checks
all of it, `python -m training.harbour.preview OUT.png` shows it.
"""

from . import captions
from .. import presets
from .captions import EXAMPLES, caption, caption_spans
from .measures import SHOWN, TRUE, boxes as object_boxes, masses, measured_scenes, on_stage, tints
from .render import render as _render
from .scenes import ATTRIBUTES, attributes as labels, held_out, random_scene as _random_scene, readings

TITLE = "Kinora Harbour"
DESCRIPTION = ("A small model of balls, boats, lanterns and towers on land, on water and in a lit harbour, by day and "
               "night and in any weather, and of flowing backgrounds; trained from nothing on a procedural world.")
SILENT = {"type", "size", "second size"}  # never asked of a clip


def random_scene(rng, allow_held_out=False, **fixed):
    """A scene whose events happen within a clip of the model in use."""
    duration = (presets.VIDEO["frames"] - 1) / presets.VIDEO["fps"]
    return _random_scene(rng, allow_held_out, duration=duration, **fixed)


def render(described, width, height, frames, fps, device="cpu", eager=False):
    """Clips [B, T, 3, H, W]; there is nothing to compile here, `eager` is the interface's."""
    video = presets.VIDEO
    return _render(described, width, height, frames, fps, device, grain=video.get("grain", 1.0), period=video["frames"])


def held_out_prompts(count=10, seed=3):
    return captions.held_out_prompts(count, seed, random_scene)


def vocabulary():
    return sorted(captions.vocabulary())


def confusable(scene):
    """Whether two words of a full caption could change places: two directions, or two objects of other colours."""
    directions = {scene.get("direction"), scene.get("camera", "").rpartition(" ")[2]} & {"left", "right"}
    colours = {thing["colour"] for thing in scene.get("objects", [])}
    return len(directions) == 2 or len(colours) > 1


def fast(scene):
    """Whether an object crosses much of the picture in a few frames, so that a decoder smears it."""
    return scene.get("motion") in ("falls", "bounces", "thrown", "swings", "collides", "orbits")


def told(scene):
    """Names of the attributes that a full caption speaks of (see `captions.caption`)."""
    names = {name for name, value in labels(scene).items() if value not in ("", 0)} - SILENT
    if scene["type"] == "abstract":
        return sorted(names - {"count"})
    first = scene["objects"][0]
    unsaid = {"material"} if first["material"] == "matte" or first["kind"] in ("lantern", "tower", "boat") else set()
    unsaid |= {"camera"} if scene["camera"] == "still" else set()
    unsaid |= {"weather"} if scene["weather"] == "clear" else set()
    unsaid |= {"time"} if scene["setting"] == "studio" else set()
    unsaid |= {"count"} if len(scene["objects"]) == 1 else set()
    if scene["layout"] == "group":
        unsaid |= {"second kind", "second colour"}
    return [name for name in ATTRIBUTES if name in names - unsaid]
