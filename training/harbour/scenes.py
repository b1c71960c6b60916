"""The scenes of the harbour world: attributes, how they may be combined, the held-out rule.

A scene is a plain dictionary that JSON can hold. Lengths are metres, times seconds, angles radians. The ground (or the
water at rest) is y = 0, x points right, z away from the camera, which looks at the middle of the stage near the origin.
"""

import math
import random
import zlib

KINDS = ("ball", "cube", "cylinder", "cone", "ring", "lantern", "boat", "tower")
COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "brown", "white", "grey", "black")
MATERIALS = ("matte", "glossy", "metal")
SIZES = ("small", "medium", "large")
SETTINGS = ("grass", "sand", "stone", "snow", "studio", "water", "harbour")
TIMES = ("dawn", "noon", "sunset", "night")
WEATHERS = ("clear", "fog", "rain", "snow")
CAMERAS = ("still", "pan left", "pan right", "dolly in", "dolly out", "orbit", "crane up", "crane down")
MOTIONS = ("rests", "falls", "bounces", "rolls", "slides", "thrown", "swings", "spins", "rises", "floats", "sails",
           "collides", "orbits", "passes")
RELATIONS = ("left of", "right of", "behind", "in front of", "on top of")
OPPOSITE = {"left of": "right of", "right of": "left of", "behind": "in front of", "in front of": "behind"}
LAYOUTS = ("single", "pair", "group", "trio", "event")
STYLES = ("gradient", "ripples", "lights")
TONES = ("light", "dark")
PACES = ("slow", "fast")

ATTRIBUTES = {  # of attributes(scene); the empty value means that the scene has no such thing
    "type": ("world", "abstract"), "setting": ("", *SETTINGS), "time": ("", *TIMES), "weather": ("", *WEATHERS),
    "camera": ("", *CAMERAS), "motion": ("", *MOTIONS), "direction": ("", "left", "right"),
    "relation": ("", *RELATIONS), "count": (0, 1, 2, 3), "kind": ("", *KINDS), "colour": ("", *COLOURS),
    "material": ("", *MATERIALS), "size": ("", *SIZES), "second kind": ("", *KINDS), "second colour": ("", *COLOURS),
    "style": ("", *STYLES), "tone": ("", *TONES), "pace": ("", *PACES),
}

WATERS = ("water", "harbour")
EVENTS = ("collides", "orbits", "passes")
DIRECTED = ("rolls", "slides", "thrown", "sails", "passes")
# what may do it: the kinds of the first object, and of the second one of an event
ACTORS = {
    "rests": ("ball", "cube", "cylinder", "cone", "ring", "lantern", "tower"),
    "falls": ("ball", "cube", "cylinder", "cone", "ring", "lantern"),
    "bounces": ("ball", "cube", "ring"),
    "rolls": ("ball", "cylinder", "ring"),
    "slides": ("cube", "cone", "cylinder", "lantern"),
    "thrown": ("ball", "ring"),
    "swings": ("ball", "cube", "ring", "lantern"),
    "spins": ("ball", "cube", "ring"),
    "rises": ("ball", "lantern"),
    "floats": ("ball", "cube", "ring", "lantern", "boat"),
    "sails": ("boat",),
    "collides": ("ball", "cube", "cylinder"),
    "orbits": ("ball", "boat"),
    "passes": ("ball", "cylinder", "ring", "boat"),
}
PARTNERS = {
    "collides": ("ball", "cube", "cylinder"),
    "orbits": ("cube", "cylinder", "cone", "lantern", "tower"),
    "passes": ("cube", "cylinder", "tower"),
}
AFLOAT = ("rises", "floats", "sails", "orbits", "passes")  # what can happen on water
LANDED = tuple(motion for motion in MOTIONS if motion not in ("floats", "sails"))
SHARED = ("rests", "falls", "bounces", "spins", "rises", "floats")  # motions of several objects at once
ABSTRACT = {"style", "tone", "pace", "colours"}  # attributes of brand backgrounds only
ODD = (("snow", "sand"), ("rain", "snow"))  # weather that a setting does not have
SUPPORTS = ("cube", "cylinder")  # have a flat top


def held_out(scene):
    """True for the combinations of attributes kept out of training: one in sixteen."""
    if scene["type"] == "abstract":
        key = "|".join((scene["style"], scene["tone"], *scene["colours"]))
    else:
        first = scene["objects"][0]
        key = "|".join((first["colour"], first["kind"], scene["motion"], scene["setting"]))
    return zlib.crc32(key.encode()) % 16 == 3


def attributes(scene):
    """What a scene shows, one value a name of ATTRIBUTES."""
    found = {name: "" for name in ATTRIBUTES}
    found.update({name: scene[name] for name in ATTRIBUTES if name in scene})
    objects = scene.get("objects", [])
    found["count"] = len(objects)
    for prefix, thing in zip(("", "second "), objects):
        found.update({prefix + name: value for name, value in thing.items() if prefix + name in ATTRIBUTES})
    # a background's two colours flow into each other and are named in either order
    for prefix, colour in zip(("", "second "), sorted(scene.get("colours", []), key=COLOURS.index)):
        found[prefix + "colour"] = colour
    return found


def readings(scene):
    """The scenes that a clip of this one may rightly be taken for; the first is the same for the same picture.

    Which of two objects is the first is often for the caption alone to say. Of two that do the same, the one on the
    left or in front comes first here; of two that collide, the one that moves, or the left one where both do. Whether
    both do is not in a caption, so either order is right then.
    """
    still = scene.get("layout") == "pair" and scene["motion"] in ("rests", "floats")
    if still and scene["relation"] in ("right of", "behind"):
        return [_swapped(scene)]
    if scene.get("motion") != "collides":
        return [scene]
    first, second = scene["objects"]
    swap = second["speed"] and second["x"] < first["x"]
    return [_swapped(scene), scene] if swap else [scene, _swapped(scene)]


def _swapped(scene):
    return {**scene, "objects": scene["objects"][::-1], "relation": OPPOSITE.get(scene["relation"], "")}


def random_scene(rng: random.Random, allow_held_out=False, duration=4 / 3, abstract=0.12, **fixed):
    """Draw a scene whose events happen within `duration` seconds; `fixed` pins attributes (those of the first object
    by their own names: kind, colour, material, size). Held-out combinations are redrawn unless allowed."""
    kind = "abstract" if ABSTRACT & fixed.keys() or not fixed and rng.random() < abstract else "world"
    kind = fixed.get("type", kind)
    for attempt in range(10000):
        if kind == "abstract":
            scene = _abstract(rng, fixed)
        else:
            # what is hard to place is tried more often, so that it is not rarer than the rest
            if attempt % 100 == 0:
                wanted = _plan(rng, fixed)
            scene = _world(rng, duration, {**wanted, **fixed})
        if scene and (allow_held_out or not held_out(scene)):
            shown = attributes(scene) if fixed else {}
            if all(shown[name] == value for name, value in fixed.items() if name in shown):
                return scene
    raise ValueError(f"no scene makes sense with {fixed}")


def _abstract(rng, fixed):
    first, second = rng.sample(COLOURS[:8] + ("white",), 2)
    colours = fixed.get("colours") or ([first] if rng.random() < 0.4 and first != "white" else [first, second])
    return {"type": "abstract", "style": fixed.get("style") or rng.choice(STYLES), "colours": list(colours),
            "tone": fixed.get("tone") or rng.choice(TONES), "pace": fixed.get("pace") or rng.choice(PACES),
            "seed": rng.randrange(1 << 16)}


def _layouts(motion):
    """How objects may be arranged, as often as they are drawn."""
    if motion in EVENTS:
        return ("event",)
    if motion not in SHARED:
        return ("single",)
    return ("single", "single", "pair", "group") + (("trio",) if motion in ("rests", "floats") else ())


def _plan(rng, fixed):
    """Motion, layout and relation that are aimed at: motions alike often, on land and on water."""
    if any(name in fixed for name in ("motion", "layout", "relation", "count", "kind", "direction")):
        return {}
    wet = fixed["setting"] in WATERS if "setting" in fixed else rng.random() < 0.32
    motion = rng.choice(("floats", "floats", *AFLOAT) if wet else (*LANDED, "rests", "rests"))
    plan = {"motion": motion, "setting": fixed.get("setting") or rng.choice(WATERS if wet else SETTINGS[:5])}
    if motion in SHARED:
        plan["layout"] = rng.choice(_layouts(motion))
        if plan["layout"] == "pair":
            plan["relation"] = rng.choice(RELATIONS if motion == "rests" else RELATIONS[:4])
    return plan


def _world(rng, duration, fixed):
    """One draw, None where the pinned and the drawn attributes do not go together."""
    def choose(name, allowed):
        if name in fixed:
            return fixed[name] if fixed[name] in allowed else None
        return rng.choice(allowed)

    setting = choose("setting", SETTINGS)
    wet = setting in WATERS
    motion = choose("motion", AFLOAT if wet else LANDED)
    if motion is None:
        return None
    studio = setting == "studio"
    weathers = ("clear",) if studio else tuple(w for w in WEATHERS if (w, setting) not in ODD)
    scene = {
        "type": "world", "setting": setting, "motion": motion,
        "time": choose("time", ("noon",) if studio else TIMES),
        "weather": choose("weather", weathers + ("clear",) * (0 if studio else 4)),
        # from the side, nothing would be hidden
        "camera": choose("camera", tuple(c for c in CAMERAS if (c, motion) != ("orbit", "passes")) + ("still",) * 6),
        "direction": choose("direction", ("left", "right")) if motion in DIRECTED else "",
        "layout": choose("layout", _layouts(motion)),
        "relation": "", "seed": rng.randrange(1 << 16),
    }
    kinds = ACTORS[motion]
    if motion in ("orbits", "passes"):
        kinds = tuple(k for k in kinds if (k == "boat") == wet)
    kind = choose("kind", kinds)
    if None in scene.values() or kind is None:
        return None
    first = _thing(rng, kind, motion, fixed)
    if first and motion == "passes" and "size" not in fixed:
        first["size"] = "small"
    count = {"single": 1, "pair": 2, "event": 2, "trio": 3}.get(scene["layout"]) or rng.choice((2, 3))
    if first is None:
        return None
    things = [first]
    while len(things) < count:
        if scene["layout"] == "group":
            other = dict(first)
        else:
            allowed = PARTNERS.get(motion) or ACTORS["floats" if wet else "rests"]
            other = _thing(rng, rng.choice(allowed), motion if wet else "rests", {})
            if motion == "passes":  # hides the first object
                other["size"] = "large"
            if any(other["colour"] == t["colour"] and other["kind"] == t["kind"] for t in things):
                continue
        things.append(other)
    scene["objects"] = things
    if scene["layout"] == "pair":
        scene["relation"] = choose("relation", RELATIONS if motion == "rests" else RELATIONS[:4])
    if scene["relation"] is None:
        return None
    return _place(scene, rng, duration)


def _thing(rng, kind, motion, fixed):
    """An object, or None where a pinned attribute does not suit its kind or its motion."""
    colours = COLOURS if kind != "lantern" else tuple(c for c in COLOURS if c not in ("brown", "grey", "black"))
    light = motion in ("floats", "rises", "bounces") and kind != "boat"  # metal neither floats, rises nor bounces
    materials = ("matte",) if kind in ("lantern", "tower") else MATERIALS[:2] if light or kind == "boat" else MATERIALS
    thing = {"kind": kind}
    for name, allowed in (("colour", colours), ("material", materials), ("size", SIZES)):
        if name in fixed and fixed[name] not in allowed:
            return None
        thing[name] = fixed.get(name) or rng.choice(allowed)
    return thing


def _place(scene, rng, duration):
    """Positions and speeds of all objects: where they start, so that what the scene says comes true in view."""
    from .physics import RADIUS, extent, reach, trajectory
    motion, things, sign = scene["motion"], scene["objects"], 1.0 if scene["direction"] == "right" else -1.0
    uniform = rng.uniform
    calm = min(1.0, 4 / 3 / duration)  # what has more time is slower, to stay in view
    for thing in things:
        thing.update(x=uniform(-0.3, 0.3), y=0.0, z=uniform(-0.15, 0.15), yaw=uniform(-0.6, 0.6), speed=0.0, height=0.0)
    first = things[0]
    layout = scene["layout"]
    if layout in ("group", "trio"):
        total = sum(2 * extent(t) for t in things)
        gap = min(0.45, (2.6 - total) / max(1, len(things) - 1))
        if gap < 0.06:
            return None
        x = -(total + gap * (len(things) - 1)) / 2
        for thing in things:
            thing.update(x=x + extent(thing), z=uniform(-0.12, 0.12))
            x += 2 * extent(thing) + gap
    elif layout == "pair":
        a, b = things
        side = {"left of": -1.0, "right of": 1.0}.get(scene["relation"])
        space = extent(a) + extent(b)
        if side is not None:
            apart = space + uniform(0.15, 0.5)
            a["x"], b["x"] = side * apart / 2, -side * apart / 2
            a["z"], b["z"] = uniform(-0.1, 0.1), uniform(-0.1, 0.1)
        elif scene["relation"] in ("behind", "in front of"):
            back, front = (a, b) if scene["relation"] == "behind" else (b, a)
            # the one in front must leave enough of the other to be seen
            if front["size"] == "large" or front["kind"] == "tower" or extent(back) < 0.9 * extent(front):
                return None
            shift = rng.choice((-1, 1)) * uniform(0.45, 0.8) * extent(front)
            front.update(x=shift, z=-0.55)
            back.update(x=-shift, z=-0.55 + space + uniform(0.25, 0.5))
        else:
            if b["kind"] not in SUPPORTS or a["kind"] in ("tower", "ring") or RADIUS[a["size"]] > RADIUS[b["size"]]:
                return None
            b.update(x=uniform(-0.2, 0.2), z=0.0)
            a.update(x=b["x"], z=b["z"])
    for thing in things if layout == "group" else [first]:
        if motion == "falls":
            thing["height"] = uniform(0.9, 1.35)
        elif motion == "bounces":
            thing["height"] = uniform(0.7, 1.15)
    if motion in ("rolls", "slides"):
        if motion == "slides":  # friction stops it in view
            first.update(x=-sign * uniform(0.75, 1.0), speed=sign * uniform(2.3, 2.7))
        else:
            far = uniform(0.85, 1.05)
            first.update(x=-sign * far, speed=sign * (2 * far / duration + 0.15))
    elif motion == "thrown":
        first.update(x=-sign * uniform(1.0, 1.25), height=uniform(0.1, 0.4), speed=sign * uniform(1.6, 2.0) * calm,
                     lift=uniform(3.2, 4.2))
    elif motion == "swings":
        first.update(x=uniform(-0.1, 0.1), z=0.0, height=uniform(0.35, 0.6),
                     angle=rng.choice((-1, 1)) * uniform(0.34, 0.50))
    elif motion == "spins":
        first["speed"] = rng.choice((-1, 1)) * uniform(3.2, 4.6)
        for thing in things if layout == "group" else ():
            thing["speed"] = first["speed"]
    elif motion == "rises":
        for thing in things if layout == "group" else [first]:
            thing.update(height=uniform(0.15, 0.5), speed=uniform(0.55, 0.9) * calm)
    elif motion == "sails":
        first.update(x=-sign * uniform(0.8, 1.0), speed=sign * 1.8 / duration, yaw=0.0 if sign > 0 else math.pi)
    elif motion == "collides":
        a, b = things
        if abs(SIZES.index(a["size"]) - SIZES.index(b["size"])) > 1:
            return None
        sign = rng.choice((-1.0, 1.0))
        scene["toward"] = "right" if sign > 0 else "left"
        a.update(x=-sign * uniform(1.1, 1.3), speed=sign * uniform(1.7, 2.2), yaw=0.0, z=0.0)
        b.update(x=sign * uniform(0.1, 0.3), speed=0.0, yaw=0.0, z=0.0)
        if rng.random() < 0.4:  # they meet head on
            b.update(x=sign * uniform(0.95, 1.15), speed=-sign * uniform(1.0, 1.5))
        if trajectory(scene, [0.8 * duration])["position"][..., 0].abs().max() > 1.6:  # they stay in view for long
            return None
    elif motion == "orbits":
        a, b = things
        b.update(x=0.0, z=0.1)
        if a["size"] == "large":
            return None
        a.update(speed=rng.choice((-1, 1)) * math.tau / uniform(1.9, 2.6), angle=uniform(0, math.tau),
                 height=max(0.85, reach(a) + extent(b) + 0.15))
    elif motion == "passes":
        a, b = things
        if b["size"] != "large" or a["size"] != "small":
            return None
        b.update(x=uniform(-0.12, 0.12), z=-0.35, yaw=0.0)
        far = uniform(1.0, 1.2)
        a.update(x=-sign * far, z=0.75, speed=sign * (2 * far / duration + 0.12), yaw=0.0 if sign > 0 else math.pi)
    if first["kind"] == "boat" and motion == "floats":
        first["yaw"] = uniform(-0.5, 0.5) + rng.choice((0.0, math.pi))
    return {**scene, "objects": [{k: round(v, 4) if isinstance(v, float) else v for k, v in t.items()} for t in things]}
