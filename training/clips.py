"""Rendered clips to train on: a store on the training device, refilled by rendering or from files rendered ahead.

`python -m training.make_latents --ahead` writes such files, in as many processes as there are cores to spare.
"""

import random
import time

import numpy as np
import torch

from . import presets, worlds

PATIENCE = 120.0  # seconds to wait for the first files of processes that render ahead


def clips_path(work, index):
    return work / f"clips-{index:04d}.npy"


def salience(video):
    """How far each pixel is from the middle colour of its row, 0..1: high on objects, low on sky and ground."""
    return ((video - video.median(-1, keepdim=True).values).abs().mean(-3) / 0.25).clamp(0, 1)


def cut(whole, which, firsts, lengths):
    """Pieces [N, *lengths] of the rows `which` [N] of `whole` [B, ...]; `firsts` has an index [N] of each axis."""
    index = [which]
    for axis, (first, length) in enumerate(zip(firsts, lengths)):
        along = first[:, None] + torch.arange(length, device=which.device)
        index.append(along.view(len(which), *[length if i == axis else 1 for i in range(len(lengths))]))
    return whole[index[0].view(-1, *[1] * len(lengths)), *index[1:]]


class Store:
    """The last `room` clips of one size, as bytes [room, T, 3, H, W] on a device."""

    def __init__(self, room, size, device):
        width, height = presets.padded(size)
        self.clips = torch.empty(room, presets.VIDEO["frames"], 3, height, width, dtype=torch.uint8, device=device)
        self.next = self.count = 0

    def add(self, clips):
        clips = clips.to(self.clips.device)
        for part in clips.split(len(self.clips)):
            places = (torch.arange(len(part), device=part.device) + self.next) % len(self.clips)
            self.clips[places] = part
            self.next = (self.next + len(part)) % len(self.clips)
            self.count = min(self.count + len(part), len(self.clips))

    def some(self, count):
        return torch.randint(self.count, (count,), device=self.clips.device)

    def whole(self, count):
        return self.clips[self.some(count)].float() / 255

    def crops(self, count, size, frames, anywhere=0.25):
        """Stretches [count, frames, 3, size, size] around salient places, a share of them anywhere."""
        device, (length, _, height, width) = self.clips.device, self.clips.shape[1:]
        which = self.some(count)
        start = torch.randint(length - frames + 1, (count,), device=device)
        weight = salience(self.clips[which, start + frames // 2].float() / 255).flatten(1).square() + 1e-7
        place = torch.where(torch.rand(count, device=device) < anywhere,
                            torch.randint(height * width, (count,), device=device), weight.multinomial(1)[:, 0])
        top = (place.div(width, rounding_mode="floor") - size // 2).clamp(0, height - size)
        left = (place % width - size // 2).clamp(0, width - size)
        return cut(self.clips, which, (start, top * 0, top, left), (frames, 3, size, size)).float() / 255


class Pool:
    """A store for each size of the model, renewed little by little.

    `scenes` are rendered at once; a share `fast` of them shows something that moves fast, which is learnt last. With
    `ahead`, the work folder whose clips-NNNN.npy are taken in as they appear, nothing is rendered here. Training can
    start with `least` clips, the rest come while it runs.
    """

    def __init__(self, size, seed, device, eager, scenes=8, fast=0.0, ahead=None, least=1024):
        self.rng, self.fast, self.ahead, self.file = random.Random(seed), fast, ahead, 0
        self.device, self.eager, self.scenes = device, eager, scenes
        room = max(1, size // len(presets.VIDEO["sizes"]))
        self.stores, self.turn = [Store(room, size, device) for size in presets.VIDEO["sizes"]], 0
        wanted, start = min(room, least // len(self.stores)), time.time()
        while any(store.count < wanted for store in self.stores):
            if self.refresh():
                start = time.time()
            elif time.time() - start > PATIENCE:
                raise SystemExit(f"{ahead}: nothing is rendered ahead; start python -m training.make_latents --ahead")
            else:
                time.sleep(0.2)

    def refresh(self):
        """Takes in new clips; false when there are none."""
        if self.ahead is not None:
            return self._take()
        number = self.turn % len(self.stores)
        self.turn += 1
        described = [worlds.scene_like(self.rng, worlds.fast) if self.rng.random() < self.fast
                     else worlds.random_scene(self.rng) for _ in range(self.scenes)]
        clips = worlds.clips(described, self.device, self.eager, presets.VIDEO["sizes"][number])
        self.stores[number].add((clips * 255).round().byte())
        return True

    def _take(self):
        path = clips_path(self.ahead, self.file)
        if not path.exists():
            return False
        self.stores[self.file % len(self.stores)].add(torch.from_numpy(np.load(path)))
        self.file += 1
        return True

    def whole(self, count):
        """Whole clips of one size: [B, T, 3, H, W] in 0..1."""
        return self.rng.choice(self.stores).whole(count)

    def crops(self, count, size, frames):
        """Stretches of `frames` frames of all sizes: [B, T, 3, size, size] in 0..1."""
        shares = [count // len(self.stores)] * len(self.stores)
        for number in self.rng.sample(range(len(shares)), count % len(shares)):
            shares[number] += 1
        return torch.cat([store.crops(share, size, frames) for store, share in zip(self.stores, shares) if share])
