"""Stage 3b: go on training the decoder alone behind the frozen encoder.

    python -m training.train_decoder [--preset cpu] [--minutes 15]

The latents do not change, so this may come after the later stages; it is also cheaper than stage 1. Latents get a
little noise, which prepares the decoder for those the denoiser will make. Overwrites autoencoder.pt (moving average of
the decoder) every few minutes and resumes from decoder-state.pt.
"""

import copy
import json
import time

import torch

from . import presets
from .autoencoder import psnr
from .make_latents import load_autoencoder
from .optim import Muon, groups
from .precision import autocast
from .progress import REPORTS, Clock, note, save_weights
from .sheet import contact_sheet
from .train_autoencoder import Pool, held_out_clips, reconstruction_loss
from .train_teacher import average, save


def main():
    args = presets.arguments("decoder", __doc__).parse_args()
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
    pool = Pool(options["pool"], options["seed"] + 51 + step, device, args.eager, fast=options["fast"])
    clock = Clock(work, "decoder", options, spent)
    note(work, f"decoder: training starts at step {step}")
    last_save = time.time()
    losses = []
    while clock.running():
        elapsed, done = clock.elapsed, clock.done
        optimiser.set_scale(min((step + 1) / 30, 1.0, max(1.0 - done, 0.0) / 0.7 + 0.01))
        whole = step % options["whole_every"] == 0
        target = pool.whole(options["whole"]) if whole else \
            pool.crops(options["batch"], options["crop"], options["frames"])
        target = target.to(device)
        with torch.no_grad():
            latents = model.encode(target)
        strength = options["noise"] * torch.rand(len(latents), 1, 1, 1, 1, device=device)
        with autocast(device):
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
        if step % 200 == 0:
            with torch.no_grad():
                quality = psnr(torch.cat([ema.decode(z[None]) for z in held_latents[:6]]), held[:6])
            mean = sum(losses) / len(losses)
            print(f"step {step} {elapsed:.0f} s loss {mean:.4f} held-out {quality:.2f} dB", flush=True)
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
