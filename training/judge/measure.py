"""All figures of one source of clips."""

import random
import statistics

import torch

from .. import presets, probe as probes, worlds
from . import physics
from .tracking import flicker, track


def captions(count, rng, wanted):
    """Full captions of `count` random scenes that `wanted` accepts, held-out ones among them, and the scenes."""
    described = [worlds.scene_like(rng, wanted, tries=None, allow_held_out=True) for _ in range(count)]
    return [worlds.caption(scene, rng, full=True) for scene in described], described


def held_out_captions(count, seed):
    """Of combinations never trained on."""
    return captions(count, random.Random(seed), worlds.held_out)


def confusable_captions(count, seed):
    """Those in which two words could change places, such as opposite directions of object and camera."""
    return captions(count, random.Random(f"{seed}-confusable"), worlds.confusable)


def missed(got, scene):
    labels = worlds.labels(scene)
    return [name for name in worlds.told(scene) if got[name] != labels[name]]


def misses(probe, clips, described):
    """For each clip, the attributes told by its full caption that the probe does not see, in the kindest reading."""
    device = next(probe.parameters()).device
    seen = [row for part in clips.split(16) for row in probes.names(probe(probes.seen(part.to(device))))]
    wrong = []
    for got, scene in zip(seen, described):
        wrong.append(min((missed(got, reading) for reading in worlds.readings(scene)), key=len))
    return wrong


def adherence(wrong, described):
    """Share of the clips with each told attribute right, and with all of them."""
    share = {}
    for name in worlds.ATTRIBUTES:
        asked = [row for row, scene in zip(wrong, described) if name in worlds.told(worlds.readings(scene)[0])]
        if asked:
            share[name] = round(1 - sum(name in row for row in asked) / len(asked), 3)
    share["all"] = round(sum(not row for row in wrong) / len(wrong), 3)
    return share


@torch.no_grad()
def features(probe, clips):
    device = next(probe.parameters()).device
    return torch.cat([probe.features(probes.seen(part.to(device))).cpu() for part in clips.split(16)])


def median(values):
    """The median of what could be measured, and of how many."""
    values = [value for value in values if value is not None]
    return {"median": round(statistics.median(values), 3) if values else None, "clips": len(values)}


def measured(source, count, seed, size=None):
    """Physics by tracking, on `count` clips a measure."""
    fps, out = presets.VIDEO["fps"], {}
    for number, kind in enumerate(worlds.SHOWN):
        pairs = worlds.measured_scenes(kind, count, random.Random(f"{seed}-{kind}"))
        described, prompts = zip(*pairs)
        first = 1000 * seed + 100 * number
        clips = source.clips(prompts, described, range(first, first + count), size)
        height, width = clips.shape[-2:]
        found = {kind: []} if kind != "constancy" else {"area spread": [], "colour spread": [], "flicker": []}
        for clip, scene in zip(clips, described):
            tracks = [track(clip, tint) for tint in worlds.tints(scene)]
            points, area, colour = tracks[0]
            along, up = worlds.on_stage(points, width, height)
            if kind == "gravity":
                found[kind].append(physics.gravity(up, area, fps))
            elif kind == "restitution":
                found[kind].append(physics.restitution(up, area))
            elif kind == "momentum change":
                places = [worlds.on_stage(points, width, height)[0] for points, _, _ in tracks]
                areas = [area for _, area, _ in tracks]
                found[kind].append(physics.momentum_change(places, areas, worlds.masses(scene)))
            elif kind == "permanence":
                found[kind].append(float(physics.permanence(area)))
            else:
                found["area spread"].append(physics.constancy(area, area))
                found["colour spread"].append(physics.constancy(colour.norm(dim=1), area))
                found["flicker"].append(flicker(clip))
        for name, values in found.items():
            out[name] = median(values)
            if name == "permanence":  # yes or no: the share says more than the median
                out[name] = {"share": round(sum(values) / len(values), 3), "clips": len(values)}
    return out
