"""Those whose clips are judged side by side: renders, the teacher, students, packed models."""

import json

import torch

from .. import presets, sampling, shards, worlds
from ..autoencoder import Autoencoder
from ..make_latents import load_autoencoder
from ..model import TextToVideo

BATCH = 16


class Renders:
    """What the world really looks like; calibrates every figure."""

    name, steps = "renders", None

    def clips(self, prompts, described, seeds, size=None):
        parts = [worlds.clips(described[i:i + BATCH], eager=True, size=size) for i in range(0, len(described), BATCH)]
        return torch.cat(parts)


class Generator:
    """A denoiser and a decoder, sampled by Euler steps over `sigmas`."""

    def __init__(self, name, tokenizer, weights, autoencoder, sigmas, guidance=1.0):
        self.name, self.tokenizer, self.autoencoder = name, tokenizer, autoencoder.eval().requires_grad_(False)
        self.sigmas, self.guidance, self.steps = sigmas, guidance, len(sigmas)
        self.model = TextToVideo(tokenizer.get_vocab_size())
        self.model.load_state_dict(weights)
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def clips(self, prompts, described, seeds, size=None):
        latents = sampling.sample(self.model, self.tokenizer, list(prompts), list(seeds), self.sigmas, self.guidance,
                                  batch=BATCH, size=size)
        return torch.cat([self.autoencoder.decode(z[None]) for z in latents]).clamp(0, 1)


def teacher(work, tokenizer, steps, guidance):
    weights = torch.load(work / "teacher.pt", map_location="cpu")
    weights = {name: value.float() for name, value in weights.items()}
    return Generator(f"teacher, {steps} steps, guidance {guidance:g}", tokenizer, weights,
                     load_autoencoder(work, "cpu"), sampling.schedule(steps, 3.0), guidance)


def student(work, tokenizer, name="student"):
    sigmas = json.loads((work / f"{name}.json").read_text())["sigmas"]
    return Generator(f"{name}, {len(sigmas)} steps", tokenizer, torch.load(work / f"{name}.pt", map_location="cpu"),
                     load_autoencoder(work, "cpu"), sigmas)


def packed(folder, tokenizer):
    """A packed model, with the rounding of its shards."""
    manifest, tensors = shards.load(folder)
    decoder, weights = shards.parts(tensors)
    autoencoder = Autoencoder(manifest["autoencoder"])
    autoencoder.load_state_dict(decoder)
    formats = {entry["dtype"] for entry in manifest["tensors"].values()}
    form = next(form for form in ("q4", "q8", "f16", "f32") if form in formats)
    sigmas = manifest["sampler"]["sigmas"]
    return Generator(f"{form}, {len(sigmas)} steps", tokenizer, weights, autoencoder, sigmas)
