"""`render`: clips of scenes, and `truth`: what is where in them.

The scenery is computed once where the camera stands still. Objects, their shadows and reflections are flat lists of
the pixels in the boxes they cover; lists are joined over all frames and scenes, one for every kind of object.
"""

import torch

from . import abstract, camera, ground, physics, stage as stages, trace, weather
from .objects import WARM
from .shade import shade
from .sky import Sky

SHINING = {"lantern": (0.0, 2.6, 0.34), "tower": (1.27, 2.0, 0.40)}  # height, reach and strength of the halo, in units


def render(scenes, width=128, height=128, frames=17, fps=12.0, device="cpu", pixels=None, grain=1.0,
           period=None):
    """Clips [B, T, 3, H, W], 0..1, of a list of scenes; `pixels` bounds how many are worked on at once. Waves,
    ground, sky and weather have no detail finer than `grain` pixels; objects are as sharp as pixels allow. Abstract
    backgrounds come round in `period` frames, of which `frames` are shown; all are, if it is absent."""
    video = torch.empty(len(scenes), frames, 3, height, width, device=device)
    world = [i for i, scene in enumerate(scenes) if scene["type"] == "world"]
    plain = [i for i, scene in enumerate(scenes) if scene["type"] == "abstract"]
    at_once = max(1, int((pixels or (6e5 if torch.device(device).type == "cpu" else 3e7)) / (width * height * frames)))
    with torch.no_grad():
        for part in (world[i:i + at_once] for i in range(0, len(world), at_once)):
            video[part] = _Picture([scenes[i] for i in part], width, height, frames, fps, device, grain).clips()
        for part in (plain[i:i + at_once] for i in range(0, len(plain), at_once)):
            video[part] = abstract.render([scenes[i] for i in part], width, height, frames, device, period=period)
    return video


def truth(scene, width=128, height=128, frames=17, fps=12.0, device="cpu", masks=True):
    """What is where in the clip of a scene: `position`, `velocity` [K, T, 3] in metres and seconds, `rotation`
    [K, T, 3, 3], `screen` [K, T, 3] (pixels and depth), `contacts`, `masks` [K, T, H, W] (the visible part, 0..1) and
    the `camera`: eye [T, 3], axes [T, 3, 3] (right, up, forward) and focal length in pixels. Quick without `masks`."""
    if scene["type"] == "abstract":
        return {"period": frames, "masks": torch.zeros(0, frames, height, width), "contacts": []}
    path = physics.trajectory(scene, [i / fps for i in range(frames)])
    eye, axes = camera.view(scene, frames)
    found = {**path, "screen": camera.project(path["position"], eye, axes, width, height),
             "camera": {"eye": eye, "axes": axes, "focal": camera.focal(width, height)}}
    if masks:
        seen = torch.zeros(len(scene["objects"]) + 1, frames * height * width, device=device)  # the last one: a rope
        with torch.no_grad():
            _Picture([scene], width, height, frames, fps, device).objects(seen)
        found["masks"] = seen[:-1].reshape(-1, frames, height, width)
    return found


def _chosen(table, index):
    """Some columns of a table of objects."""
    return {name: values[index] if name == "corners" else values[..., index] for name, values in table.items()}


class _Picture:
    """The clips of some scenes while they are painted: planes [3, B, T, H, W]."""

    def __init__(self, scenes, width, height, frames, fps, device, grain=1.0):
        self.grain = grain
        self.width, self.height, self.frames, self.device = width, height, frames, device
        self.stage = stages.Stage(scenes, width, height, frames, fps, device)
        self.lights = self.stage.lights
        self.pixel = 1.0 / camera.focal(width, height)
        self.x = (torch.arange(width, device=device) + 0.5 - width / 2) * self.pixel
        self.y = (height / 2 - torch.arange(height, device=device) - 0.5)[:, None] * self.pixel
        self.wet = [scene["setting"] in ("water", "harbour") for scene in scenes]
        self.planes = torch.empty(3, len(scenes), frames, height, width, device=device)
        self.slopes = torch.zeros(2, len(scenes), frames, height, width, device=device) if any(self.wet) else None
        self.sky = Sky(self.stage.light_rows, scenes, width, height, device, grain)

    def clips(self):
        self.scenery()
        self.mirrored()
        self.shadows()
        self.objects()
        self.halos()
        self.particles()
        return self.planes.clamp_(0.0, 1.0).permute(1, 2, 0, 3, 4)

    def scenery(self):
        """Sky and what is below: scenes with the same kind of ground and camera at once."""
        groups = {}
        for i, scene in enumerate(self.stage.scenes):
            kind = "water" if self.wet[i] else "studio" if scene["setting"] == "studio" else "land"
            groups.setdefault((kind, scene["camera"] == "still"), []).append(i)
        for (kind, still), part in groups.items():
            self._scenery(torch.tensor(part, device=self.device), kind, still)

    def _scenery(self, part, kind, still):
        wet = kind == "water"
        count = 1 if still else self.frames
        scene = part.repeat_interleave(count)
        eye = self.stage.eye[part, :count].flatten(0, 1)[..., None, None]
        axes = self.stage.axes[part, :count].flatten(0, 1)
        dx, dy, dz = self._rays(axes)
        # the camera does not roll: the horizon is level, and one row divides the pictures
        lowest, highest = dy.amin((0, 2)), dy.amax((0, 2))
        sky_rows = max(1, int((highest > -self.pixel).sum()))
        ground_top = int((lowest > self.pixel).sum())
        top, bottom = slice(0, sky_rows), slice(ground_top, self.height)
        sky = self.sky.at(scene[:, None, None], dx[:, top], dy[:, top], dz[:, top])
        shape = (3, len(part), count)
        target = self.planes[:, part]
        target[:, :, :, top] = sky.reshape(*shape, sky_rows, self.width)
        rows = self.height - ground_top
        if rows:
            rays = dx[:, bottom], dy[:, bottom], dz[:, bottom]
            if wet and still:  # the waves move though the camera does not
                scene = part.repeat_interleave(self.frames)
                eye = eye.repeat_interleave(self.frames, 0)
                rays = [ray.repeat_interleave(self.frames, 0) for ray in rays]
            if wet:
                time = self.stage.times.repeat(len(part))[:, None, None]
                colour, _, slope_x, slope_z = ground.water(scene, self.lights, self.sky, eye, *rays, self.grain * self.pixel,
                                                         time)
                slopes = torch.stack((slope_x, slope_z)).reshape(2, len(part), self.frames, rows, self.width)
                self.slopes[:, part, :, bottom] = slopes
            elif kind == "studio":
                colour = ground.studio(scene, self.sky, *rays)
            else:
                colour, _ = ground.land(scene, self.lights, eye, *rays, self.grain * self.pixel)
            colour = colour.reshape(3, len(part), -1, rows, self.width)
            below = (0.5 - rays[1] / self.pixel).clamp(0.0, 1.0).reshape(len(part), -1, rows, self.width)
            blend = sky_rows - ground_top  # rows that have some of both
            if blend > 0:
                above = target[:, :, :colour.shape[2], ground_top:sky_rows]
                colour[:, :, :, :blend] = torch.lerp(above, colour[:, :, :, :blend], below[:, :, :blend])
            target[:, :, :, bottom] = colour
        self.planes[:, part] = target

    def _rays(self, axes):
        """Unit rays (three of [n, H, W]) of cameras [n, 3, 3]."""
        right, up, ahead = (axes[:, i, :, None, None] for i in range(3))
        norm = torch.rsqrt(self.x ** 2 + self.y ** 2 + 1.0)
        x, y = self.x * norm, self.y * norm
        return [right[:, i] * x + up[:, i] * y + ahead[:, i] * norm for i in range(3)]

    def _fragments(self, table, points, margin=1.5):
        """Fragments of boxes around points: table index [M], place in the planes [M], unit ray in camera axes."""
        entry, column, row = trace.fragments(self.stage.project(table, points), self.width, self.height, margin)
        place = (table["view"][entry] * self.height + row) * self.width + column
        x, y = self.x[column], self.y[row, 0]
        norm = torch.rsqrt(x * x + y * y + 1.0)
        return entry, place, (x * norm, y * norm, norm)

    def _below(self, table, entry, place, ray):
        """Where rays meet the ground: which do, world rays [3, m] and the points [3, m]."""
        axes = table["axes"][:, entry]
        d = torch.stack([axes[i] * ray[0] + axes[3 + i] * ray[1] + axes[6 + i] * ray[2] for i in range(3)])
        keep = (d[1] < -2e-3).nonzero()[:, 0]
        d, entry, place = d[:, keep], entry[keep], place[keep]
        far = table["from"][1, entry] / -d[1]
        return entry, place, d, far, table["from"][:, entry] + d * far

    def _local(self, table, entry, points, direction):
        """Points and unit directions [3, m] of the world in the space of objects."""
        rotation = table["rotation"][:, entry]
        back = rotation.reshape(3, 3, -1).transpose(0, 1).reshape(9, -1)
        return (trace.turned(back, *((points - table["position"][:, entry]) / table["unit"][entry])),
                trace.turned(back, *direction))

    def shadows(self):
        """Darken the ground where objects keep the key light from it, and where they nearly touch it."""
        planes = self.planes.reshape(3, -1)
        for kind, table in self.stage.kinds.items():
            if kind == "rope":
                continue
            sun = table["direction"].T[:, None]
            corners = table["corners"]
            flat = corners - sun * (corners[..., 1:2] / sun[..., 1:2]).clamp(0.0, 3.5)
            middle = table["position"].T[:, None]
            foot = (middle + 1.5 * (corners - middle)) * torch.tensor((1.0, 0.0, 1.0), device=self.device)
            near = (corners[..., 1].amin(1) < 0.5)[:, None, None]
            flat = flat + 0.12 * (flat - flat.mean(1, keepdim=True))
            points = torch.cat((flat, torch.where(near, foot, flat)), 1)
            entry, place, ray = self._fragments(table, points)
            entry, place, d, far, point = self._below(table, entry, place, ray)
            dry = torch.tensor(self.wet, device=self.device)[table["scene"][entry]].logical_not().nonzero()[:, 0]
            entry, place, far, point = entry[dry], place[dry], far[dry], point[:, dry]
            origin, direction = self._local(table, entry, point, table["direction"][:, entry])
            enters, leaves = trace.enter(kind, origin, direction, 0.22)
            close = trace.distance(kind, origin)
            keep = ((leaves > enters) | (close < 0.45)).nonzero()[:, 0]
            entry, place, far, enters, leaves, close, origin, direction = (
                part[..., keep] for part in (entry, place, far, enters, leaves, close, origin, direction))
            dark = trace.darkness(kind, origin, direction, enters, leaves) * (leaves > enters)
            touch = 0.45 * (1.0 - 2.2 * close.clamp_min(0.0)).clamp_min(0.0).square()
            key, ambient = table["key"][:, entry], table["ambient"][:, entry]
            direct = key * table["direction"][1, entry]
            share = direct / (direct + ambient)  # of the light on the ground that is the key's
            clear = torch.exp(-far * table["air"][entry])
            kept = (1.0 - dark * share * 1.05) * (1.0 - touch)
            planes.scatter_reduce_(1, place.expand(3, -1), torch.lerp(torch.ones_like(kept), kept, clear), "prod")

    def mirrored(self):
        """What water, wet ground and the studio's floor reflect of the objects."""
        planes = self.planes.reshape(3, -1)
        layers = []
        for kind, table in self.stage.kinds.items():
            mirror = torch.tensor((1.0, -1.0, 1.0), device=self.device)
            shiny = self.lights.values["shine"][table["scene"]]
            use = (shiny > 0).nonzero()[:, 0]
            if not len(use):
                continue
            table = _chosen(table, use)
            entry, place, ray = self._fragments(table, table["corners"] * mirror, 1.5 if self.slopes is None else 4.5)
            entry, place, d, far, point = self._below(table, entry, place, ray)
            if self.slopes is not None:
                slope = self.slopes.reshape(2, -1)[:, place]
            else:
                slope = torch.zeros(2, len(place), device=self.device)
            rx, ry, rz, share = ground.reflected(*d, *slope)
            bounced = torch.stack((rx, ry, rz))
            origin, direction = self._local(table, entry, point, bounced)
            layer = self._surface(kind, table, entry, place, origin, direction, far)
            if layer is None:
                continue
            wet = torch.tensor(self.wet, device=self.device)[layer["scene"]]
            shine = self.lights.values["shine"][layer["scene"]]
            strength = torch.where(wet, (0.12 + share[layer["chosen"]]).clamp_max(0.85),
                                   shine * 2.2 * torch.exp(-1.6 * layer["height"].clamp_min(0.0)))
            layer["alpha"] = layer["alpha"] * strength
            layers.append(layer)
        self._compose(layers, planes)

    def objects(self, masks=None):
        """Paint the objects, the far ones first; `masks` [K, pixels] of a single scene are filled in."""
        layers = []
        for kind, table in self.stage.kinds.items():
            entry, place, ray = self._fragments(table, table["corners"])
            d = trace.turned(table["to object"][:, entry], *ray)
            layer = self._surface(kind, table, entry, place, table["origin"][:, entry], d)
            if layer is not None:
                layers.append(layer)
        self._compose(layers, self.planes.reshape(3, -1), masks)

    def _surface(self, kind, table, entry, place, origin, d, before=None):
        """Trace rays given in object space and light what they meet; in a reflection, `before` [M] metres have been
        travelled already. Coverage, colour and depth of the fragments that met something, their indices `chosen`."""
        unit = table["unit"][entry]
        offset = 0.0 if before is None else before / unit
        pad = 1.5 * self.pixel * table["away"][entry] / unit + 0.01
        near, far = trace.enter(kind, origin, d, pad)
        chosen = (far > near).nonzero()[:, 0]
        if not len(chosen):
            return None
        origin, d, near, far = origin[:, chosen], d[:, chosen], near[chosen], far[chosen]
        offset = offset if before is None else offset[chosen]
        at, missed = trace.trace(kind, origin, d, near, far, self.pixel, offset, 1.0 if before is None else 0.7)
        keep = (missed < 1.0).nonzero()[:, 0]
        if not len(keep):
            return None
        chosen, at, missed = chosen[keep], at[keep], missed[keep]
        offset = offset if before is None else offset[keep]
        which = entry[chosen]
        row = {name: values[..., which] for name, values in table.items()
               if name not in ("corners", "axes", "to object", "origin", "from")}
        row["from"] = table["from"][:, which] if before is None else None
        foot = (at + offset) * self.pixel
        p = torch.addcmul(origin[:, keep], d[:, keep], at)
        n = trace.turned(row["rotation"], *trace.normal(kind, p, 0.8 * foot))
        ray = trace.turned(row["rotation"], *d[:, keep])
        way = at * row["unit"]
        if before is not None:  # light as if seen from where the ray was bounced
            row["from"] = row["position"] + trace.turned(row["rotation"], *origin[:, keep]) * row["unit"]
        colour = shade(kind, row, p, n, ray, way, foot, self.sky, mirrors=before is None)
        height = row["position"][1] + row["unit"] * (row["rotation"][3:6] * p).sum(0)
        depth = way if before is None else way + before[chosen]
        return {"place": place[chosen], "colour": colour, "alpha": 1.0 - missed, "depth": depth, "away": row["away"],
                "slot": row["slot"], "scene": row["scene"], "view": row["view"], "chosen": chosen, "height": height}

    def _compose(self, layers, planes, masks=None):
        """Lay fragments over the planes, nearer objects over farther ones, with a depth test where they cross."""
        if not layers:
            return
        joined = {name: torch.cat([layer[name] for layer in layers], -1) for name in
                  ("place", "colour", "alpha", "depth", "away", "slot", "view")}
        slots = 4
        away = torch.full((len(self.stage.scenes) * self.frames, slots), float("inf"), device=self.device)
        away[joined["view"], joined["slot"]] = joined["away"]
        rank = away.argsort(1, descending=True).argsort(1)[joined["view"], joined["slot"]]
        front = torch.full((planes.shape[1],), float("inf"), device=self.device)
        for number in range(slots):
            chosen = (rank == number).nonzero()[:, 0]
            if not len(chosen):
                continue
            place, depth, alpha = joined["place"][chosen], joined["depth"][chosen], joined["alpha"][chosen]
            alpha = alpha * (depth < front[place])
            planes[:, place] = torch.lerp(planes[:, place], joined["colour"][:, chosen], alpha)
            front[place] = torch.where(alpha > 0.5, depth, front[place])
            if masks is not None:
                masks[:, place] *= 1.0 - alpha
                masks[joined["slot"][chosen], place] += alpha

    def halos(self):
        """A soft glow around lanterns and lamps, stronger in the dark."""
        planes = self.planes.reshape(3, -1)
        for kind, (high, reach, strength) in SHINING.items():
            table = self.stage.kinds.get(kind)
            if table is None or not (bright := (table["night"] > 0.05).nonzero()[:, 0]).numel():
                continue
            table = _chosen(table, bright)
            rotation, unit = table["rotation"], table["unit"]
            middle = table["position"] + torch.stack([rotation[i] for i in (1, 4, 7)]) * (high * unit)
            points = middle.T[:, None] + trace.CORNERS.to(self.device) * (reach * unit)[:, None, None]
            entry, place, ray = self._fragments(table, points)
            axes = table["axes"][:, entry]
            d = torch.stack([axes[i] * ray[0] + axes[3 + i] * ray[1] + axes[6 + i] * ray[2] for i in range(3)])
            to = middle[:, entry] - table["from"][:, entry]
            along = (to * d).sum(0)
            apart = (to.square().sum(0) - along * along).clamp_min(0.0) / (reach * unit[entry]).square()
            warm = torch.tensor(WARM, device=self.device)[:, None]
            colour = torch.lerp(table["colour"][:, entry], warm, 0.35 if kind == "lantern" else 1.0)
            amount = strength * table["night"][entry] * (1.0 - apart).clamp_min(0.0) ** 2 * torch.exp(-3.0 * apart)
            planes.index_add_(1, place, colour * amount)

    def particles(self):
        for i, scene in enumerate(self.stage.scenes):
            kind = {"rain": weather.RAIN, "snow": weather.SNOW}.get(scene["weather"])
            if kind:
                alpha = weather.cover(kind, scene["seed"], self.stage.eye[i], self.stage.axes[i], self.stage.times,
                                      self.width, self.height, self.grain)
                light = self.lights.values["ambient"][i] * 0.75 + 0.25
                colour = (torch.tensor(kind["colour"], device=self.device) * light).clamp_max(1.0)[:, None, None, None]
                self.planes[:, i] = torch.lerp(self.planes[:, i], colour, alpha)
