"""Physics measured from clips by tracking: gravity, restitution, momentum, constancy and permanence of objects.

Every estimator takes what `tracking.track` found, in metres on the stage where it needs metres, and returns None where
the clip does not show what it measures.
"""

import torch

SEEN = 12.0  # pixels of an object that count as seen


def gravity(height, area, fps):
    """m/s² from the heights [T] (metres) of an object that is released at rest in frame 0, until it lands."""
    lowest = height.min()
    drop = height[0] - lowest
    if drop < 0.3 or area[0] < SEEN:
        return None
    # the frames before it is near the ground for the first time
    count = int((height < lowest + 0.12 * drop).float().argmax())
    if count < 3 or (area[:count] < SEEN).any():
        return None
    time = torch.arange(count, dtype=height.dtype) / fps
    columns = torch.stack((torch.ones_like(time), -0.5 * time * time), 1)
    solution = torch.linalg.lstsq(columns, height[:count, None]).solution
    return solution[1].item()


def restitution(height, area):
    """Share of the speed that the first bounce leaves, from the heights [T] of the drop and of the rebound."""
    lowest = height.min()
    drop = height[0] - lowest
    if drop < 0.3 or (area < SEEN).any():
        return None
    landed = int((height < lowest + 0.2 * drop).float().argmax())
    rebound = height[landed:].max() - lowest
    return (rebound / drop).clamp_min(0).sqrt().item()


def speeds(along):
    """Speeds before and after the sharpest change of a position [T], metres a frame, from a line on either side."""
    best = None
    for split in range(4, len(along) - 4):
        error, slopes = 0.0, []
        for part in (along[:split], along[split:]):
            time = torch.arange(len(part), dtype=along.dtype)
            columns = torch.stack((torch.ones_like(time), time), 1)
            line = torch.linalg.lstsq(columns, part[:, None]).solution
            error += (columns @ line - part[:, None]).square().sum().item()
            slopes.append(line[1].item())
        if best is None or error < best[0]:
            best = (error, *slopes)
    return best[1:]


def momentum_kept(first, second, masses):
    """Momentum after over before of two bodies with positions [T] along their line; 1 when it is conserved."""
    before = after = 0.0
    for along, mass in zip((first, second), masses):
        one, other = speeds(along)
        before, after = before + mass * one, after + mass * other
    return after / before if abs(before) > 1e-3 * sum(masses) else None


def constancy(values, area):
    """Spread over mean of an object's values [T] while it is seen; 0 is constant."""
    seen = values[area > SEEN]
    return (seen.std() / seen.mean().abs().clamp_min(1e-6)).item() if len(seen) > 2 else None


def permanence(area):
    """Whether an object that passes behind another is there before and again after."""
    usual = area.max()
    return bool(usual > SEEN and area[:3].max() > 0.4 * usual and area[-3:].max() > 0.4 * usual)
