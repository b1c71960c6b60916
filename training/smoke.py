"""Dry run of every stage with tiny settings, in a temporary folder: `python -m training.smoke [MODEL ...]`.

Takes the models through all stages on the CPU, `harbour-large` with the `gpu` preset and as a relay, and stops at the
first failure. It checks the code paths, not the quality. A few minutes a model on two cores.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import presets
from .progress import tell
from .relay import STAGES as STAGES_OF_RELAY

STAGES = (
    ("train_autoencoder", 0.05, ["batch=2", "whole=1", "frames=5", "pool=8"]),
    ("tokenizer", None, []),
    ("train_text", 0.03, ["batch=4"]),
    ("probe", 0.03, ["batch=8", "pool=4", "held=8"]),
    ("make_latents", 1, ["clips=16", "shard=8", "batch=4", "seen=true"]),
    ("probe", 0.03, ["batch=8", "pool=4", "held=8", "ahead=true"]),
    ("widen", None, []),
    ("train_decoder", 0.03, ["batch=1", "whole=1", "frames=5", "pool=8"]),
    ("train_teacher", 0.05, ["batch=4", "bake=0.5"]),
    ("distill", 0.05, ["batch=4", "substeps=1", "walkers=2", "keep=64"]),
    ("evaluate", None, []),
)
FEW = ["--prompts", "16", "--confusable", "4", "--measured", "2", "--steps", "4",
       "--sources", "renders,autoencoder,teacher,student,student=student2"]


def run(name, *arguments):
    start = time.time()
    root = Path(__file__).resolve().parent.parent
    # sheets of a dry run do not belong into training/reports
    environment = dict(os.environ, KINORA_REPORTS=str(Path(arguments[arguments.index("--work") + 1]) / "reports"))
    environment.pop("KINORA_STATUS", None)
    done = subprocess.run([sys.executable, "-m", f"training.{name}", *arguments], cwd=root, env=environment,
                          capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:])
        raise SystemExit(f"{name} failed")
    print(f"{name}: ok, {time.time() - start:.0f} s", flush=True)


def changed(changes, prefix=""):
    return [word for change in changes for word in ("--set", prefix + change)]


def stages(common, folder):
    if "gpu" not in common:  # the batches of a GPU are too large for a dry run
        run("warm", *common, *changed(["batch=2"]))
    loras = presets.MODELS[common[1]]["loras"]
    for stage, minutes, changes in STAGES:
        limit = [] if minutes is None else ["--minutes", str(minutes)]
        if stage == "evaluate":
            run("follow", *common, "--before", f"{folder}/teacher.pt")
            decoder = ["train_decoder", *common, "--behind", "student", "--minutes", "0.06",
                       *changed(["batch=1", "whole=1", "frames=5", "pool=8", "guesses=1"])]
            run(*decoder)
            ahead = Path(folder) / "ahead"
            ahead.mkdir()
            shutil.copy(Path(folder) / "tokenizer.json", ahead)
            elsewhere = [str(ahead) if word == folder else word for word in common]
            run("make_latents", *elsewhere, "--ahead", "--minutes", "1", *changed(["clips=16", "shard=8", "batch=4"]))
            for name in ("decoder-state.pt", "decoder-clock.json"):  # or its time would be over
                (Path(folder) / name).unlink()
            run(*decoder, "--rendered", str(ahead))
            short = ["batch=4", "substeps=1", "walkers=2", "keep=64"]
            run("distill", *common, "--minutes", "0.03", "--teacher", "student", "--name", "student2",
                *changed([*short, "steps=2", "guidance=1"]))
            for size in loras:
                run("train_lora", *common, "--size", size, "--minutes", "0.03", *changed(["batch=2"]))
                run("distill", *common, "--size", size, "--minutes", "0.03", *changed(short))
        if stage in ("train_text", "probe") and "ahead=true" not in changes:  # ended at once, and then gone on with
            run(stage, *common, *limit, "--until", "1", *changed(changes))
            assert (Path(folder) / f"{stage.removeprefix('train_')}-state.pt").exists()
        run(stage, *common, *limit, *changed(changes), *(FEW if stage == "evaluate" else []))
    run("evaluate", *common, *FEW[:-1], "teacher=2", "--add", "--confusable", "0", "--measured", "0")
    judged = json.loads((Path(folder) / "evaluation.json").read_text())["at"]
    assert len(judged) == len(presets.MODELS[common[1]]["video"]["sizes"])
    # the student of two steps has no change for a size that needs one
    assert all(len(at["sources"]) == (5 if size in loras else 6) for size, at in judged.items())
    assert json.loads((Path(folder) / "student2.json").read_text())["sigmas"] == [1.0, 0.75]
    for step in (50, 100):  # the stages above were too short for a line of their own
        tell(Path(folder), "teacher", step, step / 4, "loss 0.5")
    run("curves", *common)
    assert (Path(folder) / "reports" / "curves.png").exists() and (Path(folder) / "teacher-samples.png").exists()
    run("export", *common, "--out", f"{folder}/export")
    manifest = json.loads((Path(folder) / "export" / "model.json").read_text())
    assert manifest["interface"] == "kinora-wan-1" and manifest["sampler"]["sigmas"][0] == 1.0
    assert len(manifest["video"]["sizes"]) == len(judged)


def relay(common, folder):
    """In runs that are too short for all of it, the last one on a machine that has only the parts."""
    known = {stage for stage, *_ in STAGES_OF_RELAY}
    tiny = [word for stage, _, changes in STAGES if stage in known for word in changed(changes, stage + ".")]
    parts = f"{folder}/parts"
    for number in range(2):
        run("relay", *common, "--total", "0.6", "--minutes", "4", "--store", parts, "--renderers", "1", *tiny)
    facts = json.loads((Path(parts) / "parts.json").read_text())
    assert all(path.stat().st_size <= 16 * 2 ** 20 for path in Path(parts).iterdir())
    assert "autoencoder.json" in facts["files"]
    with tempfile.TemporaryDirectory() as other:
        moved = [other if word == folder else word for word in common]
        run("relay", *moved, "--total", "0.6", "--minutes", "3", "--store", f"{other}/parts", "--take", parts, *tiny)
        assert (Path(other) / "autoencoder.pt").exists()


def main():
    from . import model, noise, widen
    noise.check()
    widen.check()
    print(f"noise: ok; model agrees with diffusers within {model.check():.1e}", flush=True)
    for world in sys.argv[1:] or ("meadow", "harbour", "harbour-large"):
        preset = "gpu" if world.endswith("large") else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            common = ["--model", world, "--preset", preset, "--device", "cpu", "--work", folder, "--eager"]
            print(f"{world}, {preset}", flush=True)
            stages(common, folder)
        if preset == "gpu":
            with tempfile.TemporaryDirectory() as folder:
                common = ["--model", world, "--preset", preset, "--device", "cpu", "--work", folder, "--eager"]
                relay(common, folder)
    print("all stages: ok")


if __name__ == "__main__":
    main()
