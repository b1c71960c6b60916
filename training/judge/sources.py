"""Those whose clips are judged side by side: renders, the teacher, students, packed models."""

import json

import torch

from .. import lora, presets, sampling, shards, worlds
from ..autoencoder import Autoencoder
from ..data import shifted
from ..make_latents import load_autoencoder
from ..model import TextToVideo
from ..precision import autocast

BATCH = 16


def shown(clips, size):
    """The middle of padded clips, as the engine shows it."""
    width, height = size or presets.VIDEO["sizes"][0]
    top, left = (clips.shape[3] - height) // 2, (clips.shape[4] - width) // 2
    return clips[..., top:top + height, left:left + width]


class Renders:
    """What the world really looks like; calibrates every figure."""

    name, steps = "renders", None

    def __init__(self, device="cpu"):
        self.device = device

    def makes(self, size):
        """Whether it has clips of a size."""
        return True

    def seen(self, clips):
        """What becomes of rendered clips, padded to tokens."""
        return clips

    def clips(self, prompts, described, seeds, size=None):
        parts = [self.seen(worlds.clips(described[i:i + BATCH], self.device, eager=True, size=size)).cpu()
                 for i in range(0, len(described), BATCH)]
        return shown(torch.cat(parts), size)


class Reconstructions(Renders):
    """Renders through the encoder and the decoder: the best that any denoiser between them could do."""

    name = "renders through the autoencoder"

    def __init__(self, autoencoder, device="cpu"):
        super().__init__(device)
        self.autoencoder = autoencoder.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def seen(self, clips):
        return torch.cat([self.autoencoder.decode(self.autoencoder.encode(clip[None])) for clip in clips]).clamp(0, 1)


class Generator:
    """A denoiser and a decoder, sampled by Euler steps over `sigmas`; with `quick` the denoiser's passes are compiled, and
    run in bf16 where the hardware multiplies it. `changes` are the low-rank ones (`lora.py`) by size."""

    def __init__(self, name, tokenizer, weights, autoencoder, sigmas, changes, guidance=1.0, device="cpu", quick=False):
        self.name, self.tokenizer, self.device = name, tokenizer, device
        self.autoencoder = autoencoder.to(device).eval().requires_grad_(False)
        self.sigmas, self.guidance, self.steps = sigmas, guidance, len(sigmas)
        self.model = TextToVideo(tokenizer.get_vocab_size())
        self.model.load_state_dict(weights)
        self.changes = changes
        for size in changes:
            lora.attach(self.model.transformer, presets.LORAS[size])
        self.model.to(device).eval().requires_grad_(False)
        self.quick = quick
        if quick:
            self.model.compiled()

    def makes(self, size):
        name = presets.named(size)
        return name not in presets.LORAS or name in self.changes

    @torch.no_grad()
    def clips(self, prompts, described, seeds, size=None):
        if self.changes:
            lora.put(self.model.transformer, self.changes.get(presets.named(size or presets.VIDEO["sizes"][0])))
        with autocast(self.device, self.quick):
            latents = sampling.sample(self.model, self.tokenizer, list(prompts), list(seeds), self.sigmas, self.guidance,
                                      self.device, BATCH, size)
        return shown(torch.cat([self.autoencoder.decode(z[None]).cpu() for z in latents]).clamp(0, 1), size)


def changes_of(work, role):
    """The low-rank changes that there are, by size."""
    paths = {presets.named(size): lora.path_of(work, role, size) for size in presets.VIDEO["sizes"]}
    return {size: lora.load(path) for size, path in paths.items() if path.exists()}


def teacher(work, tokenizer, steps, guidance, device, quick=False):
    """Its many guided steps take most of an evaluation's time, so that they may be `quick`."""
    weights = torch.load(work / "teacher.pt", map_location="cpu")
    weights = {name: value.float() for name, value in weights.items()}
    return Generator(f"teacher, {steps} steps, guidance {guidance:g}", tokenizer, weights,
                     load_autoencoder(work, "cpu"), sampling.schedule(steps, 3.0), changes_of(work, "teacher"),
                     guidance, device, quick)


def student(work, tokenizer, name, device):
    sigmas = json.loads((work / f"{name}.json").read_text())["sigmas"]
    return Generator(f"{name}, {len(sigmas)} steps", tokenizer, torch.load(work / f"{name}.pt", map_location="cpu"),
                     load_autoencoder(work, "cpu"), sigmas, changes_of(work, name), device=device)


def packed(folder, tokenizer, device):
    """A packed model, with the rounding of its shards."""
    manifest, tensors = shards.load(folder)
    sampler = manifest["sampler"]
    if sampler["step"] != "euler" or sampler.get("causal") or sampler.get("initial_scale", 1) != 1:
        raise SystemExit(f"{folder}: only models of plain Euler steps are judged here, this one's sampler is {sampler}")
    decoder, weights, changes = shards.parts(tensors)
    autoencoder = Autoencoder(manifest["autoencoder"])
    autoencoder.load_state_dict(decoder)
    formats = {entry["dtype"] for entry in manifest["tensors"].values()}
    form = next(form for form in ("q4", "q8", "f16", "f32") if form in formats)
    sigmas = [shifted(sigma, sampler["shift"]) for sigma in sampler["sigmas"]]
    return Generator(f"{form}, {len(sigmas)} steps", tokenizer, weights, autoencoder, sigmas, changes,
                     sampler.get("guidance", 1.0), device)
