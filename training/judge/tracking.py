"""Where a coloured object is in every frame, found by its tint alone."""

import torch

TINT, STRENGTH = 0.86, 0.25  # cosine to the colour's tint, and share of its strength, that count as the object


def tint_mask(clip, rgb):
    """How much each pixel of a clip [T, 3, H, W] has the tint of `rgb`, 0..1: [T, H, W]. Grey has no tint."""
    reference = torch.tensor(rgb, dtype=clip.dtype)
    reference = reference - reference.mean()
    strength = reference.norm()
    tint = clip - clip.mean(1, keepdim=True)
    along = torch.einsum("tchw,c->thw", tint, reference / strength)
    alike = along / tint.norm(dim=1).clamp_min(1e-4)
    return ((alike - TINT) / 0.06).clamp(0, 1) * ((along / strength - STRENGTH) / 0.15).clamp(0, 1)


def track(clip, rgb):
    """Centre in pixels (u, v) [T, 2], area in pixels [T] and mean colour [T, 3] of the object tinted like `rgb`."""
    mask = tint_mask(clip, rgb)
    area = mask.sum((1, 2))
    rows = torch.arange(clip.shape[2]) + 0.5
    columns = torch.arange(clip.shape[3]) + 0.5
    weight = area.clamp_min(1e-4)
    u, v = (mask.sum(1) * columns).sum(1) / weight, (mask.sum(2) * rows).sum(1) / weight
    colour = torch.einsum("thw,tchw->tc", mask, clip) / weight[:, None]
    return torch.stack((u, v), 1), area, colour


def flicker(clip):
    """Mean over pixels of the second difference in time, 0..1: what neither rests nor changes evenly."""
    return (clip[2:] - 2 * clip[1:-1] + clip[:-2]).abs().mean().item()
