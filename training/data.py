"""Batches for the denoiser: cached latents with freshly drawn captions, and given (clean) frames."""

import random

import torch

from . import presets, worlds

def encode(tokenizer, texts):
    """Token ids [B, L] padded with 0, as long as captions get."""
    length = presets.VIDEO["caption_tokens"]
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in enumerate(texts):
        got = tokenizer.encode(text).ids
        if len(got) > length:
            raise ValueError(f"{len(got)} tokens, at most {length}: {text!r}")
        ids[row, :len(got)] = torch.tensor(got)
    return ids


def object_cells(described, shape):
    """Where the objects are in latents of `shape` [C, F, h, w], true where one is in the latent frame: [N, F, h, w]."""
    video = presets.VIDEO
    count, rows, columns = shape[1:]
    cell = presets.cell()
    boxes = worlds.object_boxes(described, columns * cell, rows * cell, video["frames"], video["fps"])
    left, top, right, bottom = boxes[..., None, None].unbind(3)
    v, u = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    # a cell counts when the object reaches to 0.6 cells from its middle
    near = ((u - left * columns > -0.6) & (u - right * columns < 0.6)
            & (v - top * rows > -0.6) & (v - bottom * rows < 0.6)).any(2)
    # frame 0 makes latent frame 0, each later latent frame stands for four frames
    return torch.cat([near[:, :1], near[:, 1:].unflatten(1, (count - 1, -1)).any(2)], 1)


UNKNOWN = -100  # what cross entropy leaves out


def attribute_indices(described):
    """Every attribute of every scene as its index in worlds.ATTRIBUTES, or UNKNOWN: [N, A]."""
    rows = []
    for scene in described:
        labels = worlds.labels(scene)
        rows.append([UNKNOWN if labels[name] is None else values.index(labels[name])
                     for name, values in worlds.ATTRIBUTES.items()])
    return torch.tensor(rows)


def naming_loss(logits, attributes):
    """Cross entropy of logits [.., V] against indices [..], the mean over those that are known, 0 if none is."""
    total = torch.nn.functional.cross_entropy(logits.flatten(0, -2), attributes.flatten(), reduction="sum")
    return total / (attributes != UNKNOWN).sum().clamp_min(1)


def share_right(logits, attributes):
    """Share of the known indices [N] that logits [N, V] name."""
    known = attributes != UNKNOWN
    return ((logits.argmax(-1) == attributes) & known).sum().item() / max(known.sum().item(), 1)


class Group:
    """Cached clips of one size: latents [N, C, F, h, w], scenes, cells with objects and attributes."""

    def __init__(self, latents, described, near, attributes):
        self.latents, self.scenes, self.near, self.attributes = latents, described, near, attributes
        self.confusable = [i for i, scene in enumerate(described) if worlds.confusable(scene)]

    def add(self, other):
        for name in ("latents", "near", "attributes"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self.confusable = self.confusable + [len(self.scenes) + i for i in other.confusable]
        self.scenes = self.scenes + other.scenes


class LatentData:
    """Random batches from the shards that exist, each of one size; `refresh` takes in new ones."""

    def __init__(self, work, tokenizer, seed, device, caption_dropout=0.1, object_weight=5.0, confusable=0.0):
        self.work, self.tokenizer, self.device = work, tokenizer, device
        self.dropout, self.weight, self.confusable = caption_dropout, object_weight, confusable
        self.rng = random.Random(seed)
        self.groups, self.next = {}, 0
        self.refresh()
        if not self.groups:
            raise SystemExit("no latents in the work folder: run python -m training.make_latents first")

    def __len__(self):
        return sum(len(group.scenes) for group in self.groups.values())

    def refresh(self):
        from .make_latents import load_shards
        shards, self.next = load_shards(self.work, self.next)
        for shard in shards:
            group, shape = Group(*shard), shard[0].shape[1:]
            if shape in self.groups:
                self.groups[shape].add(group)
            else:
                self.groups[shape] = group

    def draw(self, group, count):
        """Numbers of clips; a share of `confusable` are scenes whose words are easily taken for each other."""
        hard = group.confusable or range(len(group.scenes))
        return [self.rng.choice(hard) if self.rng.random() < self.confusable else self.rng.randrange(len(group.scenes))
                for _ in range(count)]

    def captions(self, count):
        """Token ids [B, L] of full captions and what they say, as attributes [B, A]."""
        group = self.rng.choice(list(self.groups.values()))
        chosen = self.draw(group, count)
        texts = [worlds.caption(group.scenes[i], self.rng, full=True) for i in chosen]
        return encode(self.tokenizer, texts).to(self.device), group.attributes[chosen].to(self.device)

    def batch(self, count):
        """Latents [B, C, F, H, W], token ids [B, L], loss weights [B, 1, F, H, W], attributes [B, A].

        Dropped captions are empty (only </s>).
        """
        groups = list(self.groups.values())
        group, = self.rng.choices(groups, [len(group.scenes) for group in groups])
        chosen = self.draw(group, count)
        texts = ["" if self.rng.random() < self.dropout else worlds.caption(group.scenes[i], self.rng) for i in chosen]
        # Objects fill few cells; without weights they are what the model learns last. Weights do not move the optimum
        # of the loss, a mean for every element.
        weights = 1 + (self.weight - 1) * group.near[chosen][:, None].float()
        return (group.latents[chosen].float().to(self.device), encode(self.tokenizer, texts).to(self.device),
                weights.to(self.device), group.attributes[chosen].to(self.device))


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
