"""Batches for the denoiser: cached latents with freshly drawn captions, and given (clean) frames."""

import random

import torch

from . import captions
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


class LatentData:
    """Random batches from the shards that exist; `refresh` takes in new ones."""

    def __init__(self, work, tokenizer, seed, device, caption_dropout=0.1):
        self.work, self.tokenizer, self.device = work, tokenizer, device
        self.dropout = caption_dropout
        self.rng = random.Random(seed)
        self.latents, self.scenes, self.next = load_shards(work)
        if self.latents is None:
            raise SystemExit("no latents in the work folder: run python -m training.make_latents first")

    def __len__(self):
        return len(self.scenes)

    def refresh(self):
        latents, described, self.next = load_shards(self.work, self.next)
        if latents is not None:
            self.latents = torch.cat([self.latents, latents])
            self.scenes += described

    def batch(self, count):
        """Latents [B, C, F, H, W] and token ids [B, L]; dropped captions are empty (only </s>)."""
        chosen = [self.rng.randrange(len(self.scenes)) for _ in range(count)]
        texts = ["" if self.rng.random() < self.dropout else captions.caption(self.scenes[i], self.rng)
                 for i in chosen]
        return (self.latents[chosen].float().to(self.device),
                encode(self.tokenizer, texts).to(self.device))


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
