"""Stage 3: render scenes, encode them and keep the latents.

    python -m training.make_latents [--preset cpu] [--minutes 12]

Writes latents-NNNN.npz shards into the work folder: f16 latents [N, C, F, H, W], token ids of captions, where the
objects are and the scenes as JSON. A share `fast` of the scenes show something that moves fast. Stops at the preset's
number of clips or when the time is over, and then writes latents.json; run again to go on.
With --ahead only pictures are rendered (clips-NNNN.npy and about-NNNN.npz, removed once encoded): that may be done
while the autoencoder still trains, and by N processes at once (--part 0/N, 1/N, ...). With --set ahead=true nothing is
rendered: what others have rendered is encoded, with --follow also what they are still rendering. With --set seen=true
the probe is served too (seen-NNNN.npz, what it looks at and its answers): it has to know the combinations held out of
training, so these are rendered as well and kept from the latents only.
"""

import json
import random
import time

import numpy as np
import torch

from . import data, presets, probe as probes, tokenizer as tokenizers, worlds
from .autoencoder import Autoencoder
from .clips import clips_path
from .precision import autocast
from .progress import note

ENOUGH = 2048  # clips that a denoiser can begin with
WAITING = 36e9  # bytes of clips rendered ahead that wait to be encoded, before their makers wait too


def load_autoencoder(work, device):
    model = Autoencoder(presets.AUTOENCODER)
    model.load_state_dict(torch.load(work / "autoencoder.pt", map_location="cpu"))
    model.to(device=device, memory_format=torch.channels_last)
    model.channels_last = True
    return model.eval().requires_grad_(False)


def shard_path(work, index):
    return work / f"latents-{index:04d}.npz"


def about_path(work, index):
    return work / f"about-{index:04d}.npz"


def load_shards(work, known, device="cpu"):
    """Groups (`data.Group`) of the shards that are not among the paths `known`, which are added to it."""
    fresh = [path for path in sorted(work.glob("latents-*.npz")) if path not in known]
    known.update(fresh)
    return [data.Group(np.load(path), device) for path in fresh]


def write(path, save):
    """Write through a temporary file, so that a reader never sees half a shard."""
    temporary = path.with_name("part-" + path.name)
    save(temporary)
    temporary.replace(path)


def render(options, index, eager, device, tokenizer):
    """Clips of a shard as bytes [N, T, 3, H, W] and what is to be known about them (`data.about`).

    The model's sizes take turns from shard to shard.
    """
    sizes = presets.VIDEO["sizes"]
    rng = random.Random(f"{options['seed']}-latents-{index}")
    any_scene = {"allow_held_out": options["seen"]}
    described = [worlds.scene_like(rng, worlds.fast, **any_scene) if rng.random() < options["fast"]
                 else worlds.random_scene(rng, **any_scene) for _ in range(options["shard"])]
    size = sizes[index % len(sizes)]
    clips = [(worlds.clips(described[i:i + options["batch"]], device, eager, size) * 255).round().byte().cpu()
             for i in range(0, len(described), options["batch"])]
    return torch.cat(clips), data.about(described, tokenizer, rng, size)


def without_held_out(clips, about):
    described = json.loads(about["scenes"].item())
    rows = [row for row, scene in enumerate(described) if not worlds.held_out(scene)]
    kept = {name: values[rows] for name, values in about.items() if name != "scenes"}
    return clips[rows], {**kept, "scenes": np.array(json.dumps([described[row] for row in rows]))}


def render_ahead(work, options, index, eager, tokenizer):
    clips, about = render(options, index, eager, "cpu", tokenizer)
    write(about_path(work, index), lambda to: np.savez(to, **about))
    write(clips_path(work, index), lambda to: np.save(to, clips.numpy()))


def encode_shard(work, model, options, index, eager, tokenizer):
    """Latents of a shard, of clips rendered ahead if there are such."""
    path = clips_path(work, index)
    if path.exists():
        clips, about = torch.from_numpy(np.load(path)), dict(np.load(about_path(work, index)))
    else:
        clips, about = render(options, index, eager, options["device"], tokenizer)
    if options["seen"]:
        lessons = probes.lessons(clips, json.loads(about["scenes"].item()))
        write(probes.seen_path(work, index),
              lambda to: np.savez(to, **{name: part.numpy() for name, part in zip(probes.LESSON, lessons)}))
        clips, about = without_held_out(clips, about)
    parts = []
    for part in clips.split(options["batch"]):
        # in bf16 a latent is off by 0.03, a third of the noise that the decoder is trained with
        with torch.no_grad(), autocast(options["device"]):
            parts.append(model.encode(part.to(options["device"]).float() / 255))
    latents = torch.cat([part.half().cpu() for part in parts])
    write(shard_path(work, index), lambda to: np.savez(to, latents=latents.numpy(), **about))
    path.unlink(missing_ok=True)
    about_path(work, index).unlink(missing_ok=True)


def wait_while(condition, deadline):
    while condition() and time.time() < deadline:
        time.sleep(0.2)


def main():
    parser = presets.arguments("latents", __doc__)
    parser.add_argument("--ahead", action="store_true", help="only render")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="with --ahead: every Nth shard, from I on")
    parser.add_argument("--follow", action="store_true", help="encode what is rendered ahead, wait for more")
    args = parser.parse_args()
    options, work = presets.settings(args), presets.work_dir(args.work)
    tokenizer = tokenizers.load(work)
    model = None if args.ahead else load_autoencoder(work, options["device"])
    deadline = min(time.time() + 60 * options["minutes"], options["until"] or float("inf"))
    if args.part.startswith("0/"):
        note(work, f"latents: rendering {'ahead' if args.ahead else 'and encoding'} starts")
    count, (first, parts) = 0, (int(number) for number in args.part.split("/"))
    numbers = range(first, -(-options["clips"] // options["shard"]), parts)
    if options["ahead"] and not args.ahead:
        count = encode_rendered(work, model, options, tokenizer, deadline, args.follow)
        numbers = ()
    for index in numbers:
        if not shard_path(work, index).exists() and not (args.ahead and clips_path(work, index).exists()):
            if args.ahead:
                wait_while(lambda: waiting(work) > WAITING, deadline)
                render_ahead(work, options, index, args.eager, tokenizer)
            else:
                encode_shard(work, model, options, index, args.eager, tokenizer)
        count += options["shard"]
        if index % 16 == 0:
            print(f"{count} clips", flush=True)
        # every size has its turn before time counts
        if time.time() > deadline and index + 1 >= len(presets.VIDEO["sizes"]):
            break
    if args.ahead or args.follow:
        return
    (work / "latents.json").write_text(json.dumps({"clips": count}))
    note(work, f"latents: finished, {count} clips")


def encode_rendered(work, model, options, tokenizer, deadline, follow):
    """Encodes what others have rendered, and waits for more if it is to `follow` or if there is too little to begin
    with; returns the number of clips."""
    count, enough = 0, min(ENOUGH, options["clips"])
    while time.time() < deadline:
        paths = sorted(work.glob("clips-*.npy"))
        for path in paths:
            encode_shard(work, model, options, int(path.stem.split("-")[1]), False, tokenizer)
            count += options["shard"]
            if time.time() > deadline:
                break
        if not paths:
            if not follow and count >= enough:
                break
            time.sleep(0.2)
    return count


def waiting(work):
    """Bytes of clips that are not encoded yet."""
    total = 0
    for path in work.glob("clips-*.npy"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # encoded and removed meanwhile
            pass
    return total


if __name__ == "__main__":
    main()
