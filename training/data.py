"""Batches for the denoiser: cached latents with freshly drawn captions, and given (clean) frames."""

import json
import random

import numpy as np
import torch

from . import presets, worlds

UNKNOWN = -100  # what cross entropy leaves out
OBJECTS = 3  # in a scene, at most


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


def encode_spans(tokenizer, told):
    """Token ids [B, L] of captions with their spans (`caption_spans` of a world), and whose each token is [B, L]: 1.. for
    an object, 0 for none, UNKNOWN on the padding."""
    ids = encode(tokenizer, [text for text, _ in told])
    whose = torch.where(ids == 0, UNKNOWN, 0)
    for row, (text, spans) in enumerate(told):
        for column, (start, end) in enumerate(tokenizer.encode(text).offsets if spans else ()):
            for first, last, place in spans:
                if max(start, first) < min(end, last):
                    whose[row, column] = place + 1
    return ids, whose


def reached(boxes, rows, columns, margin):
    """Cells whose middle is in a box [..., K, 4] in 0..1 of the picture or less than `margin` cells from it:
    [..., K, rows, columns]."""
    left, top, right, bottom = boxes[..., None, None].unbind(-3)
    v, u = (torch.arange(length, device=boxes.device) + 0.5 for length in (rows, columns))
    v = v[:, None]
    return ((u - left * columns > -margin) & (u - right * columns < margin)
            & (v - top * rows > -margin) & (v - bottom * rows < margin))


def object_cells(described, shape):
    """Where each object is in latents of `shape` [C, F, h, w], true where it is in the frame: [N, F, K, h, w]."""
    video = presets.VIDEO
    count, rows, columns = shape[1:]
    cell = presets.cell()
    boxes = worlds.object_boxes(described, columns * cell, rows * cell, video["frames"], video["fps"])
    near = reached(boxes, rows, columns, 0.6)
    # frame 0 makes latent frame 0, each later latent frame stands for four frames
    return torch.cat([near[:, :1], near[:, 1:].unflatten(1, (count - 1, -1)).any(2)], 1)


def whose(near):
    """What `object_cells` says of each cell in one number: 1.. for one object, 0 for none, UNKNOWN for several."""
    count = near.sum(2)
    return torch.where(count > 1, UNKNOWN, torch.where(count == 1, near.float().argmax(2) + 1, 0))


def things_of(described, most):
    """The attributes presets.THINGS of up to `most` objects as indices in worlds.ATTRIBUTES, UNKNOWN where there is
    none: [N, most, A]."""
    things = torch.full((len(described), most, len(presets.THINGS)), UNKNOWN)
    for row, scene in enumerate(described if presets.THINGS else ()):
        for place, thing in enumerate(scene.get("objects", ())):
            things[row, place] = torch.tensor([worlds.ATTRIBUTES[name].index(thing[name]) for name in presets.THINGS])
    return things


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


DRAWN, FULL = 8, 3  # captions kept of a scene: with omissions, and full ones


def about(described, tokenizer, rng, size):
    """What is to be known of scenes beside their latents, as arrays: `whose` [N, F, h, w] the latents' cells are,
    `things` [N, K, A] what the objects are (`things_of`), `attributes` [N, A] (`attribute_indices`), token ids of
    `captions` [N, DRAWN, L] and `full` ones [N, FULL, L], of which object each token of the full ones speaks in `of`
    [N, FULL, L] (`encode_spans`), `confusable` [N], the `scenes` as JSON."""
    width, height = presets.padded(size)
    cell, frames = presets.cell(), (presets.VIDEO["frames"] + 3) // 4
    drawn = [encode(tokenizer, [worlds.caption(scene, rng) for _ in range(DRAWN)]) for scene in described]
    full, of = zip(*[encode_spans(tokenizer, [worlds.caption_spans(scene, rng, full=True) for _ in range(FULL)])
                     for scene in described])
    near = object_cells(described, (1, frames, height // cell, width // cell))
    return {"whose": whose(near).to(torch.int8).numpy(), "things": things_of(described, near.shape[2]).numpy(),
            "attributes": attribute_indices(described).numpy(),
            "captions": torch.stack(drawn).short().numpy(), "full": torch.stack(full).short().numpy(),
            "of": torch.stack(of).to(torch.int8).numpy(),
            "confusable": np.array([worlds.confusable(scene) for scene in described]),
            "scenes": np.array(json.dumps(described))}


class Group:
    """Cached clips of one size, as tensors on a device: latents [N, C, F, h, w] and what `about` returns."""

    TENSORS = ("latents", "whose", "things", "attributes", "captions", "full", "of", "confusable")

    def __init__(self, shard, device):
        for name in self.TENSORS:
            setattr(self, name, torch.from_numpy(shard[name]).to(device))
        self.device = device
        self._find()

    def __len__(self):
        return len(self.latents)

    def _find(self):
        self.hard = self.confusable.nonzero()[:, 0]

    def add(self, others):
        for name in self.TENSORS:
            setattr(self, name, torch.cat([getattr(group, name) for group in (self, *others)]))
        self._find()

    def some(self, count, confusable):
        """Numbers of clips; a share of `confusable` are scenes whose words are easily taken for each other."""
        chosen = torch.randint(len(self), (count,), device=self.device)
        if confusable and len(self.hard):
            hard = self.hard[torch.randint(len(self.hard), (count,), device=self.device)]
            chosen = torch.where(torch.rand(count, device=self.device) < confusable, hard, chosen)
        return chosen

    def said(self, chosen):
        """Token ids [B, L] of one caption of each clip."""
        return self.captions[chosen, self.one_of(self.captions, chosen)].long()

    def one_of(self, captions, chosen):
        return torch.randint(captions.shape[1], (len(chosen),), device=self.device)


class LatentData:
    """Random batches from the shards that exist, each of one of `sizes` (width, height), those without a low-rank change
    if absent; `refresh` takes in new ones."""

    def __init__(self, work, seed, device, caption_dropout=0.1, object_weight=5.0, confusable=0.0,
                 sizes=None):
        self.work, self.device = work, device
        self.dropout, self.weight, self.confusable = caption_dropout, object_weight, confusable
        self.rng = random.Random(seed)
        from .sampling import latent_shape
        self.shapes = [latent_shape(size) for size in sizes or presets.own_sizes()]
        self.groups, self.shards = {}, set()
        self.refresh()
        if not self.groups:
            raise SystemExit("no latents in the work folder: run python -m training.make_latents first")

    def __len__(self):
        return sum(len(group) for group in self.groups.values())

    def refresh(self):
        from .make_latents import load_shards
        fresh = {}
        for group in load_shards(self.work, self.shards, self.device):
            if tuple(group.latents.shape[1:]) in self.shapes:
                fresh.setdefault(group.latents.shape[1:], []).append(group)
        for shape, groups in fresh.items():
            known = self.groups.setdefault(shape, groups[0])
            known.add([group for group in groups if group is not known])

    def captions(self, count):
        """Token ids [B, L] of full captions and what they say: attributes [B, A], whose each token is [B, L], and what
        the objects are [B, K, things]."""
        group = self.rng.choice(list(self.groups.values()))
        chosen = group.some(count, self.confusable)
        which = group.one_of(group.full, chosen)
        return (group.full[chosen, which].long(), group.attributes[chosen], group.of[chosen, which].long(),
                group.things[chosen].long())

    def batch(self, count):
        """Latents [B, C, F, H, W], token ids [B, L], loss weights [B, 1, F, H, W], attributes [B, A], what stands at
        each cell [B, F, H, W, 1 + A]: whether an object does, and its attributes (`standing`).

        Dropped captions are empty (only </s>).
        """
        groups = list(self.groups.values())
        group, = self.rng.choices(groups, [len(group) for group in groups])
        chosen = group.some(count, self.confusable)
        ids = group.said(chosen)
        dropped = torch.rand(count, 1, device=ids.device) < self.dropout
        ids = torch.where(dropped, empty(ids), ids)
        # Objects fill few cells; without weights they are what the model learns last. Weights do not move the optimum
        # of the loss, a mean for every element.
        cells = group.whose[chosen].long()
        weights = 1 + (self.weight - 1) * (cells != 0)[:, None].float()
        return (group.latents[chosen].float(), ids, weights, group.attributes[chosen],
                standing(cells, group.things[chosen].long()))


def standing(whose, things):
    """Of cells that are `whose` [B, F, H, W] and things [B, K, A]: 1 where an object is, 0 where none, and its
    attributes, UNKNOWN where it is unclear or there is none: [B, F, H, W, 1 + A]."""
    one = whose > 0
    rows = torch.arange(len(whose), device=whose.device).view(-1, 1, 1, 1)
    said = torch.where(one[..., None], things[rows, (whose - 1).clamp_min(0)], UNKNOWN)
    return torch.cat([torch.where(whose < 0, UNKNOWN, one.long())[..., None], said], -1)


def empty(ids):
    """Token ids of empty captions: only </s>."""
    none = torch.zeros_like(ids)
    none[:, 0] = 1
    return none


def given_frames(count, frames, share, rng):
    """Mask [B, F], true where a latent frame is given, for `share` of the rows: the first frame, the last, both, a
    prefix, a suffix, or any of them; never all."""
    mask = torch.zeros(count, frames, dtype=torch.bool)
    for row in range(count):
        if rng.random() >= share:
            continue
        kind = rng.choice(("first", "first", "last", "both", "prefix", "suffix", "random"))
        if kind in ("first", "both"):
            mask[row, 0] = True
        if kind in ("last", "both"):
            mask[row, -1] = True
        if kind == "prefix":
            mask[row, :rng.randrange(1, frames)] = True
        if kind == "suffix":
            mask[row, -rng.randrange(1, frames):] = True
        if kind == "random":
            mask[row, rng.sample(range(frames), rng.randrange(1, frames))] = True
    return mask


def shifted(sigma, shift):
    return shift * sigma / (1 + (shift - 1) * sigma)
