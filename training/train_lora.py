"""Stage 4a: teach the teacher another size of the picture by a low-rank change of it, which leaves the others alone.

    python -m training.train_lora [--size 176x96] [--minutes 90]

The denoiser knows where everything stands by its distance from the edges, so that another shape is new to it. A change
of 4 % of its weights (`lora.py`) learns that, of a rank that `presets.LORAS` names; text encoder and weights stay as
they are. Flow matching as in `train_teacher.py`. Writes teacher-WxH-state.pt (resumable) and teacher-WxH.safetensors
(moving average); `distill.py --size WxH` makes the student's of it.
"""

import copy
import json
import random
import time

import torch

from . import distributed, lora, presets, sampling, tokenizer as tokenizers
from .data import LatentData
from .make_latents import load_autoencoder
from .model import TextToVideo
from .precision import autocast
from .progress import REPORTS, Clock, note, save, tell
from .sheet import Samples
from .train_teacher import SHIFT, average, masked_loss, noised, some


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def with_change(model, size):
    """The model, its weights fixed, with a change that can learn."""
    model.requires_grad_(False)
    lora.attach(model.transformer, presets.LORAS[presets.named(size)])
    return model


def main():
    parser = presets.arguments("lora", __doc__)
    parser.add_argument("--size", metavar="WxH", help="one of the sizes that have a change; the first if absent")
    args = parser.parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    size = presets.lora_size(args.size)
    stage = f"teacher-{presets.named(size)}"
    rank, world, device = distributed.start(options["device"])
    torch.manual_seed(options["seed"] + 40)
    tokenizer = tokenizers.load(work)
    model = TextToVideo(tokenizer.get_vocab_size())
    weights = torch.load(work / "teacher.pt", map_location="cpu")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    model = with_change(model, size).to(device)
    state_path, path = work / f"{stage}-state.pt", lora.path_of(work, "teacher", size)
    if path.exists() and not state_path.exists():  # begun on another machine
        lora.put(model.transformer, lora.load(path))
    ema = copy.deepcopy(model)
    optimiser = torch.optim.AdamW(trainable(model), lr=options["lr"], betas=(0.9, 0.98), weight_decay=0.0)
    step, spent, log = 0, 0.0, []
    if state_path.exists():
        state = torch.load(state_path, map_location=device)
        lora.put(model.transformer, state["change"])
        lora.put(ema.transformer, state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent, log = state["step"], state["spent"], state["log"]
    seed = options["seed"] + 41 + step + 100003 * rank
    data = LatentData(work, seed, device, confusable=options["confusable"], sizes=[size])
    rng = random.Random(seed + 1)
    torch.manual_seed(seed)
    autoencoder = load_autoencoder(work, device)
    if not args.eager:
        model.compiled()
    run = distributed.shared(model)
    clock = Clock(work, stage, options, spent)
    if rank == 0:
        count = sum(parameter.numel() for parameter in trainable(model))
        note(work, f"{stage}: training starts at step {step} with {len(data)} clips, {count / 1e6:.2f} M parameters")
    samples, losses, last_save = Samples(work, stage, step), [], time.time()

    def keep(elapsed):
        save(state_path, change=lora.changes(model.transformer), ema=lora.changes(ema.transformer), optimiser=optimiser,
             step=step, spent=elapsed, log=log)
        lora.save(path, ema.transformer)
        clock.keep()

    def sample(number, elapsed):
        clips = some(ema, tokenizer, autoencoder, options["guidance"], sampling.schedule(8, SHIFT), device, size)
        samples.keep(number, clips, step, elapsed)

    while clock.running():
        elapsed, done = clock.elapsed, clock.done
        for group in optimiser.param_groups:
            group["lr"] = options["lr"] * min((step + 1) / 30, 1.0, max(1.0 - done, 0.0) / 0.4 + 0.005)
        latents, ids, weights, *_ = data.batch(options["batch"] // world)
        x, sigmas, target, mask = noised(latents, options, rng)
        with autocast(device):
            prediction = run(x, sigmas, ids)
        loss = masked_loss(prediction.float(), target, mask * weights)
        loss.backward()
        losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(trainable(model), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        average(ema, model, min(options["ema"], (step + 1) / (step + 10)))
        if step % 100 == 0:
            log.append((step, round(elapsed), torch.stack(losses).mean().item()))
            losses = []
            data.refresh()
        if rank != 0:
            continue
        if step % 100 == 0:
            tell(work, stage, step, elapsed, f"loss {log[-1][2]:.4f}")
        if time.time() - last_save > 180:
            last_save = time.time()
            keep(elapsed)
        if (number := samples.due(done)):
            sample(number, elapsed)
    elapsed = clock.elapsed
    distributed.finish()
    if rank != 0:
        return
    keep(elapsed)
    if not clock.over:
        return note(work, f"{stage}: paused at step {step}, {100 * clock.done:.0f} % done")
    facts = {"rank": presets.LORAS[presets.named(size)], "steps": step, "batch": options["batch"],
             "clips_seen": step * options["batch"], "cached_clips": len(data), "minutes": elapsed / 60,
             "loss": [(s, round(value, 4)) for s, _, value in log]}
    (work / f"{stage}.json").write_text(json.dumps(facts))
    if (number := samples.due(1)):
        sample(number, elapsed)
    samples.finish(REPORTS / f"{stage}-samples.png", work / f"{stage}-samples.png")
    note(work, f"{stage}: finished, {step} steps of {options['batch']}, {elapsed / 60:.0f} min, "
               f"loss {log[-1][2] if log else float('nan'):.4f}")


if __name__ == "__main__":
    main()
