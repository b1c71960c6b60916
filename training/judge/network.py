"""The networks of the probe: frames [B, 5, 3, 128, 128] in 0..1 to logits per attribute, in worlds.ATTRIBUTES' order.

presets.PROBE says which. `Plain` puts the frames on top of each other, halves the picture with `convolutions` and ends
in one linear layer over all of it. With `layers` of attention it is `Attentive`, which looks at every frame with the
same convolutions and lets each attribute ask the places of the picture.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from .. import presets, worlds
from ..data import reached

SEEN = 5  # frames


def build():
    return Attentive() if presets.PROBE["layers"] else Plain()


def scaled(frames, side):
    return F.interpolate(frames, size=(side, side), mode="area") * 2 - 1


def heads(width):
    return nn.ModuleList(nn.Linear(width, len(values)) for values in worlds.ATTRIBUTES.values())


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.side = presets.PROBE["side"]
        layers, width = [], 3 * SEEN
        for wider in presets.PROBE["convolutions"]:
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.GroupNorm(8, wider), nn.GELU(),
                       nn.Conv2d(wider, wider, 3, padding=1, stride=2), nn.GELU()]
            width = wider
        last = self.side // 2 ** len(presets.PROBE["convolutions"])
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * last * last, 256), nn.GELU())
        self.heads = heads(256)

    def features(self, frames):
        """[B, C], for distances between sets of clips."""
        return self.body(scaled(frames.flatten(1, 2), self.side))

    def forward(self, frames):
        hidden = self.features(frames)
        return [head(hidden) for head in self.heads]


def slot_of(name):
    """Which object an attribute belongs to: 0 for the first, 1 for the second, None for the clip."""
    whose, _, thing = name.rpartition(" ")
    return {"": 0, "second": 1}.get(whose) if thing in presets.THINGS else None


class Attentive(nn.Module):
    """Small things far off, several of them: a probe that averages less sees their colours.

    The convolutions see each frame by itself. Attention over the places of the picture answers a question for each
    attribute, and finds the first and the second object: a slot for each points at its places in every frame, and what
    the convolutions saw there names it. `Places` teaches the convolutions what stands where, and the slots where to
    point; an architecture of its own, after the object queries of DETR (Carion et al., 2020).
    """

    def __init__(self):
        super().__init__()
        self.side, channels = presets.PROBE["side"], presets.PROBE["convolutions"]
        # pixels of `patch` x `patch` as channels, for the first convolution is what takes the time
        patch = presets.PROBE["patch"]
        layers, width, side = [nn.PixelUnshuffle(patch)], 3 * patch ** 2, self.side // patch
        for i, wider in enumerate(channels):
            stride = 2 if i and side > self.side // 8 else 1
            layers += [nn.Conv2d(width, wider, 3, padding=1, stride=stride), nn.GroupNorm(8, wider), nn.GELU()]
            width, side = wider, side // stride
        self.body, self.grid, self.seen = nn.Sequential(*layers), side, width
        self.width, self.of = presets.PROBE["width"], [slot_of(name) for name in worlds.ATTRIBUTES]
        self.together = nn.Linear(SEEN * width, self.width)
        self.places = nn.Parameter(0.02 * torch.randn(self.grid ** 2, self.width))
        self.questions = nn.Parameter(0.02 * torch.randn(len(worlds.ATTRIBUTES), self.width))
        self.slots = nn.Parameter(0.02 * torch.randn(2, self.width))
        layer = nn.TransformerEncoderLayer(self.width, 4, 2 * self.width, dropout=0.0, activation="gelu",
                                           batch_first=True, norm_first=True)
        self.attention = nn.TransformerEncoder(layer, presets.PROBE["layers"], nn.LayerNorm(self.width), False)
        self.point = nn.Linear(self.width, SEEN * self.width)
        self.heads = nn.ModuleList(nn.Linear(self.width + (0 if slot is None else self.seen), len(values))
                                   for slot, values in zip(self.of, worlds.ATTRIBUTES.values()))

    def look(self, frames):
        """Every frame by itself: [B, SEEN, C, grid, grid]."""
        return self.body(scaled(frames.flatten(0, 1), self.side)).unflatten(0, (-1, SEEN))

    def answers(self, looks):
        """What the names are read from [B, A, C], and where the slots point: logits [B, 2, SEEN, grid * grid]."""
        places = self.together(looks.flatten(3).permute(0, 3, 1, 2).flatten(2)) + self.places
        asked = torch.cat([self.questions, self.slots]).expand(len(places), -1, -1)
        heard = self.attention(torch.cat([asked, places], 1))
        answers, slots, places = heard.split([len(self.questions), len(self.slots), places.shape[1]], 1)
        point = self.point(slots).unflatten(2, (SEEN, -1))
        return answers, torch.einsum("bkfc,bpc->bkfp", point, places) / self.width ** 0.5

    def named(self, looks, answers, pointed):
        """Logits of each attribute."""
        found = torch.einsum("bkfp,bfcp->bkc", pointed.softmax(-1), looks.flatten(3)) / SEEN
        return [head(answers[:, i] if slot is None else torch.cat([answers[:, i], found[:, slot]], 1))
                for i, (slot, head) in enumerate(zip(self.of, self.heads))]

    def features(self, frames):
        """[B, C], for distances between sets of clips."""
        return self.answers(self.look(frames))[0].mean(1)

    def forward(self, frames):
        looks = self.look(frames)
        return self.named(looks, *self.answers(looks))


class Places(nn.Module):
    """Has to name, at every place of every frame, the object that is there, and to point at the first and the second; no
    part of what judges.

    An attribute of a small thing is one label for the whole clip to the heads, and some tens of places to this: they learn
    of a clip what they would need many for.
    """

    def __init__(self, probe):
        super().__init__()
        self.sizes = [1, *(len(worlds.ATTRIBUTES[name]) for name in presets.THINGS)]
        self.head = nn.Conv2d(probe.seen, sum(self.sizes), 1)

    def loss(self, looks, pointed, boxes, things):
        """Of looks [B, S, C, g, g], where slots point [B, 2, S, g * g], boxes [B, S, K, 4] in 0..1 of the picture and the
        attributes of things [B, K, A]."""
        there = places(boxes, looks.shape[-1])
        said = self.head(looks.flatten(0, 1)).unflatten(0, looks.shape[:2]).float()
        whether, *names = said.split(self.sizes, 2)
        clear = (there >= 0).float()
        miss = F.binary_cross_entropy_with_logits(whether[:, :, 0], (there > 0).float(), reduction="none")
        total = (miss * clear).sum() / clear.sum()
        rows, frames, tops, lefts = (there > 0).nonzero(as_tuple=True)
        if len(rows):
            which = there[rows, frames, tops, lefts] - 1
            for i, logits in enumerate(names):
                total = total + F.cross_entropy(logits[rows, frames, :, tops, lefts], things[rows, which, i])
        for slot in range(pointed.shape[1]):
            target = (there == slot + 1).flatten(2).float()
            count = target.sum(-1)
            miss = -(pointed[:, slot].float().log_softmax(-1) * target).sum(-1) / count.clamp_min(1)
            total = total + miss.sum() / (count > 0).sum().clamp_min(1)
        return total


def places(boxes, grid):
    """Whose box [B, S, K, 4] the middle of each of grid x grid cells is in: 1.. in the order of boxes, 0 for none, -1
    where boxes overlap or end nearby: [B, S, grid, grid]."""
    middle, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    half = (0.8 * half).clamp_min(0.4 / grid)  # the smallest have a cell, too
    inside = reached(torch.cat([middle - half, middle + half], -1), grid, grid, 0.0)
    near = reached(boxes, grid, grid, 0.4)
    whose = inside.float().argmax(2) + 1
    return torch.where(inside.any(2) & (near.sum(2) == 1), whose, torch.where(near.any(2), -1, 0))
