"""The full-size run: a random checkpoint of the public model's exact shapes through packer, engine and browser.

    ./build.sh full-size [--keep DIR] [--seed N] [--steps pack,native]

Every step is held to PyTorch on the same quantized values, and its time and peak memory are printed as one line of
JSON. Needs 30 GB of disk and 5 GB of memory. Exit status 1 where a difference is larger than TOLERANCE.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import checkpoint
import packed as packed_model
import reference
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
# As a share of the largest value: f32 sums in another order through 30 blocks, and nothing else.
TOLERANCE = 1e-3
# [C, F, H, W]; height and width differ, so that swapped axes show.
NATIVE_LATENTS = (16, 2, 16, 12)
BROWSER_LATENTS = (16, 1, 4, 6)
STEPS = ("checkpoint", "pack", "native", "reference", "browser")


def report(step, **facts):
    print(json.dumps({"step": step, **facts}), flush=True)


def measured(work, command, **options):
    """Runs a command; seconds, and MiB of its largest resident set."""
    peak, started = work / "peak.txt", time.monotonic()
    if subprocess.run([sys.executable, HERE / "peak.py", peak, *command], **options).returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    return {"seconds": round(time.monotonic() - started, 1), "peak_mib": int(peak.read_text())}


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def write_checkpoint(work, args):
    started = time.monotonic()
    checkpoint.write(work / "checkpoint", args.seed)
    seconds = round(time.monotonic() - started, 1)
    report("checkpoint", seed=args.seed, seconds=seconds, bytes=size_of(work / "checkpoint"))


def pack(work, args):
    files = work / "checkpoint"
    command = [args.kinora, "pack", "--family", checkpoint.FAMILY, "--sampler", "fastwan-3", "--format", "q4",
               "--transformer", files / "transformer.safetensors", "--text-encoder", files / "text_encoder.safetensors",
               "--autoencoder", files / "autoencoder.safetensors", "--tokenizer", files / "tokenizer.json",
               "--out", work / "packed"]
    figures = measured(work, command, stdout=subprocess.DEVNULL)
    packed_model.write_denoiser_view(work / "packed", work / "denoiser")
    report("pack", **figures, bytes=size_of(work / "packed"), denoiser_view_bytes=size_of(work / "denoiser"))


def native(work, args):
    """The stages in the engine on the CPU; the text encoder from the whole model."""
    manifest = json.loads((work / "packed" / "manifest.json").read_text())
    for stage, tensors in reference.inputs(manifest, NATIVE_LATENTS).items():
        save_file(tensors, work / f"{stage}.in.safetensors")
        model = work / ("packed" if stage == "encode-text" else "denoiser")
        figures = measured(work, [args.kinora, "stage", stage, "--model", model,
                                  "--in", work / f"{stage}.in.safetensors",
                                  "--out", work / f"{stage}.out.safetensors"])
        report("native", stage=stage, **figures)


def compare(step, facts, found, expected):
    (name, wanted), = expected.items()
    worst, decibels = reference.differences(found[name], wanted)
    report(step, **facts, spread=round(float(wanted.std()), 4), relative_max_error=float(f"{worst:.2e}"),
           decibels=round(decibels, 1))
    return worst <= TOLERANCE


def hold_to_reference(work, _):
    packed, good = packed_model.Packed(work / "packed"), True
    for stage in reference.STAGES:
        started = time.monotonic()
        expected = reference.run(stage, packed, load_file(work / f"{stage}.in.safetensors"))
        facts = {"stage": stage, "seconds": round(time.monotonic() - started, 1)}
        good &= compare("reference", facts, load_file(work / f"{stage}.out.safetensors"), expected)
    return good


def in_chromium(script, *arguments):
    """What a script prints."""
    run = subprocess.run(["node", HERE / script, *arguments], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise SystemExit(f"{script} failed: {' '.join(map(str, arguments))}")
    return json.loads(run.stdout)


def browser(work, args):
    """One denoiser pass on the smallest latents in a worker in Chromium, then two clips of one frame from the page, which have to be
    the same: with the model in memory as a whole, and with its parts in turns."""
    view, good = packed_model.Packed(work / "denoiser"), True
    tensors = reference.inputs(view.manifest, BROWSER_LATENTS)["denoise"]
    save_file(tensors, work / "browser.in.safetensors")
    expected = reference.run("denoise", view, tensors)
    for device in args.devices.split(","):
        out = work / f"browser.{device}.safetensors"
        facts = in_chromium("stage.mjs", "--model", work / "denoiser", "--device", device,
                            "--in", work / "browser.in.safetensors", "--out", out)
        good &= compare("browser", {"device": device, **facts}, load_file(out), expected)
    clips = []
    for residency in ("together", "turns"):
        facts = in_chromium("page.mjs", "--model", work / "denoiser", "--device", args.page_device,
                            "--residency", residency)
        clips.append(facts.pop("hash"))
        report("page", **facts)
    return good and clips[0] == clips[1]


ACTIONS = dict(zip(STEPS, (write_checkpoint, pack, native, hold_to_reference, browser)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinora", required=True, help="the command line that build.sh built")
    parser.add_argument("--keep", type=Path, help="folder for the files, which stay there")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--devices", default="cpu,webgpu", help="devices of the browser run")
    parser.add_argument("--page-device", default="cpu", help="device of the page's clip")
    parser.add_argument("--steps", default=",".join(STEPS), help="only these, on what --keep has kept")
    args = parser.parse_args()
    work = args.keep or Path(tempfile.mkdtemp(prefix="kinora-full-size-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        results = [ACTIONS[step](work, args) for step in args.steps.split(",")]
    finally:
        if not args.keep:
            shutil.rmtree(work)
    sys.exit(False in results)


if __name__ == "__main__":
    main()
