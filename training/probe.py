"""A network that names a clip's attributes, to count how often generated clips are what their prompts say.

    python -m training.probe [--preset cpu] [--minutes 4] [--set workers=1 --set fresh=3]

It learns from rendered clips only, seen at reduced size and after a random blur and noise, so that a generated clip's
softness is not what decides. Five frames go in as one picture of 15 channels. Of each batch, `fresh` groups of eight
clips are new ones; `workers` processes render them, or the training itself does; with --set ahead=true it takes what
`make_latents --set seen=true` leaves behind instead. Resumes from probe-state.pt. Writes
probe.pt, one that is there is trained on, and probe.json: the share of held-out renders named right per attribute, and
what was taken for what.
"""

import json
import random
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from . import presets, worlds
from .data import UNKNOWN, attribute_indices, naming_loss, share_right
from .optim import Muon, groups
from .precision import autocast
from .progress import Interruptible, note, save_weights

SEEN = 5  # frames
GROUP = 8  # clips rendered together


def seen(clips):
    """The frames [B, 5, 3, 128, 128] that the probe looks at, spread over clips [B, T, 3, H, W] in 0..1 or of bytes."""
    last = clips.shape[1] - 1
    frames = clips[:, [round(i * last / (SEEN - 1)) for i in range(SEEN)]]
    if frames.dtype == torch.uint8:
        frames = frames.float() / 255
    return F.interpolate(frames.flatten(0, 1), size=(128, 128), mode="area").unflatten(0, frames.shape[:2])


class Probe(nn.Module):
    """Logits per attribute, in the order of worlds.ATTRIBUTES, of frames [B, 5, 3, 128, 128] in 0..1.

    presets.PROBE says how: `convolutions` that halve the picture each, then one linear layer over all of it; or, with
    `layers` of attention, a question of each attribute's own to the places of the picture.
    """

    def __init__(self):
        super().__init__()
        options = presets.PROBE
        self.side, self.softest = options["side"], options["softest"]
        layers, width = [], 3 * SEEN
        if options["layers"]:
            layers, width = [nn.PixelUnshuffle(2)], 4 * width
        for i, wider in enumerate(options["convolutions"]):
            # the first of an attentive probe sees half the picture's sides already
            layers += [nn.Conv2d(width, wider, 3, padding=1), nn.GroupNorm(8, wider), nn.GELU()]
            if not options["layers"] or i + 1 < len(options["convolutions"]):
                layers += [nn.Conv2d(wider, wider, 3, padding=1, stride=2), nn.GELU()]
            width = wider
        if options["layers"]:
            self.body, wide = nn.Sequential(*layers), width
            places = (self.side // 2 ** len(options["convolutions"])) ** 2
            self.places = nn.Parameter(0.02 * torch.randn(places, width))
            self.questions = nn.Parameter(0.02 * torch.randn(len(worlds.ATTRIBUTES), width))
            layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True,
                                               norm_first=True)
            self.attention = nn.TransformerEncoder(layer, options["layers"], nn.LayerNorm(width), False)
        else:
            wide = 256
            self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (self.side // 16) ** 2, wide), nn.GELU())
        self.attentive = bool(options["layers"])
        self.heads = nn.ModuleList(nn.Linear(wide, len(values)) for values in worlds.ATTRIBUTES.values())

    def answers(self, frames):
        """[B, A, C] (or [B, 1, C]), what the names are read from."""
        hidden = self.body(F.interpolate(frames.flatten(1, 2), size=(self.side, self.side), mode="area") * 2 - 1)
        if not self.attentive:
            return hidden[:, None]
        places = hidden.flatten(2).mT + self.places
        asked = self.questions.expand(len(places), -1, -1)
        return self.attention(torch.cat([asked, places], 1))[:, :asked.shape[1]]

    def features(self, frames):
        """[B, C], for distances between sets of clips."""
        return self.answers(frames).mean(1)

    def forward(self, frames):
        answers = self.answers(frames)
        return [head(answers[:, i if self.attentive else 0]) for i, head in enumerate(self.heads)]


def names(logits):
    """The named attributes of each clip, as dictionaries like a scene's."""
    picks = [part.argmax(-1).tolist() for part in logits]
    return [{name: values[i] for (name, values), i in zip(worlds.ATTRIBUTES.items(), row)} for row in zip(*picks)]


def load(work, device="cpu"):
    probe = Probe()
    probe.load_state_dict(torch.load(work / "probe.pt", map_location=device))
    return probe.to(device).eval()


def roughened(clips, softest):
    """Clips with a random loss of sharpness and some noise."""
    small = torch.randint(softest, 129, ()).item()
    flat = F.interpolate(clips.flatten(0, 1), size=(small, small), mode="area")
    flat = F.interpolate(flat, size=clips.shape[-2:], mode="bilinear")
    return (flat + 0.04 * torch.rand(1, device=clips.device) * torch.randn_like(flat)).unflatten(0, clips.shape[:2])


def rendered(rng, count, device, eager):
    """The seen frames of clips of one of the model's sizes, and their attributes."""
    described = [worlds.random_scene(rng, allow_held_out=True) for _ in range(count)]
    clips = worlds.clips(described, device, eager, rng.choice(presets.VIDEO["sizes"]))
    return seen(clips), attribute_indices([worlds.readings(scene)[0] for scene in described]).to(device)


def seen_path(work, index):
    return work / f"seen-{index:04d}.npz"


def seen_and_asked(clips, described):
    """What the probe sees of clips of bytes, as bytes, and what it has to answer."""
    frames = (seen(clips) * 255).round().byte()
    return frames, attribute_indices([worlds.readings(scene)[0] for scene in described])


class Ahead:
    """Takes groups from seen-NNNN.npz as they appear."""

    def __init__(self, work, device):
        self.work, self.device, self.known = work, device, set()

    def take(self):
        """Groups of clips that are new, and their attributes."""
        fresh = [path for path in sorted(self.work.glob("seen-*.npz")) if path not in self.known]
        self.known.update(fresh)
        found = []
        for path in fresh:
            with np.load(path) as shard:
                columns = [torch.from_numpy(shard[name]).to(self.device).split(GROUP) for name in ("frames", "answers")]
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
    """Groups of clips without end, as bytes, and their attributes; each process that renders has its own."""

    def __init__(self, seed, device, eager):
        self.seed, self.device, self.eager = seed, device, eager

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}-{worker.id}") if worker else random.Random(self.seed)
        while True:
            frames, attributes = rendered(rng, GROUP, self.device, self.eager)
            yield (frames * 255).round().byte(), attributes


def renders(options, seed, eager):
    device = "cpu" if options["workers"] else options["device"]
    return iter(torch.utils.data.DataLoader(Renders(seed, device, eager), batch_size=None,
                                            num_workers=options["workers"]))


def main():
    args = presets.arguments("probe", __doc__).parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    device = options["device"]
    torch.manual_seed(options["seed"] + 70)
    rng = random.Random(options["seed"] + 71)
    probe, before = Probe().to(device), 0
    if (work / "probe.pt").exists():
        probe.load_state_dict(torch.load(work / "probe.pt", map_location=device))
        before = json.loads((work / "probe.json").read_text())["steps"]
        note(work, f"probe: goes on from step {before}")
    optimiser = Muon(groups(probe.named_parameters(), lambda n, p: n.startswith(("body", "attention")),
                            options["muon_lr"], options["lr"], 0.01))
    held = [rendered(random.Random(options["seed"] + 72 + i), GROUP, device, args.eager)
            for i in range(options["held"] // GROUP)]
    pool = []
    stage, total = Interruptible(work, "probe", options, rng, probe=probe, optimiser=optimiser), 0.0
    # other clips than the last time
    ahead = Ahead(work, device) if options["ahead"] else None
    fresh = None if ahead else renders(options, options["seed"] + 100000 + before + stage.step, args.eager)
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
        clips, attributes = (torch.cat(column).to(device) for column in zip(*drawn))
        clips = clips.float() / 255
        with autocast(device, options["bf16"]):
            logits = [part.float() for part in probe(roughened(clips, probe.softest))]
        loss = sum(naming_loss(part, attributes[:, i]) for i, part in enumerate(logits))
        loss.backward()
        optimiser.step()
        probe.zero_grad(set_to_none=True)
        stage.step, total = stage.step + 1, total + loss.item()
        if stage.step % options["report"] == 0:
            print(f"step {stage.step} loss {total / options['report']:.3f}", flush=True)
            total = 0.0
    if not stage.finished():
        return
    probe.eval()
    with torch.no_grad():
        logits = [torch.cat(column) for column in zip(*(probe(clips) for clips, _ in held))]
    truth = torch.cat([attributes for _, attributes in held])
    facts = {"steps": before + stage.step, "held_out_renders": len(truth), "right": {}, "confusion": {}}
    for i, (name, values) in enumerate(worlds.ATTRIBUTES.items()):
        said = logits[i].argmax(-1)
        facts["right"][name] = round(share_right(logits[i], truth[:, i]), 4)
        table = torch.zeros(len(values), len(values), dtype=torch.long)
        known = truth[:, i] != UNKNOWN
        table.index_put_((truth[known, i].cpu(), said[known].cpu()), torch.tensor(1), accumulate=True)
        facts["confusion"][name] = table.tolist()
    save_weights(work / "probe.pt", probe.state_dict())
    (work / "probe.json").write_text(json.dumps(facts))
    note(work, f"probe: finished, {stage.step} steps; right on held-out renders: {facts['right']}")


if __name__ == "__main__":
    main()
