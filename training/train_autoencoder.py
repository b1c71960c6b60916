"""Stage 1: train the autoencoder on stretches of rendered clips.

    python -m training.train_autoencoder [--preset cpu] [--minutes 20]

Loss: L1, L2 and the L1 of gradients in space and time and of mean colours. During training the latents pass an
affine-free batch normalisation; at the end its running statistics over whole
clips are folded into the last encoder convolution. Writes autoencoder.pt and
autoencoder.json (PSNR in dB on held-out scenes) into the work folder; resumes
from autoencoder-state.pt.
"""

import json
import random
import time

import torch
import torch.nn.functional as F

from . import presets, worlds
from .autoencoder import Autoencoder, psnr
from .clips import Pool, salience
from .optim import Muon, groups
from .precision import autocast
from .progress import REPORTS, Clock, note, save_weights, tell


def held_out_clips(seed, device, eager):
    """Sixteen clips of the model's first size that training never sees."""
    rng = random.Random(seed)
    described = [worlds.random_scene(rng, allow_held_out=True) for _ in range(16)]
    return torch.cat([worlds.clips(described[i:i + 8], "cpu", eager) for i in (0, 8)]).to(device)


def gradients(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def reconstruction_loss(out, target):
    """L1, L2, the L1 of gradients in space and time and of mean colours; small objects count more than wide skies, or
    come last. So does the place where one has just been or is about to be, or fast ones leave trails."""
    seen = F.max_pool3d(salience(target).unsqueeze(1), (3, 1, 1), stride=1, padding=(1, 0, 0)).squeeze(1)
    weight = 1.0 + 4.0 * seen.unsqueeze(-3)
    weight = weight / weight.mean()
    loss = ((out - target).abs() * weight).mean() + 2.0 * ((out - target).square() * weight).mean()
    for a, b in zip(gradients(out), gradients(target)):
        loss = loss + 1.0 * (a - b).abs().mean()
    error = out - target
    # the mean colour of a latent's cell, frame by frame: the eye sees it first, and the weights above make little of it
    loss = loss + 2.0 * F.avg_pool2d(error.flatten(0, 1), presets.cell()).abs().mean()
    # what changes from frame to frame has to be what changes in the target: flicker costs
    return loss + 1.0 * ((error[:, 1:] - error[:, :-1]).abs() * weight[:, 1:]).mean()


def normalise(latents, statistics, momentum=0.01, train=True):
    """Latents at about zero mean and unit variance per channel, by slowly moving statistics.

    Not by those of the batch: a batch of a few crops has a mean colour of its own, and subtracting it would hide from
    the decoder what colour everything is.
    """
    if train:
        with torch.no_grad():
            mean, var = latents.mean((0, 2, 3, 4)), latents.var((0, 2, 3, 4))
            statistics["mean"].lerp_(mean, momentum)
            statistics["var"].lerp_(var, momentum)
    mean, var = statistics["mean"], statistics["var"]
    return (latents - mean[:, None, None, None]) * torch.rsqrt(var + 1e-4)[:, None, None, None]


@torch.no_grad()
def evaluate(model, statistics, clips):
    out = torch.cat([model.decode(normalise(model.encode(c[None]), statistics, train=False)) for c in clips])
    return psnr(out, clips), out


def main():
    parser = presets.arguments("autoencoder", __doc__)
    args = parser.parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    device = options["device"]
    torch.manual_seed(options["seed"])
    model = Autoencoder(presets.AUTOENCODER).to(device)
    model.to(memory_format=torch.channels_last)
    model.channels_last = True
    muon_lr = options["muon_lr"]
    optimiser = Muon(groups(model.named_parameters(), lambda n, p: muon_lr > 0, muon_lr, options["lr"]))
    channels = presets.AUTOENCODER["latent_channels"]
    statistics = {"mean": torch.zeros(channels, device=device), "var": torch.ones(channels, device=device)}
    step, spent, seen = 0, 0.0, 0
    log = []
    state_path = work / "autoencoder-state.pt"
    if not state_path.exists() and (work / "autoencoder.pt").exists():
        # a finished autoencoder (of python -m training.shards, say) is trained on; its latents are normal already
        model.load_state_dict(torch.load(work / "autoencoder.pt", map_location=device))
        step = 100
    elif state_path.exists():
        state = torch.load(state_path, map_location=device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        for group in optimiser.param_groups:
            # --set lr=... counts for the run that goes on
            group["base_lr"] = options["muon_lr"] if group.get("muon") else options["lr"]
        statistics, step, spent, seen, log = (state[k] for k in ("statistics", "step", "spent", "seen", "log"))
        print(f"resumed at step {step}", flush=True)

    held = held_out_clips(options["seed"] + 1, device, args.eager)
    pool = Pool(options["pool"], options["seed"] + 2 + step, device, args.eager, options["scenes"], options["fast"],
                ahead=work if options["ahead"] else None)
    clock = Clock(work, "autoencoder", options, spent)
    note(work, f"autoencoder: training starts at step {step}")
    last_save, losses = time.time(), []
    while clock.running():
        elapsed, done = clock.elapsed, clock.done
        # warm-up, flat, then a linear fall over the last 60 %
        optimiser.set_scale(min(1.0, (step + 1) / 40, max(1.0 - done, 0.0) / 0.6 + 0.01))
        # whole clips show the borders and the scenery, short crops show more objects for the same work
        parts = [(False, pool.crops(options["batch"], options["crop"], options["frames"]))]
        if step % options["whole_every"] == 0:
            parts.append((True, pool.whole(options["whole"])))
        count, total = sum(len(part) for _, part in parts), 0.0
        # the statistics rest in the last third, for the decoder to settle on what will be folded
        momentum = max(0.02, 1 / (step + 1)) if done < 0.65 else 0.0
        for whole, video in parts:
            with autocast(device):
                latents = model.encode(video)
            latents = normalise(latents.float(), statistics, momentum, train=whole and momentum > 0)
            strength = options["noise"] * torch.rand(len(video), 1, 1, 1, 1, device=device)
            with autocast(device):
                out = model.decode(latents + strength * torch.randn_like(latents))
            loss = reconstruction_loss(out.float(), video)
            (loss / len(parts)).backward()
            total = total + loss.detach() / len(parts)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + count
        losses.append(total)
        if step % options["renew"] == 0:
            pool.refresh()
        if step % options["report"] == 0:
            quality, _ = evaluate(model, statistics, held[:4])
            log.append((step, round(elapsed), torch.stack(losses).mean().item(), quality))
            tell(work, "autoencoder", step, elapsed, f"loss {log[-1][2]:.4f} held-out {quality:.2f} dB")
            losses = []
        if time.time() - last_save > 150:
            last_save = time.time()
            save(state_path, model, optimiser, statistics, step, elapsed, seen, log)
            clock.keep()
    elapsed = clock.elapsed
    save(state_path, model, optimiser, statistics, step, elapsed, seen, log)
    clock.keep()
    if not clock.over:
        # what there is, usable on a machine that has not the state
        model.fold_normalisation(statistics["mean"], (statistics["var"] + 1e-4).sqrt())
        save_weights(work / "autoencoder.pt", model.state_dict())
        return note(work, f"autoencoder: paused at step {step}, {100 * clock.done:.0f} % done")
    finish(model, pool, statistics, held, work, {"steps": step, "stretches": seen, "minutes": elapsed / 60,
                                                 "seed": options["seed"], "log": log[-1:]})


def save(path, model, optimiser, statistics, step, spent, seen, log):
    temporary = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "statistics": statistics,
                "step": step, "spent": spent, "seen": seen, "log": log}, temporary)
    temporary.replace(path)


@torch.no_grad()
def finish(model, pool, statistics, held, work, facts):
    """Fold the running statistics into the encoder, measure and write the result."""
    model.fold_normalisation(statistics["mean"], (statistics["var"] + 1e-4).sqrt())
    store = pool.stores[0]
    latents = torch.cat([model.encode(clip[None].float() / 255) for clip in store.clips[:min(64, store.count)]])
    facts["latent_mean"], facts["latent_std"] = round(latents.mean().item(), 3), round(latents.std().item(), 3)
    out = torch.cat([model.decode(model.encode(c[None])) for c in held])
    facts["psnr_db"] = round(psnr(out, held), 2)
    save_weights(work / "autoencoder.pt", model.state_dict())
    (work / "autoencoder.json").write_text(json.dumps(facts))
    from .sheet import contact_sheet
    rows = [torch.cat([held[i], out[i].clamp(0, 1)], 2) for i in range(6)]
    contact_sheet(rows, [""] * 6, REPORTS / "autoencoder.png", [0, 4, 8, 12, 16])
    note(work, f"autoencoder: finished, {facts['steps']} steps, {facts['minutes']:.0f} min, "
               f"held-out {facts['psnr_db']} dB")


if __name__ == "__main__":
    main()
