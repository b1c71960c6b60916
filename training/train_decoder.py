"""Stage 5a: go on training the decoder alone behind the frozen encoder.

    python -m training.train_decoder [--preset cpu] [--minutes 15]

The latents do not change, so this may come after the later stages; it is also cheaper than stage 1. Latents get a
little noise, which prepares the decoder for those the denoiser will make. With --behind student two of three steps have
latents of the student's making instead: those of a clip, noised to one of its last sigmas and denoised again. They are
as soft and as uncertain about outlines as what it makes from nothing, and what they should have looked like is known.
Clips are rendered here, or taken from a folder of `make_latents --ahead` (--rendered).
Overwrites autoencoder.pt (moving average of the decoder) every few minutes and resumes from decoder-state.pt.
"""

import copy
import itertools
import json
import random
import time
from pathlib import Path

import numpy as np
import torch

from . import presets, sampling, tokenizer as tokenizers, worlds
from .autoencoder import psnr
from .clips import Pool, cut, salience
from .data import encode
from .make_latents import about_path, load_autoencoder
from .model import TextToVideo
from .optim import Muon, groups
from .precision import autocast
from .progress import REPORTS, Clock, note, save, save_weights, tell
from .sheet import contact_sheet
from .train_autoencoder import held_out_clips, reconstruction_loss
from .train_teacher import average


class Guesses:
    """Clips and the student's latents of them, of the sizes in turn that the student makes with its weights as they are,
    renewed little by little."""

    def __init__(self, work, name, autoencoder, options, eager, keep=256, rendered=None):
        self.tokenizer, self.autoencoder, self.options, self.eager = tokenizers.load(work), autoencoder, options, eager
        self.student = TextToVideo(self.tokenizer.get_vocab_size())
        self.student.load_state_dict(torch.load(work / f"{name}.pt", map_location="cpu"))
        self.student.to(options["device"]).eval().requires_grad_(False)
        facts = json.loads((work / f"{name}.json").read_text())
        self.sigmas, self.keep, self.kept, self.turn = [*facts["sigmas"], 0.0], keep, {}, 0
        self.rng = random.Random(options["seed"] + 52)
        self.rendered = rendered and itertools.cycle(sorted(rendered.glob("clips-*.npy")))
        self.rest = []  # of the file that was opened last

    def _render(self, count):
        sizes = presets.own_sizes()
        size = sizes[self.turn % len(sizes)]
        self.turn += 1
        described = [worlds.scene_like(self.rng, worlds.fast) if self.rng.random() < self.options["fast"]
                     else worlds.random_scene(self.rng) for _ in range(count)]
        clips = (worlds.clips(described, self.options["device"], self.eager, size) * 255).round().byte()
        return clips, encode(self.tokenizer, [worlds.caption(scene, self.rng, full=True) for scene in described])

    def _take(self, count):
        if not self.rest:
            path = next(self.rendered)
            clips = torch.from_numpy(np.load(path))
            ids = torch.from_numpy(np.load(about_path(path.parent, int(path.stem.split("-")[1])))["full"][:, 0])
            self.rest = list(zip(clips.split(count), ids.long().split(count)))
        return self.rest.pop()

    @torch.no_grad()
    def renew(self, count):
        device = self.options["device"]
        clips, ids = (part.to(device) for part in (self._take(count) if self.rendered else self._render(count)))
        latents = self.autoencoder.encode(clips.float() / 255)
        # not the noisiest: from there the student puts things elsewhere, and the decoder would learn to fade them
        first = self.rng.randrange(len(self.sigmas) // 2, len(self.sigmas) - 1)
        level = self.sigmas[first]
        x = (1 - level) * latents + level * torch.randn_like(latents)
        with autocast(device):
            for now, then in zip(self.sigmas[first:], self.sigmas[first + 1:]):
                steps = torch.full((len(x), x.shape[2]), now, device=device)
                x = x + self.student(x, steps, ids).float() * (then - now)
        kept = self.kept.setdefault(tuple(clips.shape[3:]), [])
        kept += zip(clips, x.half())
        del kept[:-self.keep]

    def draw(self, count, size):
        """Windows of `size` pixels around salient places, over all frames: [count, T, 3, size, size], and their
        latents. Most of a whole clip is sky and ground, which are learnt first."""
        kept = self.rng.choice(list(self.kept.values()))
        clips, latents = (torch.stack(part) for part in zip(*self.rng.choices(kept, k=count)))
        device, (length, _, height, width), cell = clips.device, clips.shape[1:], presets.cell()
        rows, frame = torch.arange(count, device=device), torch.randint(length, (count,), device=device)
        weight = salience(clips[rows, frame].float() / 255).square().flatten(1) + 1e-7
        place = weight.multinomial(1)[:, 0]
        top = (place.div(width, rounding_mode="floor") - size // 2).clamp(0, height - size) // cell
        left = (place % width - size // 2).clamp(0, width - size) // cell
        none, channels, frames = top * 0, *latents.shape[1:3]
        return (cut(clips, rows, (none, none, top * cell, left * cell), (length, 3, size, size)).float() / 255,
                cut(latents, rows, (none, none, top, left), (channels, frames, size // cell, size // cell)).float())


def main():
    parser = presets.arguments("decoder", __doc__)
    parser.add_argument("--behind", metavar="NAME", help="learn from latents of this student's making too")
    parser.add_argument("--rendered", type=Path, metavar="FOLDER", help="clips-NNNN.npy, about-NNNN.npz to learn from")
    args = parser.parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    device = options["device"]
    torch.manual_seed(options["seed"] + 50)
    model = load_autoencoder(work, device)
    decoder = model.decoder.requires_grad_(True)
    ema = copy.deepcopy(model).requires_grad_(False)
    optimiser = Muon(groups(decoder.named_parameters(), lambda n, p: options["muon_lr"] > 0, options["muon_lr"],
                            options["lr"]))
    step, spent = 0, 0.0
    state_path = work / "decoder-state.pt"
    if state_path.exists():
        state = torch.load(state_path, map_location=device)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent = state["step"], state["spent"]

    held = held_out_clips(1234, device, args.eager)
    with torch.no_grad():
        held_latents = model.encode(held)
    pool = Pool(options["pool"], options["seed"] + 51 + step, device, args.eager, options["scenes"], options["fast"],
                ahead=args.rendered)
    guesses = Guesses(work, args.behind, ema, options, args.eager, rendered=args.rendered) if args.behind else None
    clock = Clock(work, "decoder", options, spent)
    note(work, f"decoder: training starts at step {step}")
    last_save = time.time()
    losses = []
    while clock.running():
        elapsed, done = clock.elapsed, clock.done
        optimiser.set_scale(min((step + 1) / 30, 1.0, max(1.0 - done, 0.0) / 0.7 + 0.01))
        if guesses and step % 3:
            if step % 3 == 1 or not guesses.kept:
                guesses.renew(options["guesses"])
            target, latents = guesses.draw(options["batch"], options["crop"])
        else:
            whole = step % options["whole_every"] == 0
            target = pool.whole(options["whole"]) if whole else \
                pool.crops(options["batch"], options["crop"], options["frames"])
            with torch.no_grad():
                latents = model.encode(target)
        strength = options["noise"] * torch.rand(len(latents), 1, 1, 1, 1, device=device)
        with autocast(device, options["bf16"]):
            out = model.decode(latents + strength * torch.randn_like(latents))
        loss = reconstruction_loss(out.float(), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        model.zero_grad(set_to_none=True)
        step += 1
        average(ema, model, min(options["ema"], (step + 1) / (step + 10)))
        losses.append(loss.item())
        if step % 30 == 0:
            pool.refresh()
        if step % options["report"] == 0:
            with torch.no_grad():
                quality = psnr(torch.cat([ema.decode(z[None]) for z in held_latents[:6]]), held[:6])
            mean = sum(losses) / len(losses)
            tell(work, "decoder", step, elapsed, f"loss {mean:.4f} held-out {quality:.2f} dB")
            losses = []
        if time.time() - last_save > 150:
            last_save = time.time()
            save(state_path, model=model, ema=ema, optimiser=optimiser, step=step, spent=elapsed)
            save_weights(work / "autoencoder.pt", ema.state_dict())
            clock.keep()
    elapsed = clock.elapsed
    save(state_path, model=model, ema=ema, optimiser=optimiser, step=step, spent=elapsed)
    save_weights(work / "autoencoder.pt", ema.state_dict())
    clock.keep()
    if not clock.over:
        return note(work, f"decoder: paused at step {step}, {100 * clock.done:.0f} % done")
    with torch.no_grad():
        out = torch.cat([ema.decode(z[None]) for z in held_latents])
    facts = {"steps": step, "minutes": elapsed / 60, "psnr_db": round(psnr(out, held), 2)}
    (work / "decoder.json").write_text(json.dumps(facts))
    rows = [torch.cat([held[i], out[i].clamp(0, 1)], 2) for i in range(6)]
    contact_sheet(rows, [""] * 6, REPORTS / "autoencoder.png", [0, 4, 8, 12, 16])
    note(work, f"decoder: finished, {step} steps, {elapsed / 60:.0f} min, held-out {facts['psnr_db']} dB")


if __name__ == "__main__":
    main()
