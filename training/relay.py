"""All stages one after the other, in runs of a few minutes, for a machine that is lent for a short while.

    python -m training.relay --model harbour-large --preset gpu --minutes 9 --store PARTS [--take PARTS]

Each run goes on where the last one stopped and ends in time; after it, PARTS holds the weights in pieces of at most
16 MiB (`parts.py`). On a machine that was given back meanwhile, `--take` brings the last pieces; weights that are
there already (`parts.py`) are trained on. The shares of the stages are those of a lease of 25 minutes; `--total` makes
it longer or shorter.

Clips are rendered by `--renderers` processes on the CPU's cores from the first second to the last, and encoded while
the teacher learns from those that are there. Without such processes clips are rendered where they are needed, on the
GPU, and latents are made beside the teacher; a GPU renders and encodes 300 clips of `meadow` in a second that way. What
the teacher and the distillation compile is compiled while the autoencoder learns (`warm.py`).
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import parts, presets
from .progress import note

# stage, its share of the time, what is there when it (or a later one that replaces it) is finished, and whether it can
# stop half-way; what is missing from the whole are the starts of the stages
STAGES = (
    ("tokenizer", 0.00, ["tokenizer.json"], False),
    ("train_text", 0.02, ["text.pt", "teacher.pt"], True),
    ("train_autoencoder", 0.33, ["autoencoder.json"], True),
    ("make_latents", 0.05, ["latents.json"], False),
    ("train_teacher", 0.40, ["teacher.json"], True),
    ("distill", 0.14, ["student.json"], True),
)
CHECKPOINTS = ("autoencoder", "text", "teacher", "student")
RESERVE = 25.0  # seconds at the end of a run for the last checkpoint and its parts
LEAST = 60.0  # seconds left that are worth the start of a stage


def command_of(stage, args, until, changes, minutes=None):
    command = [sys.executable, "-m", f"training.{stage}", "--model", args.model, "--preset", args.preset]
    for name in ("device", "work"):
        if getattr(args, name):
            command += [f"--{name}", getattr(args, name)]
    if args.eager:
        command += ["--eager"]
    if minutes is not None:
        command += ["--minutes", f"{minutes:.3f}"]
    command += ["--until", f"{until:.0f}"]
    for change in changes:
        command += ["--set", change]
    return command


def on_gpu(args):
    return (args.device or presets.PRESETS[args.preset]["device"]).startswith("cuda")


def call(stage, args, minutes, until, changes):
    """One stage in a process of its own, so that its memory goes with it; false when it had to be stopped."""
    command = command_of(stage, args, until, changes, minutes)
    try:
        # a stage looks at the clock between steps; what it kept minutes ago is there if a step takes too long
        done = subprocess.run(command, timeout=until + RESERVE / 2 - time.time())
    except subprocess.TimeoutExpired:
        return False
    if done.returncode:
        raise SystemExit(f"{stage} failed with exit status {done.returncode}")
    return True


class Beside:
    """Processes beside the stages: those that render, the one that encodes, the one that compiles."""

    def __init__(self, args, until, changes):
        self.args, self.until, self.changes, self.running = args, until, changes, []

    def warm(self):
        if self.args.eager:
            return  # nothing is compiled
        command = command_of("warm", self.args, self.until, self.changes["train_teacher"])
        self.running.append(subprocess.Popen(command + ["--threads", "2"]))

    def start(self, *words, alone=False):
        command = command_of("make_latents", self.args, self.until, self.changes["make_latents"], 60) + list(words)
        threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if alone else {}
        self.running.append(subprocess.Popen(command + ["--threads", "1"], env=dict(os.environ, **threads)))

    def render(self):
        """Each renderer has a core of its own: with all of them on all cores a teacher made 8 steps a second, not 10."""
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        apart = 0 < self.args.renderers < len(cores)
        for number in range(self.args.renderers):
            self.start("--ahead", "--part", f"{number}/{self.args.renderers}", "--device", "cpu", alone=True)
            if apart:
                os.sched_setaffinity(self.running[-1].pid, {cores[-1 - number]})
        if apart:
            os.sched_setaffinity(0, cores[:-self.args.renderers])  # of the stages to come, too

    def encode(self):
        """Goes on making latents, of what is rendered ahead or of its own clips."""
        if self.args.renderers:
            self.start("--follow")
        elif on_gpu(self.args):  # on a CPU it would take the teacher's cores
            self.start()

    def stop(self):
        for process in self.running:
            process.kill()
            process.wait()


def main():
    parser = presets.arguments("relay", __doc__)
    parser.add_argument("--total", type=float, default=25.0, help="minutes of all runs together")
    parser.add_argument("--store", type=Path, required=True, help="folder for the parts")
    parser.add_argument("--renderers", type=int, default=0, help="processes that render clips ahead, one core each")
    parser.add_argument("--take", type=Path, help="folder with the parts of an earlier run")
    args = parser.parse_args()
    work, start = presets.work_dir(args.work), time.time()
    if args.take and not (work / "tokenizer.json").exists():
        note(work, f"relay: took {', '.join(parts.join(args.take, work))}")
    # --set stage.key=value goes to that stage alone
    changes = {stage: [] for stage, *_ in STAGES}
    for change in args.set:
        stage, _, rest = change.partition(".")
        if stage not in changes:
            raise SystemExit(f"--set {change}: there is no stage {stage!r}; the stages are {', '.join(changes)}")
        changes[stage].append(rest)
    until = start + 60 * (args.minutes or 9) - RESERVE
    if args.renderers:
        for stage in ("train_autoencoder", "make_latents"):
            changes[stage].append("ahead=true")
    beside, done = Beside(args, until, changes), []
    try:
        for stage, share, results, stops in STAGES:
            if stage == "train_text":  # the tokenizer is there, and so is all that rendering needs
                beside.render()
            if stage == "train_teacher":
                beside.encode()
            if any((work / result).exists() for result in results):
                done.append(stage)
                continue
            if stage == "train_autoencoder":
                beside.warm()
            minutes, left = share * args.total, until - time.time()
            if left < LEAST and stage != "tokenizer":
                break
            budget = None if stage == "tokenizer" else minutes if stops else min(minutes, left / 60 - 0.5)
            if not call(stage, args, budget, until, changes[stage]) or not (work / results[0]).exists():
                break  # it paused or was stopped, the time is over
            done.append(stage)
            parts.split(args.store, work, CHECKPOINTS)
    finally:
        beside.stop()
        size = parts.split(args.store, work, CHECKPOINTS)
        for picture in work.glob("*-samples.png"):
            shutil.copy(picture, args.store)
        note(work, f"relay: {time.time() - start:.0f} s, {size / 2 ** 20:.1f} MiB of parts; "
                   f"finished: {', '.join(done)}")


if __name__ == "__main__":
    main()
