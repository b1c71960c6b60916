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


def line(time, along):
    """Slope of the line through positions, and the sum of squares it leaves."""
    columns = torch.stack((torch.ones_like(time), time), 1)
    found = torch.linalg.lstsq(columns, along[:, None]).solution
    return found[1].item(), (columns @ found - along[:, None]).square().sum().item()


def momentum_change(places, areas, masses):
    """Change of momentum in a collision over all the momentum there was, from two positions [T] along a line.

    0 when it is conserved. Speeds are slopes before and after the contact, which is where lines fit both bodies best.
    Frames in which a body is partly hidden or out of the picture are left out.
    """
    time = torch.arange(len(places[0]), dtype=places[0].dtype)
    whole = [area > 0.85 * area.median() for area in areas]
    best = None
    for contact in range(3, len(time) - 3):
        error, speeds = 0.0, []
        for along, seen in zip(places, whole):
            for part in (seen & (time < contact), seen & (time > contact)):
                if part.sum() < 2:
                    break
                slope, rest = line(time[part], along[part])
                speeds.append(slope)
                error += rest
        if len(speeds) == 4 and (best is None or error < best[0]):
            best = error, speeds
    if best is None:
        return None
    (a, after_a, b, after_b), (one, two) = best[1], masses
    there_was = one * abs(a) + two * abs(b)
    return abs(one * (after_a - a) + two * (after_b - b)) / there_was if there_was > 0 else None


def constancy(values, area):
    """Spread over mean of an object's values [T] while it is seen; 0 is constant."""
    seen = values[area > SEEN]
    return (seen.std() / seen.mean().abs().clamp_min(1e-6)).item() if len(seen) > 2 else None


def permanence(area):
    """Whether an object that passes behind another is there before and again after."""
    usual = area.max()
    return bool(usual > SEEN and area[:3].max() > 0.4 * usual and area[-3:].max() > 0.4 * usual)
