"""Stage 5: distil the guided teacher into a student of a few unguided Euler steps.

    python -m training.distill [--preset cpu] [--minutes 15]
    python -m training.distill --teacher student --name student2 --set steps=2 --set guidance=1
    python -m training.distill --size 176x96

After Salimans and Ho, "Progressive distillation for fast sampling of diffusion
models" (2022), and Meng et al., "On distillation of guided diffusion models"
(2023), in one stage: the teacher, with classifier-free guidance, walks from pure
noise through the student's sigmas in several substeps each; between two student
sigmas the student regresses the mean velocity of that walk in one pass without
guidance. A walk costs the teacher many passes, so recent walks are kept and each
is used a few times (`replay`). Rows with given frames keep the plain
flow-matching loss, which keeps that ability. The second command goes on from four
steps to two. The third teaches a finished student a size of which the teacher has a
low-rank change (`train_lora.py`): the student's own change of it, begun as the
teacher's; student-WxH.safetensors. `--choose` measures shifts first: PSNR of 4 guided teacher steps
against 24. Writes student-state.pt and student.pt.
"""

import copy
import json
import random
import time

import torch

from . import distributed, lora, presets, sampling, tokenizer as tokenizers, worlds
from .autoencoder import psnr
from .data import LatentData, encode
from .make_latents import load_autoencoder
from .model import TextToVideo
from .optim import Muon
from .precision import autocast
from .progress import REPORTS, Clock, note, save, save_weights, tell
from .sheet import Samples
from .train_lora import trainable, with_change
from .train_teacher import average, masked_loss, noised, optimiser_for, show, some


@torch.no_grad()
def choose_shift(teacher, tokenizer, autoencoder, options, device, shifts=(2.0, 3.0, 5.0, 8.0)):
    """PSNR (dB) of few guided steps against 24 for some shifts, as {shift: dB}."""
    prompts, seeds = list(worlds.EXAMPLES[:4]), [11, 12, 13, 14]

    def clips(sigmas):
        z = sampling.sample(teacher, tokenizer, prompts, seeds, sigmas, options["guidance"], device)
        return torch.cat([autoencoder.decode(row[None]) for row in z]).clamp(0, 1)

    reference = clips(sampling.schedule(24, 3.0))
    return {shift: round(psnr(clips(sampling.schedule(options["steps"], shift)), reference), 2) for shift in shifts}


@torch.no_grad()
def walk(teacher, noise, ids, sigmas, substeps, guidance):
    """The guided teacher's path from `noise` over `sigmas`, of which every `substeps`-th is the student's.

    Returns the states at the student's sigmas and the mean velocities to the next one.
    """
    x, states, velocities = noise, [], []
    for first in range(0, len(sigmas), substeps):
        points = [*sigmas, 0.0][first:first + substeps + 1]
        start = x
        for now, then in zip(points, points[1:]):
            level = torch.full((len(x), x.shape[2]), now, device=x.device)
            x = x + sampling.guided(teacher, x, level, ids, guidance) * (then - now)
        states.append(start)
        velocities.append((x - start) / (points[-1] - points[0]))
    return torch.stack(states, 1), torch.stack(velocities, 1)


class Walks:
    """The last `keep` walks of every size: states and mean velocities [S, C, F, H, W] and token ids [L] of each."""

    def __init__(self, sigmas, keep, rng):
        self.sigmas, self.keep, self.rng, self.groups = sigmas, keep, rng, {}

    def add(self, states, velocities, ids):
        fresh = states.half(), velocities.half(), ids
        shape = states.shape[2:]
        if shape not in self.groups:
            self.groups[shape] = [[part.new_empty(self.keep, *part.shape[1:]) for part in fresh], 0]
        kept, count = self.groups[shape]
        places = (torch.arange(len(ids), device=ids.device) + count) % self.keep
        for rows, part in zip(kept, fresh):
            rows[places] = part
        self.groups[shape][1] += len(ids)

    def draw(self, count):
        """States [count, ...] of random walks of one size, their sigmas [count, 1], targets and ids.

        Every sigma comes equally often.
        """
        (states, velocities, ids), seen = self.rng.choice(list(self.groups.values()))
        chosen = torch.randint(min(seen, self.keep), (count,), device=ids.device)
        which = (torch.arange(count, device=ids.device) + self.rng.randrange(len(self.sigmas))) % len(self.sigmas)
        levels = torch.tensor(self.sigmas, device=ids.device)[which]
        return states[chosen, which].float(), levels[:, None], velocities[chosen, which].float(), ids[chosen]


def taught_shift(work, teacher):
    """The shift that a student was distilled with, when it is the teacher now."""
    facts = work / f"{teacher}.json"
    return json.loads(facts.read_text()).get("shift", 3.0) if facts.exists() else 3.0


def opened(work, name, tokenizer, size=None, change=None):
    """A model's weights, and with `size` a change beside them, begun as the one of `change`."""
    model = TextToVideo(tokenizer.get_vocab_size())
    weights = torch.load(work / f"{name}.pt", map_location="cpu")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    if size:
        lora.put(with_change(model, size).transformer, lora.load(lora.path_of(work, change, size)))
    return model


def main():
    parser = presets.arguments("distill", __doc__)
    parser.add_argument("--choose", action="store_true", help="measure shifts before training")
    parser.add_argument("--shift", type=float,
                        help="sigma shift without --choose; the one that --teacher was distilled with, or 3")
    parser.add_argument("--teacher", default="teacher", help="whose weights show the way")
    parser.add_argument("--name", default="student", help="what the result is called")
    parser.add_argument("--size", metavar="WxH", help="a size with a low-rank change: learn the student's change")
    args = parser.parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    rank, world, device = distributed.start(options["device"])
    tokenizer = tokenizers.load(work)
    size = presets.lora_size(args.size) if args.size else None
    sizes = [size] if size else presets.own_sizes()
    result = f"{args.name}-{args.size}" if size else args.name
    teacher = opened(work, args.teacher, tokenizer, size, args.teacher)
    teacher.to(device).eval().requires_grad_(False)
    autoencoder = load_autoencoder(work, device)
    shift, measured = args.shift or taught_shift(work, args.teacher), None
    if args.choose:
        measured = choose_shift(teacher, tokenizer, autoencoder, options, device)
        shift = max(measured, key=measured.get)
    if measured and rank == 0:
        note(work, f"distillation: dB of {options['steps']} against 24 steps by shift: {measured}")
    sigmas = sampling.schedule(options["steps"], shift)

    state_path = work / f"{result}-state.pt"
    weights_path = lora.path_of(work, args.name, size) if size else work / f"{result}.pt"
    # begun on another machine
    begun = weights_path.exists() and not state_path.exists() and not (work / f"{result}.json").exists()
    if size:
        student = opened(work, args.name, tokenizer, size, args.name if begun else args.teacher).to(device)
    else:
        student = opened(work, args.name, tokenizer).to(device) if begun else copy.deepcopy(teacher)
        student.requires_grad_(True)
    ema = copy.deepcopy(student).requires_grad_(False)
    if size:
        optimiser = Muon([{"params": trainable(student), "lr": options["lora_lr"]}], betas=(0.9, 0.98))
    else:
        optimiser = optimiser_for(student, options)
    step, spent, log = 0, 0.0, []
    if state_path.exists():
        state = torch.load(state_path, map_location=device)
        student.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent, log, shift = state["step"], state["spent"], state["log"], state["shift"]
        sigmas = sampling.schedule(options["steps"], shift)
    path = sampling.schedule(options["steps"] * options["substeps"], shift)
    seed = options["seed"] + 100 + step + 100003 * rank
    torch.manual_seed(seed)
    rng = random.Random(seed + 1)
    data = LatentData(work, seed + 2, device, caption_dropout=0.0, sizes=sizes)
    if not args.eager:
        student.compiled()
        teacher.compiled()
    run = distributed.shared(student)
    clock = Clock(work, result, options, spent)
    batch = max(2, options["batch"] // world)
    walkers = max(1, options["walkers"] // world)
    if rank == 0:
        note(work, f"distillation: starts at step {step}, sigmas {[round(s, 4) for s in sigmas]}")
    walks = Walks(sigmas, options["keep"], rng)
    last_save, losses, samples = time.time(), [], Samples(work, result, step)

    def keep(elapsed):
        save(state_path, model=student, ema=ema, optimiser=optimiser, step=step, spent=elapsed, log=log, shift=shift)
        if size:
            lora.save(weights_path, ema.transformer)
        else:
            save_weights(weights_path, ema.state_dict())
        clock.keep()

    while clock.running():
        elapsed, done = clock.elapsed, clock.done
        optimiser.set_scale(min((step + 1) / 10, 1.0, max(1.0 - done, 0.0) / 0.5 + 0.01))
        if step % options["replay"] == 0 or not walks.groups:
            texts = [worlds.caption(worlds.random_scene(rng), rng) for _ in range(walkers)]
            ids = encode(tokenizer, texts).to(device)
            noise = torch.randn(walkers, *sampling.latent_shape(rng.choice(sizes)), device=device)
            with autocast(device):
                walks.add(*walk(teacher, noise, ids, path, options["substeps"], options["guidance"]), ids)
        x, level, target, ids = walks.draw(2 * batch)
        with autocast(device):
            prediction = run(x, level.expand(-1, x.shape[2]).contiguous(), ids)
        loss = (prediction.float() - target).square().mean()
        loss.backward()
        losses.append(loss.detach())
        if step % 4 == 0:
            latents, given_ids, weights, *_ = data.batch(batch)
            x, level, target, mask = noised(latents, dict(options, given=1.0), rng)
            with autocast(device):
                prediction = run(x, level, given_ids)
            (0.5 * masked_loss(prediction.float(), target, mask * weights)).backward()
        torch.nn.utils.clip_grad_norm_(trainable(student), 1.0)
        optimiser.step()
        student.zero_grad(set_to_none=True)
        step += 1
        average(ema, student, min(options["ema"], (step + 1) / (step + 10)))
        if step % 10 == 0:
            log.append((step, round(elapsed), torch.stack(losses).mean().item()))
            losses = []
        if rank != 0:
            continue
        if step % 10 == 0:
            tell(work, result, step, elapsed, f"loss {log[-1][2]:.4f}")
        if (number := samples.due(done)):
            samples.keep(number, some(ema, tokenizer, autoencoder, 1.0, sigmas, device, sizes[0]), step, elapsed)
        if time.time() - last_save > 150:
            last_save = time.time()
            keep(elapsed)
    elapsed = clock.elapsed
    distributed.finish()
    if rank != 0:
        return
    walked = -(-step // options["replay"]) * walkers * world
    keep(elapsed)
    if not clock.over:
        return note(work, f"distillation: paused at step {step}, {100 * clock.done:.0f} % done")
    facts = {"steps": step, "walks": walked, "minutes": elapsed / 60, "guidance": options["guidance"],
             "teacher": args.teacher, "substeps": options["substeps"], "sigmas": sigmas, "shift": shift,
             "shift_db": measured, "loss": [(s, round(value, 4)) for s, _, value in log]}
    (work / f"{result}.json").write_text(json.dumps(facts))
    if (number := samples.due(1)):
        samples.keep(number, some(ema, tokenizer, autoencoder, 1.0, sigmas, device, sizes[0]), step, elapsed)
    samples.finish(REPORTS / f"{result}-samples.png", work / f"{result}-samples.png")
    show(ema, tokenizer, autoencoder, REPORTS / f"{result}.png", 1.0, sigmas, device, sizes[0])
    note(work, f"distillation: finished, {step} steps, {walked} walks, {elapsed / 60:.0f} min, "
               f"loss {log[-1][2] if log else float('nan'):.4f}")


if __name__ == "__main__":
    main()
