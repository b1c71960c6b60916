"""Stage 4: train the text encoder and the denoiser together on cached latents.

    python -m training.train_teacher [--preset cpu] [--minutes 45]

Flow matching: x_s = (1 - s) x0 + s eps, the network predicts eps - x0. A share
of the rows has given frames: those are clean, at sigma 0, and not in the loss.
10 % of the captions are dropped for guidance.

If `bake` is less than 1, in the last part of the time only the sigmas of the four sampling steps
are trained and the guidance is added to the target (after Tang et al., "Diffusion
models without classifier-free guidance", 2025, with a frozen copy of the network
for the difference), so that teacher.pt samples in four unguided steps. Distillation
(`distill.py`) goes further but learns nothing new about the data. Writes teacher-state.pt (resumable)
and teacher.pt (moving average of the weights), clips made while it learns into reports/. A teacher.pt without
its state is trained on from its weights; delete it to begin anew.
"""

import copy
import json
import random
import time

import torch

from . import distributed, presets, sampling, tokenizer as tokenizers, worlds
from .data import LatentData, empty, given_frames, naming_loss, shifted
from .make_latents import load_autoencoder
from .model import TextToVideo
from .optim import Muon, groups
from .precision import autocast
from .progress import REPORTS, Clock, note, save, save_weights, tell
from .sheet import Samples, contact_sheet
from .train_text import AttributeReader, Reader, states_and_last

SHIFT = 3.0  # training sigmas lean towards noise, as sampling does


def is_matrix(name, parameter):
    """Weights inside the blocks take Muon steps; embeddings, input and output layers AdamW."""
    return parameter.ndim == 2 and ".block" in "." + name and "relative_attention_bias" not in name


def optimiser_for(model, options):
    """Muon when the settings give it a rate, else AdamW throughout."""
    matrix = is_matrix if options["muon_lr"] > 0 else lambda name, parameter: False
    return Muon(groups(model.named_parameters(), matrix, options["muon_lr"], options["lr"], 0.01))


def noised(latents, options, rng, levels=None):
    """Noisy latents, their sigmas [B, F], the velocity target and the loss mask [B, 1, F, 1, 1].

    Sigmas are spread over 0..1, or drawn from `levels` when given.
    """
    count, frames = latents.shape[0], latents.shape[2]
    # one draw per stratum keeps the loss of a small batch steady
    u = (torch.arange(count) + torch.rand(count)) / count
    sigmas = shifted(u[torch.randperm(count)], SHIFT)
    if levels is not None:
        sigmas = torch.tensor(levels)[(torch.arange(count) + rng.randrange(len(levels))) % len(levels)]
    sigmas = sigmas[:, None].expand(count, frames).clone().to(latents.device)
    given = given_frames(count, frames, options["given"], rng).to(latents.device)
    sigmas[given] = 0.0
    noise = torch.randn_like(latents)
    level = sigmas[:, None, :, None, None]
    mask = (~given).float()[:, None, :, None, None]
    return (1 - level) * latents + level * noise, sigmas, noise - latents, mask


def masked_loss(prediction, target, mask):
    error = ((prediction - target).square() * mask).mean((1, 2, 3, 4)) / mask.mean((1, 2, 3, 4))
    return error.mean()


@torch.no_grad()
def average(ema, model, decay):
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


@torch.no_grad()
def made(model, tokenizer, autoencoder, guidance, sigmas, device, prompts, size=None):
    """Clips of prompts, always of the same seeds."""
    latents = sampling.sample(model, tokenizer, prompts, list(range(len(prompts))), sigmas, guidance, device,
                              size=size)
    return torch.cat([autoencoder.decode(z[None]) for z in latents])


def show(model, tokenizer, autoencoder, path, guidance, sigmas, device, size=None):
    prompts = list(worlds.EXAMPLES)
    contact_sheet(made(model, tokenizer, autoencoder, guidance, sigmas, device, prompts, size), prompts, path)


def some(model, tokenizer, autoencoder, guidance, sigmas, device, size=None):
    """The clips of `Samples`."""
    return made(model, tokenizer, autoencoder, guidance, sigmas, device, list(worlds.EXAMPLES[:Samples.CLIPS]), size)


class Standing(torch.nn.Linear):
    """Names, from the hidden state of each token, what stands at its four cells: whether an object does, and which
    (`data.standing`).

    To the flow-matching loss a red ball beside a blue cube is a few cells of hundreds. Aligning early blocks with what
    the clean picture shows made diffusion transformers learn many times faster (Yu et al., "Representation alignment for
    generation", 2024, with features of a pretrained encoder); here the world itself knows.
    """

    def __init__(self, width):
        self.sizes = [2, *(len(worlds.ATTRIBUTES[name]) for name in presets.THINGS)]
        super().__init__(width, 4 * sum(self.sizes))

    def loss(self, hidden, cells):
        """Of hidden states [B, tokens, D] and `data.standing` [B, F, H, W, 1 + A]."""
        batch, frames, rows, columns = cells.shape[:4]
        said = self(hidden).view(batch, frames, rows // 2, columns // 2, 2, 2, -1).transpose(3, 4)
        said = said.reshape(-1, sum(self.sizes)).float().split(self.sizes, -1)
        return sum(naming_loss(logits, cells[..., i].flatten()) for i, logits in enumerate(said))


class Trained(torch.nn.Module):
    """The model, and heads that are no part of it.

    The object is small in the picture and its words reach the flow-matching loss late. Having to name the attributes
    from every token's hidden state makes the first blocks fetch them from the text at once. And a caption's last state
    has to tell what the caption says, or the text encoder gets by with a bag of words, in which "the camera pans left,
    a ball rolls right" is the same as its opposite.
    """

    def __init__(self, model):
        super().__init__()
        self.model, config = model, model.transformer.config
        self.head = AttributeReader(config.num_attention_heads * config.attention_head_dim)
        self.reader = Reader(model.text_encoder.config.d_model)
        self.standing = Standing(config.num_attention_heads * config.attention_head_dim) if presets.THINGS else None

    def forward(self, x, sigmas, ids, attributes, cells, captions, *said):
        """Velocity, the naming loss, the placing loss, and the reading loss of full captions."""
        prediction, hidden = self.model(x, sigmas, ids, 1)
        reading = self.reader.loss(*states_and_last(self.model, captions), *said)
        placing = self.standing.loss(hidden, cells) if self.standing else torch.zeros_like(reading)
        return prediction, self.head.loss(hidden, attributes), placing, reading


def main():
    args = presets.arguments("teacher", __doc__).parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    rank, world, device = distributed.start(options["device"])
    torch.manual_seed(options["seed"])
    tokenizer = tokenizers.load(work)
    model = TextToVideo(tokenizer.get_vocab_size()).to(device)
    state_path = work / "teacher-state.pt"
    if (work / "teacher.pt").exists() and not state_path.exists():  # of an earlier run, or of python -m training.shards
        model.load_state_dict(torch.load(work / "teacher.pt", map_location=device))
    elif (work / "text.pt").exists():
        model.text_encoder.load_state_dict(torch.load(work / "text.pt", map_location=device))
    ema = copy.deepcopy(model).requires_grad_(False)
    both = Trained(model).to(device)
    optimiser = optimiser_for(both, options)
    step, spent, log = 0, 0.0, []
    if state_path.exists():
        state = torch.load(state_path, map_location=device)
        both.load_state_dict(state["both"], strict=False)  # older states have fewer heads
        ema.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent, log = state["step"], state["spent"], state["log"]
    data = LatentData(work, options["seed"] + step + 100003 * rank, device, confusable=options["confusable"])
    rng = random.Random(options["seed"] + 5 + step + 100003 * rank)
    torch.manual_seed(options["seed"] + step + 100003 * rank)
    autoencoder = load_autoencoder(work, device)
    if not args.eager:
        model.compiled()
    run = distributed.shared(both)
    clock = Clock(work, "teacher", options, spent)
    if rank == 0:
        note(work, f"teacher: training starts at step {step} with {len(data)} clips, "
                   f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
    last_save = time.time()
    samples = Samples(work, "teacher", step)
    losses = []
    frozen, levels, few = None, sampling.schedule(4, SHIFT), sampling.schedule(8, SHIFT)
    while clock.running():
        elapsed, done = clock.elapsed, clock.done
        optimiser.set_scale(min((step + 1) / 60, 1.0, max(1.0 - done, 0.0) / 0.3 + 0.01))
        latents, ids, weights, attributes, cells = data.batch(options["batch"] // world)
        baking = done > options["bake"]
        if baking and frozen is None:
            frozen, data.dropout = copy.deepcopy(ema), 0.0
        x, sigmas, target, mask = noised(latents, options, rng, levels if baking else None)
        if baking:
            # the target a guided sampler would follow: one pass then does the work of two
            with torch.no_grad(), autocast(device):
                difference = frozen(x, sigmas, ids) - frozen(x, sigmas, empty(ids))
                target = target + (options["guidance"] - 1) * difference
        with autocast(device):
            prediction, named, placed, read = run(x, sigmas, ids, attributes, cells, *data.captions(2 * len(x)))
        loss = masked_loss(prediction.float(), target, mask * weights)
        told = options["naming"] * named + options["placing"] * placed
        (loss + max(1 - 1.5 * done, 0.1) * told + options["reading"] * read).backward()
        values = torch.stack([loss, named, placed, read]).detach()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        both.zero_grad(set_to_none=True)
        step += 1
        average(ema, model, min(options["ema"], (step + 1) / (step + 10)))
        losses.append(values)
        if step % 50 == 0:
            log.append((step, round(elapsed), *torch.stack(losses).mean(0).tolist()))
            losses = []
            data.refresh()
        if rank != 0:
            continue
        if step % 50 == 0:
            tell(work, "teacher", step, elapsed, f"loss {log[-1][2]:.4f} naming {log[-1][3]:.3f} "
                 f"placing {log[-1][4]:.3f} reading {log[-1][5]:.3f} clips {len(data)}")
        if time.time() - last_save > 180:
            last_save = time.time()
            save(state_path, both=both, ema=ema, optimiser=optimiser, step=step, spent=elapsed, log=log)
            save_weights(work / "teacher.pt", ema.state_dict())
            clock.keep()
        if (number := samples.due(done)):
            samples.keep(number, some(ema, tokenizer, autoencoder, 3.0, few, device), step, elapsed)
    elapsed = clock.elapsed
    distributed.finish()
    if rank != 0:
        return
    save(state_path, both=both, ema=ema, optimiser=optimiser, step=step, spent=elapsed, log=log)
    save_weights(work / "teacher.pt", ema.state_dict())
    clock.keep()
    if not clock.over:
        return note(work, f"teacher: paused at step {step}, {100 * clock.done:.0f} % done")
    facts = {"guidance_baked": options["guidance"], "bake": options["bake"],
             "steps": step, "batch": options["batch"], "clips_seen": step * options["batch"],
             "cached_clips": len(data), "minutes": elapsed / 60, "seed": options["seed"],
             "loss": [(s, round(value, 4)) for s, _, value, *_ in log]}
    (work / "teacher.json").write_text(json.dumps(facts))
    if (number := samples.due(1)):
        samples.keep(number, some(ema, tokenizer, autoencoder, 3.0, few, device), step, elapsed)
    samples.finish(REPORTS / "teacher-samples.png", work / "teacher-samples.png")
    show(ema, tokenizer, autoencoder, REPORTS / "teacher.png", 1.0, levels, device)
    note(work, f"teacher: finished, {step} steps of {options['batch']}, {elapsed / 60:.0f} min, "
               f"loss {log[-1][2] if log else float('nan'):.4f}")


if __name__ == "__main__":
    main()
