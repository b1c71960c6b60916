"""Batches for the denoiser: cached latents with freshly drawn captions, and given (clean) frames."""

import math
import random

import torch

from . import captions, presets, scenes, world
from .make_latents import load_shards

TOKENS = 28  # longest caption of the grammar, with </s>, fits


def encode(tokenizer, texts, length=TOKENS):
    """Token ids [B, length] padded with 0."""
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in enumerate(texts):
        got = tokenizer.encode(text).ids
        if len(got) > length:
            raise ValueError(f"{len(got)} tokens, at most {length}: {text!r}")
        ids[row, :len(got)] = torch.tensor(got)
    return ids


def object_weights(described, latents, weight):
    """Loss weights [N, 1, F, h, w]: `weight` where the object is during the latent frame, 1 elsewhere.

    The object fills few cells; without weights it is what the model learns
    last. Weights do not move the optimum of the loss, a mean for every element.
    """
    video = presets.VIDEO
    count, rows, columns = latents.shape[2:]
    p = world.parameters(described, video["frames"], video["width"], video["height"])
    cos, sin, x, y, z, radius = p[..., :6].unbind(-1)
    side, ahead = x * cos - z * sin, x * sin + z * cos
    tilt_cos, tilt_sin = math.cos(world.PITCH), math.sin(world.PITCH)
    scale = world.FOCAL * rows / (y * tilt_sin + ahead * tilt_cos)
    u, v = columns / 2 + side * scale, rows / 2 - (y * tilt_cos - ahead * tilt_sin) * scale
    grid_v, grid_u = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    far = torch.maximum((grid_u - u[..., None, None]).abs(), (grid_v - v[..., None, None]).abs())
    near = (far < (radius * scale + 0.6)[..., None, None]).float()
    # frame 0 makes latent frame 0, each later latent frame stands for four frames
    near = torch.cat([near[:, :1], near[:, 1:].unflatten(1, (count - 1, -1)).amax(2)], 1)
    return (1 + (weight - 1) * near)[:, None].half()


def attribute_indices(described):
    """Every attribute of every scene as its index in scenes.ATTRIBUTES: [N, 7]."""
    return torch.tensor([[values.index(scene[name]) for name, values in scenes.ATTRIBUTES.items()]
                         for scene in described])


class LatentData:
    """Random batches from the shards that exist; `refresh` takes in new ones."""

    def __init__(self, work, tokenizer, seed, device, caption_dropout=0.1, object_weight=5.0):
        self.work, self.tokenizer, self.device = work, tokenizer, device
        self.dropout, self.weight = caption_dropout, object_weight
        self.rng = random.Random(seed)
        self.latents, self.scenes, self.next = load_shards(work)
        if self.latents is None:
            raise SystemExit("no latents in the work folder: run python -m training.make_latents first")
        self.weights = object_weights(self.scenes, self.latents, self.weight)
        self.attributes = attribute_indices(self.scenes)

    def __len__(self):
        return len(self.scenes)

    def refresh(self):
        latents, described, self.next = load_shards(self.work, self.next)
        if latents is not None:
            self.latents = torch.cat([self.latents, latents])
            self.scenes += described
            self.attributes = torch.cat([self.attributes, attribute_indices(described)])
            self.weights = torch.cat([self.weights, object_weights(described, latents, self.weight)])

    def batch(self, count):
        """Latents [B, C, F, H, W], token ids [B, L], loss weights [B, 1, F, H, W], attributes [B, 7]; dropped captions are empty (only </s>)."""
        chosen = [self.rng.randrange(len(self.scenes)) for _ in range(count)]
        texts = ["" if self.rng.random() < self.dropout else captions.caption(self.scenes[i], self.rng)
                 for i in chosen]
        return (self.latents[chosen].float().to(self.device),
                encode(self.tokenizer, texts).to(self.device), self.weights[chosen].float().to(self.device),
                self.attributes[chosen].to(self.device))


def given_frames(count, frames, share, rng):
    """Mask [B, F], true where a latent frame is given: first, last, both or a prefix, for `share` of the rows."""
    mask = torch.zeros(count, frames, dtype=torch.bool)
    for row in range(count):
        if rng.random() >= share:
            continue
        kind = rng.choice(("first", "first", "last", "both", "prefix"))
        if kind in ("first", "both"):
            mask[row, 0] = True
        if kind in ("last", "both"):
            mask[row, -1] = True
        if kind == "prefix":
            mask[row, :rng.randrange(1, frames)] = True
    return mask


def shifted(sigma, shift):
    return shift * sigma / (1 + (shift - 1) * sigma)
