"""Rain and falling snow: drops and flakes that keep their place in the world from frame to frame."""

import functools

import torch

from .camera import focal

SPACE = ((-4.0, 4.0), (0.0, 4.4), (-3.4, 4.0))  # metres filled with particles; they wrap around in height
NEAREST = 1.7  # metres from the eye; nothing nearer is drawn
RAIN = {"count": 300, "speed": 7.5, "wind": 0.9, "length": 0.20, "radius": 0.007,
        "colour": (0.86, 0.90, 0.96), "strength": 0.50}
SNOW = {"count": 320, "speed": 0.95, "wind": 0.25, "length": 0.0, "radius": 0.021,
        "colour": (1.0, 1.0, 1.0), "strength": 0.95}


@functools.lru_cache
def _seeds(count, device):
    return torch.rand(5, count, generator=torch.Generator().manual_seed(23)).to(device)


def coarser(kind, grain):
    """Fewer and wider particles that cover about as much of the picture."""
    return {**kind, "count": round(kind["count"] / grain), "radius": kind["radius"] * grain ** 0.5,
            "length": kind["length"] * grain ** 0.5}


def cover(kind, seed, eye, axes, times, width, height, grain=1.0):
    """Opacity [T, H, W] of rain or snow of one scene: eye [T, 3], axes [T, 3, 3], times [T] in seconds."""
    kind = coarser(kind, grain)
    dice = _seeds(kind["count"], eye.device)
    shift = (seed % 97) / 97.0
    spans = [b - a for a, b in SPACE]
    t = times[:, None]
    speed = kind["speed"] * (0.8 + 0.4 * dice[3])
    x = SPACE[0][0] + spans[0] * ((dice[0] + shift + kind["wind"] * t / spans[0]) % 1.0)
    y = SPACE[1][0] + spans[1] * ((dice[1] - speed * t / spans[1]) % 1.0)
    z = SPACE[2][0] + spans[2] * dice[2] + torch.zeros_like(x)
    if not kind["length"]:
        x = x + 0.10 * torch.sin(2.1 * t + 6.28 * dice[4])
    scale = focal(width, height)
    right, up, ahead = (axes[:, None] @ (torch.stack((x, y, z), -1) - eye[:, None])[..., None])[..., 0].unbind(-1)
    near = scale / ahead.clamp_min(NEAREST)
    u, v = width / 2 + right * near, height / 2 - up * near
    size = (kind["radius"] * near).clamp_min(0.62)
    # small far ones are faint
    weight = kind["strength"] * (kind["radius"] * near / 0.62).clamp(0.30, 1.0)
    weight = weight / (1.0 + (ahead - 3.0).clamp_min(0.0) * 0.12)
    frame = torch.arange(len(times), device=eye.device)[:, None].expand_as(u)
    seen = (ahead > NEAREST) & (u > -9) & (u < width + 9) & (v > -9) & (v < height + 9 + kind["length"] * near)
    seen = seen.nonzero(as_tuple=True)
    u, v, size, weight, frame, near = (part[seen] for part in (u, v, size, weight, frame, near))

    # pixels around every particle: rows [R, 1, 1] and columns [C, 1] of them
    wide = 1 if kind["length"] else int(1.8 * kind["radius"] * scale / NEAREST) + 1
    tall = int(kind["length"] * scale / NEAREST) + 1 if kind["length"] else wide
    row = torch.arange(-tall, 1 if kind["length"] else wide + 1, device=eye.device)[:, None, None] + v.floor()
    if kind["length"]:  # a slanted streak upwards from the drop: how much of the row it fills, where it crosses it
        middle = u - (v - row - 0.5) * (kind["wind"] / kind["speed"])
        fills = (torch.minimum(v, row + 1.0) - torch.maximum(v - kind["length"] * near, row)).clamp_min(0.0)
    else:
        middle, fills = u, torch.exp(-0.9 * ((row + 0.5 - v) / size).square())
    column = torch.arange(-wide, wide + 1, device=eye.device)[:, None] + middle.floor()
    part = weight * fills * torch.exp(-0.9 * ((column + 0.5 - middle) / size).square())
    place = (frame * height + row.long()) * width + column.long()
    inside = (part > 0.02) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    inside = inside.reshape(-1).nonzero()[:, 0]
    plane = torch.zeros(len(times) * height * width, device=eye.device)
    plane.index_add_(0, place.expand_as(part).reshape(-1)[inside], part.reshape(-1)[inside])
    return plane.clamp_max(kind["strength"] + 0.05).reshape(len(times), height, width)
