"""Dry run of every stage with tiny settings, in a temporary folder: `python -m training.smoke`.

Takes both presets through all stages on the CPU in about two minutes and stops
at the first failure. It checks the code paths, not the quality.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = (
    ("train_autoencoder", 0.05, ["batch=2", "whole=1", "frames=5", "pool=8"]),
    ("tokenizer", None, []),
    ("train_text", 0.03, ["batch=4"]),
    ("probe", 0.03, ["batch=8", "pool=4", "held=8"]),
    ("make_latents", 1, ["clips=16", "shard=8", "batch=8"]),
    ("train_decoder", 0.03, ["batch=1", "frames=5", "pool=8"]),
    ("train_teacher", 0.05, ["batch=4", "bake=0.5"]),
    ("distill", 0.05, ["batch=4", "substeps=1"]),
    ("evaluate", None, []),
)


def run(stage, *arguments):
    start = time.time()
    root = Path(__file__).resolve().parent.parent
    # sheets of a dry run do not belong into training/reports
    environment = dict(os.environ, KINORA_REPORTS=str(Path(arguments[arguments.index("--work") + 1]) / "reports"))
    environment.pop("KINORA_STATUS", None)
    done = subprocess.run([sys.executable, "-m", f"training.{stage}", *arguments], cwd=root, env=environment,
                          capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:])
        raise SystemExit(f"{stage} failed")
    print(f"{stage}: ok, {time.time() - start:.0f} s", flush=True)


def main():
    from . import model, noise
    noise.check()
    print(f"noise: ok; model agrees with diffusers within {model.check():.1e}", flush=True)
    for world, preset in (("meadow", "cpu"), ("meadow", "gpu")):
        with tempfile.TemporaryDirectory() as folder:
            for stage, minutes, changes in STAGES:
                arguments = ["--model", world, "--preset", preset, "--device", "cpu", "--work", folder, "--eager"]
                if minutes is not None:
                    arguments += ["--minutes", str(minutes)]
                for change in changes:
                    arguments += ["--set", change]
                run(stage, *arguments, *(["--prompts", "16", "--measured", "2", "--steps", "4"] if stage == "evaluate" else []))
            run("export", "--model", world, "--preset", preset, "--work", folder, "--out", f"{folder}/export")
            manifest = json.loads((Path(folder) / "export" / "model.json").read_text())
            assert manifest["interface"] == "kinora-wan-1" and manifest["sampler"]["sigmas"][0] == 1.0
    print("all stages: ok")


if __name__ == "__main__":
    main()
