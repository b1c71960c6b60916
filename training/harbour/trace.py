"""From boxes on the screen to lists of fragments, and from rays to surfaces, by sphere tracing in object space.

Work is done on flat lists of fragments, all objects of one kind in all frames of all scenes at once: [M] and [3, M].
"""

import torch

from .objects import STEPS, distance
from .physics import BOX

CORNERS = torch.tensor([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


def box(kind):
    """Half sizes of the box around a kind, in its unit."""
    return BOX.get(kind, (0.03, 0.51, 0.03))


def fragments(screen, width, height, margin):
    """The pixels of the boxes around projected points [E, P, 3]: index of the box [M], column [M] and row [M]."""
    low, high = screen[..., :2].amin(1), screen[..., :2].amax(1)
    limit = torch.tensor([width, height], device=screen.device)
    start = (low - margin).floor().clamp_min(0).minimum(limit).long()
    size = ((high + margin).ceil().clamp_min(0).minimum(limit).long() - start).clamp_min(0)
    # what lies behind the camera is not drawn
    size = size * (screen[..., 2].amax(1) > 0.3).long()[:, None]
    count = size[:, 0] * size[:, 1]
    entry = torch.repeat_interleave(torch.arange(len(screen), device=screen.device), count)
    first = count.cumsum(0) - count
    inside = torch.arange(len(entry), device=screen.device) - first[entry]
    wide = size[:, 0][entry]
    row = torch.div(inside, wide, rounding_mode="floor")
    return entry, start[:, 0][entry] + inside - row * wide, start[:, 1][entry] + row


def turned(matrix, x, y, z):
    """Rows of matrices [9, M] times vectors: [3, M]."""
    return torch.stack([matrix[3 * i] * x + matrix[3 * i + 1] * y + matrix[3 * i + 2] * z for i in range(3)])


def enter(kind, origin, direction, pad):
    """Where rays [3, M] enter and leave the box of a kind, enlarged by `pad`; they miss it where near >= far."""
    half = torch.tensor(box(kind), device=origin.device)[:, None] + pad
    inverse = 1.0 / torch.where(direction.abs() < 1e-6, 1e-6, direction)
    middle, spread = -origin * inverse, half * inverse.abs()
    return (middle - spread).amax(0).clamp_min(0.0), (middle + spread).amin(0)


def trace(kind, origin, direction, near, far, pixel, offset=0.0, effort=1.0):
    """Follow rays from `near` to `far`. Returns where they are closest to the surface, measured in pixels, and that
    distance in pixels, 0 on the surface. A pixel is `pixel` * (way + `offset`) object units wide, `effort` scales the
    number of steps."""
    steps = int(STEPS[kind] * effort)
    best = torch.full_like(near, 1e4)
    t, at, best = _march(kind, origin, direction, near, far, pixel, offset, near, best, steps // 2)
    # few rays are still on their way: those that graze something
    late = ((t < far) & (best > 0.05)).nonzero()[:, 0]
    part = [value[..., late] if torch.is_tensor(value) else value
            for value in (origin, direction, t, far, pixel, offset, at, best)]
    _, at[late], best[late] = _march(kind, *part, steps - steps // 2)
    return at, best.clamp_min(0.0)


def _march(kind, origin, direction, t, far, pixel, offset, at, best, steps):
    """Sphere tracing from `t` on; `at` and `best` keep the closest approach so far and its distance in pixels."""
    for _ in range(steps):
        gap = distance(kind, torch.addcmul(origin, direction, t))
        ratio = gap / ((t + offset) * pixel)
        at = torch.where(ratio < best, t, at)
        best = torch.minimum(best, ratio)
        t = torch.minimum(t + gap, far)
    return t, at, best


def normal(kind, p, size):
    """Unit normals [3, M], smoothed over `size` [M], which takes the jaggedness from edges inside an object."""
    size = size.clamp_min(0.004)
    total = torch.zeros_like(p)
    for signs in ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0)):
        corner = torch.tensor(signs, device=p.device)[:, None]
        total += corner * distance(kind, p + corner * size)
    return total / total.square().sum(0).sqrt().clamp_min(1e-6)


def darkness(kind, origin, direction, near, far, spread=0.14):
    """How much of the light from `direction` an object keeps from points [3, M] outside it, 0..1, with soft edges."""
    t, best = near, torch.ones_like(near)
    for _ in range(8):
        gap = distance(kind, torch.addcmul(origin, direction, t))
        best = torch.minimum(best, gap / (spread * t + 0.03))
        t = torch.minimum(t + gap.clamp_min(0.02), far)
    soft = (1.0 - best).clamp(0.0, 1.0)
    return soft * soft * (3.0 - 2.0 * soft)
