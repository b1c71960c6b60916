"""Brand backgrounds: a flowing gradient, ripples, drifting lights. They loop: frame T is frame 0.

Everything moves by whole turns of a phase that goes once around during the clip, in pictures of any shape.
"""

import math
import random

import torch

from .objects import COLOUR
from .sky import smooth

TURNS = {"slow": 1, "fast": 2}


def _colours(scene):
    """Four colours, from the deepest to the brightest, of a scene of one or two named ones."""
    first = COLOUR[scene["colours"][0]]
    second = COLOUR[scene["colours"][-1]]
    if len(scene["colours"]) == 1:  # the same colour, paler and a little warmer
        second = tuple(c + (1.0 - c) * 0.5 for c in first)
    if scene["tone"] == "dark":
        deep = tuple(0.15 * c + 0.015 for c in first)
        bright = tuple(0.5 * c + 0.5 for c in second)
        return deep, tuple(0.85 * c for c in first), tuple(0.85 * c for c in second), bright
    pale = tuple(0.86 + 0.14 * c for c in second)
    return pale, tuple(0.25 + 0.75 * c for c in first), tuple(0.25 + 0.75 * c for c in second), (1.0, 1.0, 1.0)


def render(scenes, width, height, frames, device="cpu", first=0, period=None):
    """Clips [B, T, 3, H, W]; frame i shows the phase (first + i) / frames, or, of clips of `period` frames, `frames` at
    equal distances from the first to the last."""
    period, every = period or frames, 1 if period is None else (period - 1) / max(frames - 1, 1)
    turn = math.tau * ((torch.arange(frames, device=device) * every + first) % period) / period
    short = min(width, height)
    x = ((torch.arange(width, device=device) + 0.5 - width / 2) / short).expand(height, width)
    y = ((torch.arange(height, device=device) + 0.5 - height / 2) / short)[:, None].expand(height, width)
    clips = []
    for scene in scenes:
        palette = torch.tensor(_colours(scene), device=device)[:, :, None, None]
        t = turn[:, None, None] * TURNS[scene["pace"]]
        paint = {"gradient": _gradient, "ripples": _ripples, "lights": _lights}[scene["style"]]
        clips.append(paint(x, y, t, palette, random.Random(scene["seed"]), scene["tone"] == "dark"))
    return torch.stack(clips).clamp(0.0, 1.0)


def _mix(a, b, t):
    return torch.lerp(a, b, t[:, None])


def _gradient(x, y, t, palette, rng, dark):
    """Two colours that flow into each other along bent bands, with a sheen."""
    angle, a, b, c = (rng.uniform(0, math.tau) for _ in range(4))
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    bend = 0.28 * torch.sin(2.6 * v + a + t) + 0.16 * torch.sin(4.7 * u - 1.9 * v + b - t)
    bend = bend + 0.10 * torch.sin(6.1 * v + c + t)
    field = 0.5 + 0.5 * torch.sin(3.0 * (u + bend) + a)
    sheen = 0.5 + 0.5 * torch.sin(4.2 * (v - 0.7 * bend) + b + t)
    picture = _mix(palette[1], palette[2], smooth(field))
    depth = smooth(1.25 * sheen - 0.15)
    picture = _mix(picture, palette[0], (0.66 if dark else 0.40) * (1 - depth))
    return _mix(picture, palette[3], 0.30 * smooth(sheen * field * 2.0 - 0.9))


def _ripples(x, y, t, palette, rng, dark):
    """Rings that run outward from two points and cross, lit like water."""
    light = 0.0
    for i in range(2):
        cx, cy = rng.uniform(-0.45, 0.45), rng.uniform(-0.4, 0.4)
        far = ((x - cx) ** 2 + (y - cy) ** 2 + 0.004).sqrt()
        k = (30.0, 24.0)[i]
        wave = torch.cos(k * far - t + rng.uniform(0, math.tau)) / (1.0 + 2.2 * far)
        light = light + wave * (0.75, 0.55)[i]
    across = rng.uniform(-0.5, 0.5)
    base = smooth(0.5 + 0.55 * (y + across * x) + 0.10 * torch.sin(t) + 0.10 * light)
    picture = _mix(palette[1], palette[2], base)
    picture = _mix(picture, palette[0], (0.72 if dark else 0.55) * smooth(0.45 - 0.75 * light))
    return _mix(picture, palette[3], 0.85 * smooth(light * 1.1 - 0.35))


def _lights(x, y, t, palette, rng, dark):
    """Soft discs out of focus that drift on small circles before a dim gradient."""
    base = smooth(0.5 + 0.45 * y + 0.12 * torch.sin(2.0 * x + t))
    back = _mix(palette[0], torch.lerp(palette[0], palette[1], 0.38 if dark else 0.55), base)
    across, down = x[0].cpu(), y[:, 0].cpu()
    reach_x, reach_y = float(across.max()), float(down.max())
    for i in range(22):
        cx, cy = rng.uniform(-1.05, 1.05) * reach_x, rng.uniform(-1.05, 1.05) * reach_y
        size = rng.uniform(0.035, 0.15)
        phase, far = rng.uniform(0, math.tau), rng.uniform(0.03, 0.11)
        strength = rng.uniform(0.25, 0.75) * (0.5 if size > 0.1 else 1.0)
        sign = rng.choice((-1, 1))
        # only the part of the picture that the disc comes near
        reach = far + 2.4 * size
        columns = slice(*((across > cx - reach) & (across < cx + reach)).nonzero()[[0, -1], 0].tolist())
        rows = slice(*((down > cy - reach) & (down < cy + reach)).nonzero()[[0, -1], 0].tolist())
        px, py = cx + far * torch.cos(phase + sign * t), cy + far * torch.sin(phase + sign * t)
        apart = ((x[rows, columns] - px) ** 2 + (y[rows, columns] - py) ** 2).sqrt()
        disc = smooth((size - apart) / (0.30 * size) + 0.5) * (0.75 + 0.25 * apart / size)
        glow = 0.30 * (1.0 - (apart / (2.4 * size)) ** 2).clamp_min(0.0) ** 3
        pulse = 0.8 + 0.2 * torch.sin(t + phase)
        colour = torch.lerp(palette[1 + i % 2], palette[3], 0.15 if not dark else 0.25)
        amount = ((disc + glow * (1 - disc)) * strength * pulse)[:, None]
        behind = back[:, :, rows, columns]
        # before the dark, lights add up
        back[:, :, rows, columns] = behind + amount * (colour * (1 - behind) if dark else colour - behind)
    return back
