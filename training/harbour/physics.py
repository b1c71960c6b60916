"""Where everything is at any time: closed forms, with constants that are the same in every scene.

Bodies move on pieces of constant acceleration (flight, friction, rest), which meet at contacts; the pendulum is
integrated in fixed small steps; what floats follows the waves. Metres, seconds, kilograms, radians.
"""

import math

import torch

GRAVITY = 9.8
BOUNCE, LAND, THROWN = 0.75, 0.22, 0.55  # restitution at the ground of what bounces, falls, is thrown
COLLISION = 0.85  # restitution between two bodies
GRIP = 0.85  # share of the speed along the ground that a bounce leaves
SLIDING, ROLLING = 0.28, 0.015  # friction coefficients
SETTLED = 0.25  # speed below which a body no longer leaves the ground
ROPE = 2.4  # from the pivot to the centre of what swings
DRAG_TIME = 0.5  # what rises nears its final speed with this time constant

RADIUS = {"small": 0.25, "medium": 0.34, "large": 0.45}  # length unit of an object by its size
# half sizes of the box around an object, in its unit, before it is turned
BOX = {"ball": (1, 1, 1), "cube": (0.85, 0.85, 0.85), "cylinder": (0.7, 0.9, 0.7), "cone": (0.88, 1.0, 0.88),
       "ring": (1, 1, 0.26), "lantern": (0.8, 1.2, 0.8), "boat": (1.45, 1.15, 0.55), "tower": (0.62, 2.0, 0.62)}
VOLUME = {"ball": 4.19, "cube": 4.91, "cylinder": 2.77}  # in cubes of the unit
DENSITY = {"matte": 500.0, "glossy": 800.0, "metal": 2400.0}  # wood, plastic, hollow metal
AFLOAT = {"ball": 0.35, "cube": 0.25, "ring": 0.06, "lantern": 0.95, "boat": 0.90}  # height of the centre over water

# waves of the water: wavelength, amplitude, direction, phase; deep water: omega² = g k
WAVES = ((3.4, 0.030, 0.5, 0.0), (2.1, 0.018, -0.4, 1.7), (1.25, 0.010, 1.2, 4.1), (0.74, 0.0055, -1.0, 2.3),
         (0.43, 0.0030, 0.3, 5.2))
LONG = 3  # as many of them move what floats


def role(scene, index):
    """The motion that an object of a scene takes part in; what hides another only stands there."""
    return "rests" if scene["motion"] == "passes" and index else scene["motion"]


def lies(thing, motion):
    """True for a cylinder on its side, so that it rolls, and for a ring that floats flat."""
    return (thing["kind"], motion) in (("cylinder", "rolls"), ("cylinder", "passes"), ("ring", "floats"))


def low(thing, motion=""):
    """Metres from the centre to the lowest point."""
    box = BOX[thing["kind"]]
    flat = {"cylinder": 0.7, "ring": 0.24}[thing["kind"]] if lies(thing, motion) else box[1]
    return flat * RADIUS[thing["size"]]


def extent(thing):
    """Metres from the centre to the side, generously: of a cube as it stands at some angle."""
    box = BOX[thing["kind"]]
    return RADIUS[thing["size"]] * box[0] * (1.3 if thing["kind"] == "cube" else 1.0)


def reach(thing):
    """Metres from the centre to the farthest point seen from above, for the inner object of an orbit to stay clear."""
    return RADIUS[thing["size"]] * max(BOX[thing["kind"]][0], BOX[thing["kind"]][2])


def mass(thing):
    return VOLUME[thing["kind"]] * RADIUS[thing["size"]] ** 3 * DENSITY[thing["material"]]


def wave_height(x, z, t, waves=WAVES):
    """Height of the water at (x, z) metres and t seconds, and its slopes along x and z."""
    height = slope_x = slope_z = 0.0
    for length, amplitude, direction, phase in waves:
        k = math.tau / length
        kx, kz = k * math.cos(direction), k * math.sin(direction)
        angle = kx * x + kz * z - math.sqrt(GRAVITY * k) * t + phase
        height = height + amplitude * torch.sin(angle)
        slope = amplitude * torch.cos(angle)
        slope_x, slope_z = slope_x + kx * slope, slope_z + kz * slope
    return height, slope_x, slope_z


class Path:
    """Pieces of constant acceleration, each from its own time on."""

    def __init__(self, position, velocity=(0.0, 0.0, 0.0), acceleration=(0.0, 0.0, 0.0)):
        self.starts, self.pieces = [0.0], [(position, velocity, acceleration)]

    def end(self, after):
        """Position and velocity `after` seconds into the last piece."""
        position, velocity, acceleration = self.pieces[-1]
        return ([p + v * after + 0.5 * a * after * after for p, v, a in zip(position, velocity, acceleration)],
                [v + a * after for v, a in zip(velocity, acceleration)])

    def then(self, after, velocity, acceleration=(0.0, 0.0, 0.0)):
        """Go on with another velocity `after` seconds into the last piece."""
        position, _ = self.end(after)
        self.starts.append(self.starts[-1] + after)
        self.pieces.append((position, velocity, acceleration))

    def rub(self, friction):
        """The last piece runs along the ground: friction slows it until it stops."""
        position, (vx, _, vz), _ = self.pieces[-1]
        slowing = friction * GRAVITY
        self.pieces[-1] = (position, (vx, 0.0, vz), (-math.copysign(slowing, vx) if vx else 0.0, 0.0, 0.0))
        if vx:
            self.then(abs(vx) / slowing, (0.0, 0.0, 0.0))

    def fly(self, floor, restitution, friction, who, contacts):
        """The last piece is in the air: fall, bounce at `floor` until settled, then rub."""
        down = (0.0, -GRAVITY, 0.0)
        position, velocity, _ = self.pieces[-1]
        self.pieces[-1] = (position, velocity, down)
        while True:
            (_, y, _), (vx, vy, vz), _ = self.pieces[-1]
            after = (vy + math.sqrt(max(vy * vy + 2 * GRAVITY * (y - floor), 0.0))) / GRAVITY
            _, (vx, vy, vz) = self.end(after)
            up = -restitution * vy
            contacts.append({"time": self.starts[-1] + after, "objects": [who], "with": "ground",
                             "before": [vx, vy, vz], "after": [vx * GRIP, max(up, 0.0), vz]})
            if up < SETTLED:
                contacts[-1]["after"][1] = 0.0
                self.then(after, (vx * GRIP, 0.0, vz))
                self.rub(friction)
                return
            self.then(after, (vx * GRIP, up, vz), down)

    def at(self, t):
        """Positions and velocities [T, 3] at the times t [T]."""
        index = torch.searchsorted(torch.tensor(self.starts, dtype=t.dtype), t, right=True) - 1
        values = torch.tensor(self.pieces, dtype=t.dtype)[index.clamp_min(0)]
        position, velocity, acceleration = values.unbind(1)
        since = (t - torch.tensor(self.starts, dtype=t.dtype)[index.clamp_min(0)])[:, None]
        return position + velocity * since + 0.5 * acceleration * since * since, velocity + acceleration * since


def turn(axis, angle):
    """Rotation matrices [T, 3, 3] about axis 0, 1 or 2."""
    matrix = torch.zeros(*angle.shape, 3, 3, dtype=angle.dtype)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    cos, sin = angle.cos(), angle.sin()
    matrix[..., axis, axis] = 1.0
    matrix[..., i, i], matrix[..., j, j] = cos, cos
    matrix[..., i, j], matrix[..., j, i] = -sin, sin
    return matrix


def pendulum(angle, length, times, step=1 / 480):
    """Angles and angular velocities of a pendulum let go at `angle`, by Runge and Kutta's method."""
    def change(a, w):
        return w, -GRAVITY / length * math.sin(a)

    found, now, w = [], 0.0, 0.0
    for goal in times:
        while now < goal - 1e-12:
            h = min(step, goal - now)
            a1, w1 = change(angle, w)
            a2, w2 = change(angle + h / 2 * a1, w + h / 2 * w1)
            a3, w3 = change(angle + h / 2 * a2, w + h / 2 * w2)
            a4, w4 = change(angle + h * a3, w + h * w3)
            angle, w = angle + h / 6 * (a1 + 2 * a2 + 2 * a3 + a4), w + h / 6 * (w1 + 2 * w2 + 2 * w3 + w4)
            now += h
        found.append((angle, w))
    return found


def _collision(scene, contacts):
    """Two bodies that glide along x and meet: momentum is kept, COLLISION of the closing speed returned."""
    a, b = scene["objects"]
    ha, hb = low(a), low(b)
    sides = [RADIUS[o["size"]] * BOX[o["kind"]][0] for o in (a, b)]
    apart = sides[0] + sides[1]
    if a["kind"] == b["kind"] == "ball":  # centres at different heights touch when nearer
        apart = math.sqrt(apart ** 2 - (ha - hb) ** 2)
    paths = [Path((o["x"], h, o["z"]), (o["speed"], 0.0, 0.0)) for o, h in ((a, ha), (b, hb))]
    sign = 1.0 if b["x"] > a["x"] else -1.0
    closing = (a["speed"] - b["speed"]) * sign
    after = ((b["x"] - a["x"]) * sign - apart) / closing
    ma, mb = mass(a), mass(b)
    middle = (ma * a["speed"] + mb * b["speed"]) / (ma + mb)
    kick = COLLISION * closing * sign / (ma + mb)
    speeds = middle - mb * kick, middle + ma * kick
    for path, speed in zip(paths, speeds):
        path.then(after, (speed, 0.0, 0.0))
    contacts.append({"time": after, "objects": [0, 1], "with": "body", "before": [a["speed"], b["speed"]],
                     "after": list(speeds), "masses": [ma, mb]})
    return paths


def _alone(scene, index, contacts):
    """Path of one body on the ground or in the air."""
    thing, motion = scene["objects"][index], scene["motion"]
    shared = scene["layout"] in ("group", "single") or index == 0
    floor = low(thing, role(scene, index))
    if scene["relation"] == "on top of" and index == 0:
        floor += 2 * low(scene["objects"][1])
    start = (thing["x"], floor + (thing["height"] if motion in ("falls", "bounces", "thrown") else 0.0), thing["z"])
    path = Path(start, (thing["speed"] if motion in ("rolls", "slides", "thrown", "passes") else 0.0,
                        thing.get("lift", 0.0), 0.0))
    if not shared or motion in ("rests", "spins"):
        return Path((start[0], floor, start[2]))
    if motion in ("falls", "bounces", "thrown"):
        path.fly(floor, {"falls": LAND, "bounces": BOUNCE, "thrown": THROWN}[motion],
                 ROLLING if thing["kind"] in ("ball", "ring") else SLIDING, index, contacts)
    elif motion in ("rolls", "slides", "passes"):
        path.rub(ROLLING if motion != "slides" else SLIDING)
    return path


def trajectory(scene, times):
    """Motion of the K objects of a scene at T times (seconds, rising): `position`, `velocity` [K, T, 3],
    `rotation` [K, T, 3, 3] from the object's axes to the world's, and the list `contacts` with their times."""
    t = torch.as_tensor(times, dtype=torch.float64)
    zero = torch.zeros_like(t)
    motion, things, contacts = scene["motion"], scene["objects"], []
    wet = scene["setting"] in ("water", "harbour")
    paths = _collision(scene, contacts) if motion == "collides" else None
    rows = []
    for index, thing in enumerate(things):
        radius = RADIUS[thing["size"]]
        heading, roll = zero + thing["yaw"], zero
        tilt = torch.eye(3, dtype=t.dtype)
        moves = index == 0 or scene["layout"] == "group"
        if motion == "swings":
            swing = torch.tensor(pendulum(thing["angle"], ROPE, t.tolist()), dtype=t.dtype)
            roll, rate = swing[:, 0], swing[:, 1]
            lowest = low(thing) + thing["height"]
            height = lowest + ROPE * (1 - roll.cos())
            position = torch.stack((thing["x"] + ROPE * roll.sin(), height, zero + thing["z"]), 1)
            velocity = torch.stack((ROPE * rate * roll.cos(), ROPE * rate * roll.sin(), zero), 1)
        elif motion == "orbits" and index == 0:
            centre = things[1]
            phase = thing["angle"] + thing["speed"] * t
            x, z = centre["x"] + thing["height"] * phase.cos(), centre["z"] + thing["height"] * phase.sin()
            speed = thing["height"] * thing["speed"]
            y = zero + low(thing)
            position = torch.stack((x, y, z), 1)
            velocity = torch.stack((-speed * phase.sin(), zero, speed * phase.cos()), 1)
            heading = torch.atan2(-velocity[:, 2], velocity[:, 0])
            roll = -abs(speed) * t / radius if not wet else zero
        elif motion == "rises" and moves:
            gone = thing["speed"] * (t - DRAG_TIME * (1 - torch.exp(-t / DRAG_TIME)))
            base = low(thing) + thing["height"]
            position = torch.stack((zero + thing["x"], base + gone, zero + thing["z"]), 1)
            velocity = torch.stack((zero, thing["speed"] * (1 - torch.exp(-t / DRAG_TIME)), zero), 1)
        elif motion == "sails" or wet and moves and motion == "passes":
            position, velocity = Path((thing["x"], 0.0, thing["z"]), (thing["speed"], 0.0, 0.0)).at(t)
        else:
            path = paths[index] if paths else _alone(scene, index, contacts)
            position, velocity = path.at(t)
        if motion == "spins" and moves:
            heading = heading + thing["speed"] * t
        rolls = ("ball",) if motion == "collides" else ("ball", "ring", "cylinder") if moves else ()
        if motion in ("rolls", "passes", "collides", "thrown") and thing["kind"] in rolls:
            heading, roll = zero, -(position[:, 0] - thing["x"]) / low(thing, motion)
        if wet and thing["kind"] in AFLOAT and role(scene, index) != "rests" and not (motion == "rises" and moves):
            height, slope_x, slope_z = wave_height(position[:, 0], position[:, 2], t, WAVES[:LONG])
            position[:, 1] = height + AFLOAT[thing["kind"]] * radius
            later, _, _ = wave_height(position[:, 0] + 1e-4 * velocity[:, 0], position[:, 2] + 1e-4 * velocity[:, 2],
                                      t + 1e-4, WAVES[:LONG])
            velocity[:, 1] = (later - height) / 1e-4
            tilt = turn(2, torch.atan(slope_x)) @ turn(0, -torch.atan(slope_z))
        rotation = tilt @ turn(1, heading) @ turn(2, roll)
        if lies(thing, role(scene, index)):
            rotation = rotation @ turn(0, zero + (math.pi / 2 if thing["kind"] == "cylinder" else -math.pi / 2))
        rows.append((position, velocity, rotation))
    position, velocity, rotation = (torch.stack(part) for part in zip(*rows))
    return {"position": position, "velocity": velocity, "rotation": rotation,
            "contacts": sorted(contacts, key=lambda c: c["time"])}
