"""A batch of scenes as tensors: cameras, objects and lights in every frame, and `truth`, the same for one scene."""

import torch

from . import camera, lights as lighting, objects, physics, trace

FLAT = ("key", "ambient", "bounce", "direction", "haze", "air", "night")  # of the light, what surfaces need


class Lights:
    """Numbers of the light of every scene, to be looked up by scene."""

    def __init__(self, rows, device):
        self.values = {name: torch.tensor([row[name] for row in rows], device=device) for name in
                       (*FLAT, "sky", "low", "high_ground", "weights", "water", "shine", "fade")}
        # which ground textures occur at all, known without asking the device
        self.used = {"weights": torch.tensor([row["weights"] for row in rows]).any(0)}

    def get(self, name, scene):
        """[3, n, 1, 1] of a colour or [n, 1, 1] of a number, for the scenes [n]."""
        return self.values[name][scene].movedim(0, -1)[..., None, None]

    def pair(self, one, two, scene):
        return self.get(one, scene), self.get(two, scene)


def ropes(scene, path):
    """The rope of a pendulum as an object of its own: position [T, 3], rotation [T, 3, 3] and length in metres."""
    thing = scene["objects"][0]
    top = physics.BOX[thing["kind"]][1] * physics.RADIUS[thing["size"]] - 0.02
    length = physics.ROPE - top
    upward = path["rotation"][0][..., 1]
    return path["position"][0] + upward * (top + length / 2), path["rotation"][0], length


class Stage:
    """Cameras [B, T, ...] and, by kind, lists of objects: scene [n], position [n, T, 3], rotation [n, T, 3, 3], ..."""

    def __init__(self, scenes, width, height, frames, fps, device):
        self.scenes, self.width, self.height, self.frames, self.device = scenes, width, height, frames, device
        times = [i / fps for i in range(frames)]
        self.times = torch.tensor(times, device=device)
        self.paths = [physics.trajectory(scene, times) for scene in scenes]
        eyes, axes = zip(*(camera.view(scene, frames) for scene in scenes))
        self.eye, self.axes = (torch.stack(part).float().to(device) for part in (eyes, axes))
        rows = [lighting.light(scene) for scene in scenes]
        self.light_rows, self.lights = rows, Lights(rows, device)
        found = {}
        for b, (scene, path) in enumerate(zip(scenes, self.paths)):
            for slot, thing in enumerate(scene["objects"]):
                unit = physics.RADIUS[thing["size"]]
                others = [k for k in range(len(scene["objects"])) if k != slot]
                start = path["position"][:, 0]
                other = min(others, key=lambda k: float((start[k] - start[slot]).norm()), default=None)
                neighbour = path["position"][other] if other is not None else path["position"][slot] + 50.0
                size = 0.9 * physics.RADIUS[scene["objects"][other]["size"]] if other is not None else 0.0
                found.setdefault(thing["kind"], []).append((
                    b, slot, path["position"][slot], path["rotation"][slot], unit, objects.COLOUR[thing["colour"]],
                    float(thing["material"] == "glossy"), float(thing["material"] == "metal"), neighbour, size))
            if scene["motion"] == "swings":
                position, rotation, length = ropes(scene, path)
                found.setdefault("rope", []).append((b, len(scene["objects"]), position, rotation, length,
                                                     (0.0, 0.0, 0.0), 0.0, 0.0, position + 50.0, 0.0))
        self.kinds = {kind: self._table(kind, rows) for kind, rows in found.items()}

    def _table(self, kind, rows):
        """One column for every object and frame: a dictionary of [E] and [3, E], and the corners of the boxes."""
        scene, slot, position, rotation, unit, colour, gloss, metal, neighbour, size = zip(*rows)
        frames, device = self.frames, self.device

        def each(values):  # the same in every frame
            return torch.tensor(values, device=device).repeat_interleave(frames, 0).movedim(0, -1)

        def every(values):
            return torch.cat(list(values)).float().to(device)

        index = torch.tensor(scene, device=device).repeat_interleave(frames)
        view = index * frames + torch.arange(frames, device=device).repeat(len(rows))
        position, rotation, unit = every(position), every(rotation), each(unit)
        eye, axes = self.eye.flatten(0, 1)[view], self.axes.flatten(0, 1)[view]
        corners = trace.CORNERS.to(device) * torch.tensor(trace.box(kind), device=device) * unit[:, None, None]
        table = {"scene": index, "view": view, "slot": each(slot), "unit": unit, "colour": each(colour),
                 "gloss": each(gloss), "metal": each(metal), "neighbour": every(neighbour).T,
                 "neighbour size": each(size),
                 "from": eye.T.contiguous(), "position": position.T.contiguous(),
                 "rotation": rotation.flatten(1).T.contiguous(), "axes": axes.flatten(1).T.contiguous(),
                 "away": (position - eye).norm(dim=1)}
        table.update({name: self.lights.values[name][index].movedim(0, -1) for name in FLAT})
        table["corners"] = position[:, None] + (rotation[:, None] @ corners[..., None])[..., 0]
        # the ray through a pixel, from camera to object axes, and the eye in object space
        table["to object"] = (rotation.mT @ axes.mT).flatten(1).T.contiguous()
        table["origin"] = ((rotation.mT @ (eye - position)[..., None])[..., 0] / unit[:, None]).T.contiguous()
        return table

    def project(self, table, points):
        """Screen positions [E, P, 3] of points [E, P, 3]."""
        view = table["view"]
        return camera.project(points, self.eye.flatten(0, 1)[view][:, None], self.axes.flatten(0, 1)[view][:, None],
                              self.width, self.height)
