"""Euler sampling of the velocity model, with or without guidance, from the portable noise."""

import torch

from . import presets
from .data import empty, encode, shifted
from .noise import normal


def latent_shape(size=None):
    """[C, F, h, w] of a clip of `size` (width, height), the model's first one if absent."""
    width, height = presets.padded(size or presets.VIDEO["sizes"][0])
    frames, cell = presets.VIDEO["frames"], presets.cell()
    return (presets.AUTOENCODER["latent_channels"], (frames + 3) // 4, height // cell, width // cell)


def seeded_noise(seeds, device="cpu", size=None):
    return torch.stack([torch.from_numpy(normal(seed, 0, latent_shape(size))) for seed in seeds]).to(device)


def schedule(steps, shift):
    """Sigmas from 1 down, the final 0 left out."""
    return [shifted(1 - i / steps, shift) for i in range(steps)]


def guided(model, latents, sigmas, ids, guidance):
    """Velocity with classifier-free guidance; 1 means the captioned velocity alone."""
    if guidance == 1:
        return model(latents, sigmas, ids)
    both = model(torch.cat([latents, latents]), torch.cat([sigmas, sigmas]), torch.cat([ids, empty(ids)])).float()
    captioned, free = both.chunk(2)
    return free + guidance * (captioned - free)


@torch.no_grad()
def sample(model, tokenizer, prompts, seeds, sigmas, guidance=1.0, device="cpu", batch=16, size=None):
    """Latents [N, C, F, H, W] of prompts by Euler steps over `sigmas` and 0."""
    out = []
    for i in range(0, len(prompts), batch):
        ids = encode(tokenizer, prompts[i:i + batch]).to(device)
        x = seeded_noise(seeds[i:i + batch], device, size)
        for s, after in zip(sigmas, [*sigmas[1:], 0.0]):
            level = torch.full((len(x), x.shape[2]), s, device=device)
            x = x + guided(model, x, level, ids, guidance) * (after - s)
        out.append(x)
    return torch.cat(out)
