"""A network that names a clip's attributes, to count how often generated clips are what their prompts say.

    python -m training.probe [--preset cpu] [--minutes 4] [--set workers=1 --set fresh=3]

It learns from rendered clips only, seen at reduced size and after a random blur and noise, so that a generated clip's
softness is not what decides. The network is in `judge/network.py`. Of each batch, `fresh` groups of eight clips are new
ones; `workers` processes render them, or the training itself does; with --set ahead=true it takes what `make_latents
--set seen=true` leaves behind instead. With --size WxH it becomes a probe of that size, probe-WxH.pt, from the one that
is there: things are squeezed otherwise in it. Resumes from probe-state.pt. Writes probe.pt, one that is there is trained on,
and probe.json: the share of held-out renders named right per attribute, and what was taken for what.
"""

import json
import random
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from . import presets, worlds
from .data import UNKNOWN, attribute_indices, naming_loss, share_right, things_of
from .judge import network
from .optim import Muon, groups
from .precision import autocast
from .progress import Interruptible, note, save_weights, tell

GROUP = 8  # clips rendered together


def looked_at(count):
    """Which of `count` frames the probe sees."""
    return [round(i * (count - 1) / (network.SEEN - 1)) for i in range(network.SEEN)]


def seen(clips):
    """The frames [B, 5, 3, 128, 128] that the probe looks at, spread over clips [B, T, 3, H, W] in 0..1 or of bytes."""
    frames = clips[:, looked_at(clips.shape[1])]
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    return F.interpolate(frames.flatten(0, 1), size=(128, 128), mode="area").unflatten(0, frames.shape[:2])


def lessons(clips, described):
    """What there is to learn of clips [N, T, 3, H, W]: the frames seen, as bytes; the attributes [N, A] to name; the
    boxes [N, 5, K, 4] of the objects in these frames; what the objects are [N, K, things], UNKNOWN for none. First and
    second are those of the reading whose attributes are asked."""
    video, (height, width) = presets.VIDEO, clips.shape[3:]
    boxes = worlds.object_boxes(described, width, height, video["frames"], video["fps"])[:, looked_at(video["frames"])]
    read = [worlds.readings(scene)[0] for scene in described]
    for row, (scene, reading) in enumerate(zip(described, read)):
        places = {id(thing): place for place, thing in enumerate(scene.get("objects", ()))}
        order = [places[id(thing)] for thing in reading.get("objects", ())]
        boxes[row, :, :len(order)] = boxes[row][:, order]
    return (seen(clips) * 255).round().byte(), attribute_indices(read), boxes, things_of(read, boxes.shape[2])


LESSON = ("frames", "answers", "boxes", "things")  # what `lessons` returns, as files call it


def names(logits):
    """The named attributes of each clip, as dictionaries like a scene's."""
    picks = [part.argmax(-1).tolist() for part in logits]
    return [{name: values[i] for (name, values), i in zip(worlds.ATTRIBUTES.items(), row)} for row in zip(*picks)]


def name_of(work, size):
    """What the probe of a size is called: its own one, if there is one."""
    own = f"probe-{presets.named(size)}"
    return own if (work / f"{own}.pt").exists() else "probe"


def load(work, device="cpu", name="probe"):
    probe = network.build()
    probe.load_state_dict(torch.load(work / f"{name}.pt", map_location=device))
    return probe.to(device).eval()


def roughened(clips, softest):
    """Clips with a random loss of sharpness and some noise."""
    small = torch.randint(softest, 129, ()).item()
    flat = F.interpolate(clips.flatten(0, 1), size=(small, small), mode="area")
    flat = F.interpolate(flat, size=clips.shape[-2:], mode="bilinear")
    return (flat + 0.04 * torch.rand(1, device=clips.device) * torch.randn_like(flat)).unflatten(0, clips.shape[:2])


def closer(frames, boxes, most):
    """Clips [B, S, 3, H, W] cut down to a part of the picture, at least 1 - `most` of its sides, and the boxes in it.

    Things are in other places and a little larger then, and still the same things: clips that come again are not learnt
    by heart so soon."""
    count, seen_frames = frames.shape[:2]
    scale = 1 - most * torch.rand(count, device=frames.device)
    shift = (1 - scale)[:, None] * (2 * torch.rand(count, 2, device=frames.device) - 1)
    theta = torch.zeros(count, 2, 3, device=frames.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale, scale, shift
    grid = F.affine_grid(theta.repeat_interleave(seen_frames, 0), list(frames.flatten(0, 1).shape), align_corners=False)
    cut = F.grid_sample(frames.flatten(0, 1), grid, padding_mode="border", align_corners=False).unflatten(0, (count, -1))
    middle = ((1 + shift) / 2).repeat(1, 2)[:, None, None]
    return cut, (boxes - middle) / scale.view(-1, 1, 1, 1) + 0.5


def rendered(rng, count, device, eager, sizes=None):
    """`lessons` of clips of one of `sizes`, all of the model's if absent; the frames that are not looked at are not
    rendered."""
    described = [worlds.random_scene(rng, allow_held_out=True) for _ in range(count)]
    size, frames = rng.choice(sizes or presets.VIDEO["sizes"]), len(looked_at(presets.VIDEO["frames"]))
    return lessons(worlds.clips(described, device, eager, size, frames).cpu(), described)


def seen_path(work, index):
    return work / f"seen-{index:04d}.npz"


class Ahead:
    """Takes lessons from seen-NNNN.npz as they appear."""

    def __init__(self, work, device):
        self.work, self.device, self.known = work, device, set()

    def take(self):
        """Those of groups of clips that are new."""
        fresh = [path for path in sorted(self.work.glob("seen-*.npz")) if path not in self.known]
        self.known.update(fresh)
        found = []
        for path in fresh:
            with np.load(path) as shard:
                columns = [torch.from_numpy(shard[name]).to(self.device).split(GROUP) for name in LESSON]
            found += zip(*columns)
        return found

    def wait(self, patience=120.0):
        start = time.time()
        while time.time() - start < patience:
            found = self.take()
            if found:
                return found
            time.sleep(0.5)
        raise SystemExit(f"{self.work}: no seen-*.npz; start python -m training.make_latents --set seen=true")


class Renders(torch.utils.data.IterableDataset):
    """Lessons of groups of clips, without end; each process that renders has its own."""

    def __init__(self, seed, device, eager, sizes):
        self.seed, self.device, self.eager, self.sizes = seed, device, eager, sizes

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}-{worker.id}") if worker else random.Random(self.seed)
        while True:
            yield rendered(rng, GROUP, self.device, self.eager, self.sizes)


def renders(options, seed, eager, sizes):
    device = "cpu" if options["workers"] else options["device"]
    return iter(torch.utils.data.DataLoader(Renders(seed, device, eager, sizes), batch_size=None,
                                            num_workers=options["workers"]))


def main():
    parser = presets.arguments("probe", __doc__)
    parser.add_argument("--size", metavar="WxH", help="a probe of this size alone")
    args = parser.parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    device = options["device"]
    torch.manual_seed(options["seed"] + 70)
    rng = random.Random(options["seed"] + 71)
    sizes = [size for size in presets.VIDEO["sizes"] if args.size in (None, presets.named(size))]
    if not sizes:
        raise SystemExit(f"--size {args.size}: it is none of the model's sizes")
    stage_name = f"probe-{args.size}" if args.size else "probe"
    probe, before = network.build().to(device), 0
    where = network.Places(probe).to(device) if presets.THINGS else None
    start = stage_name if (work / f"{stage_name}.pt").exists() else "probe"
    if (work / f"{start}.pt").exists():
        probe.load_state_dict(torch.load(work / f"{start}.pt", map_location=device))
        before = json.loads((work / f"{start}.json").read_text())["steps"]
        note(work, f"{stage_name}: goes on from step {before} of {start}")
    learning = nn.ModuleDict({"probe": probe, "where": where or nn.Identity()})
    optimiser = Muon(groups(learning.named_parameters(), lambda n, p: n.startswith(("probe.body", "probe.attention")),
                            options["muon_lr"], options["lr"], 0.01))
    held = [rendered(random.Random(options["seed"] + 72 + i), GROUP, device, args.eager, sizes)
            for i in range(options["held"] // GROUP)]
    pool = []
    stage, total = Interruptible(work, stage_name, options, rng, learning=learning, optimiser=optimiser), 0.0
    # other clips than the last time
    ahead = Ahead(work, device) if options["ahead"] else None
    fresh = None if ahead else renders(options, options["seed"] + 100000 + before + stage.step, args.eager, sizes)
    if ahead:
        pool += ahead.wait()
    while stage.running():
        optimiser.set_scale(min((stage.step + 1) / 30, 1.0, (1.0 - stage.clock.done) / 0.5 + 0.01))
        if ahead:
            pool += ahead.take() if stage.step % 20 == 0 else []
            new = []
        else:
            new = [next(fresh) for _ in range(options["fresh"])]
            pool += new
        del pool[:-options["pool"]]
        drawn = new + rng.choices(pool, k=options["batch"] // GROUP - len(new))
        frames, attributes, boxes, things = (torch.cat(column).to(device) for column in zip(*drawn))
        frames = frames.float() / 255
        if presets.PROBE.get("closer") and rng.random() < 0.7:
            frames, boxes = closer(frames, boxes, presets.PROBE["closer"])
        frames = roughened(frames, presets.PROBE["softest"])
        loss = 0.0
        with autocast(device, options["bf16"]):
            if where:
                looks = probe.look(frames)
                answers, pointed = probe.answers(looks)
                logits, loss = probe.named(looks, answers, pointed), where.loss(looks, pointed, boxes, things)
            else:
                logits = probe(frames)
        loss = loss + sum(naming_loss(part.float(), attributes[:, i]) for i, part in enumerate(logits))
        loss.backward()
        optimiser.step()
        learning.zero_grad(set_to_none=True)
        stage.step, total = stage.step + 1, total + loss.item()
        if stage.step % options["report"] == 0:
            tell(work, stage_name, before + stage.step, stage.clock.elapsed, f"loss {total / options['report']:.3f}")
            total = 0.0
    if not stage.finished():
        return
    probe.eval()
    with torch.no_grad():
        logits = [torch.cat(column) for column in
                  zip(*(probe(frames.to(device).float() / 255) for frames, *_ in held))]
    truth = torch.cat([attributes for _, attributes, *_ in held]).to(device)
    facts = {"steps": before + stage.step, "held_out_renders": len(truth), "right": {}, "confusion": {}}
    for i, (name, values) in enumerate(worlds.ATTRIBUTES.items()):
        said = logits[i].argmax(-1)
        facts["right"][name] = round(share_right(logits[i], truth[:, i]), 4)
        table = torch.zeros(len(values), len(values), dtype=torch.long)
        known = truth[:, i] != UNKNOWN
        table.index_put_((truth[known, i].cpu(), said[known].cpu()), torch.tensor(1), accumulate=True)
        facts["confusion"][name] = table.tolist()
    save_weights(work / f"{stage_name}.pt", probe.state_dict())
    (work / f"{stage_name}.json").write_text(json.dumps(facts))
    note(work, f"{stage_name}: finished, {stage.step} steps; right on held-out renders: {facts['right']}")


if __name__ == "__main__":
    main()
