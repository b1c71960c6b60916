"""The scenes of the procedural world: attributes, their physics and the held-out rule.

A scene is a dictionary of the attributes below plus a few continuous values
(start position, drop height). Lengths are metres, times seconds, angles
radians; the ground is y = 0 and the camera looks along +z.
"""

import math
import random
import zlib

GRAVITY = 9.8
RESTITUTION = 0.75
SETTLE_RESTITUTION = 0.14

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("ball", "cube")
SIZES = ("small", "big")
MOTIONS = ("bounces", "rolls left", "rolls right", "falls", "rises", "stays still")
GROUNDS = ("grass", "sand", "snow", "stone", "checkered")
SKIES = ("day", "sunset", "night", "overcast")
CAMERAS = ("still", "pans left", "pans right")

ATTRIBUTES = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "motion": MOTIONS,
    "ground": GROUNDS,
    "sky": SKIES,
    "camera": CAMERAS,
}

RADIUS = {"small": 0.30, "big": 0.44}
CUBE_SCALE = 0.86  # half edge of a cube relative to the ball of the same size
DISTANCE = 3.2
PAN = math.radians(8.0)  # the camera turns from one side of the middle to the other


def held_out(scene):
    """True for the combinations of colour, shape, motion and ground kept out of training."""
    key = "|".join(scene[name] for name in ("colour", "shape", "motion", "ground"))
    return zlib.crc32(key.encode()) % 16 == 3


def random_scene(rng: random.Random, allow_held_out=False, **fixed):
    """Draw a scene; `fixed` pins attributes. Held-out combinations are redrawn."""
    while True:
        scene = {name: fixed.get(name) or rng.choice(values) for name, values in ATTRIBUTES.items()}
        if "camera" not in fixed and rng.random() < 0.4:
            scene["camera"] = "still"
        scene["x"] = rng.uniform(-0.3, 0.3)
        scene["height"] = rng.uniform(0.0, 1.0)
        if allow_held_out or not held_out(scene):
            return scene


def mirrored(scene):
    """The scene seen in a mirror: left and right swap. Its picture is not a flipped one, the light stays."""
    swap = {"rolls left": "rolls right", "rolls right": "rolls left",
            "pans left": "pans right", "pans right": "pans left"}
    other = dict(scene, x=-scene["x"])
    other["motion"] = swap.get(scene["motion"], scene["motion"])
    other["camera"] = swap.get(scene["camera"], scene["camera"])
    return other


def half_extent(scene):
    """Distance from the object's centre to its lowest point."""
    radius = RADIUS[scene["size"]]
    return radius * CUBE_SCALE if scene["shape"] == "cube" else radius


def bounce_height(drop, time, restitution):
    """Height of a point dropped from `drop` metres at time 0 onto a floor that returns `restitution` of the speed."""
    fall = math.sqrt(2.0 * drop / GRAVITY)
    if time < fall:
        return drop - 0.5 * GRAVITY * time * time
    time -= fall
    speed = GRAVITY * fall * restitution
    while speed > 0.2:
        flight = 2.0 * speed / GRAVITY
        if time < flight:
            return speed * time - 0.5 * GRAVITY * time * time
        time -= flight
        speed *= restitution
    return 0.0


def position(scene, time, duration):
    """Centre (x, y, z) of the object at `time` in a clip of `duration` seconds."""
    x, low, motion = scene["x"], half_extent(scene), scene["motion"]
    if motion == "bounces":
        return x, low + bounce_height(0.85 + 0.3 * scene["height"], time, RESTITUTION), DISTANCE
    if motion == "falls":
        return x, low + bounce_height(1.15 + 0.3 * scene["height"], time, SETTLE_RESTITUTION), DISTANCE
    if motion == "rises":
        acceleration = 0.95 + 0.3 * scene["height"]
        return x, low + 0.5 * acceleration * time * time, DISTANCE
    if motion == "stays still":
        return x, low, DISTANCE
    reach = 0.62 if scene["camera"] != "still" else 0.85
    along = reach * (1.0 - 2.0 * time / duration)  # starts at +reach, ends at -reach
    direction = 1.0 if motion == "rolls left" else -1.0
    return 0.4 * x + direction * along, low, DISTANCE


def yaw(scene, time, duration):
    """Heading of the camera, positive to the right."""
    turn = {"still": 0.0, "pans left": -1.0, "pans right": 1.0}[scene["camera"]]
    return turn * PAN * (2.0 * time / duration - 1.0)
