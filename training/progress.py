"""One line of progress per event, printed and kept in status.txt of the work folder; the lines that `curves.py` draws;
the reports folder; the clock."""

import json
import os
import time
from pathlib import Path

import torch

from . import distributed

REPORTS = Path(os.environ.get("KINORA_REPORTS") or Path(__file__).parent / "reports")


def note(work, text):
    line = f"{time.strftime('%H:%M:%S', time.gmtime())} UTC {text}"
    print(line, flush=True)
    paths = [work / "status.txt"]
    if os.environ.get("KINORA_STATUS"):
        paths.append(os.environ["KINORA_STATUS"])
    for path in paths:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def tell(work, stage, step, seconds, values):
    """Prints how far a stage is and keeps it in STAGE-curve.txt, which a run that begins anew begins anew."""
    line, path = f"step {step} {seconds:.0f} s {values}", work / f"{stage}-curve.txt"
    print(line, flush=True)
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if before and int(before[-1].split()[1]) >= step:
        before = []
    path.write_text("\n".join([*before, line]) + "\n", encoding="utf-8")


class Clock:
    """Wall time of a stage over all its runs: what earlier ones spent counts, and the rates follow `done`.

    At `--until` (seconds since 1970) this run ends early; the stage is not over then, and goes on with its next run.
    What was spent is also kept in a small file of its own, for a machine that has the weights but not the state.
    """

    def __init__(self, work, stage, options, spent):
        self.path = work / f"{stage}-clock.json"
        if not spent and self.path.exists():
            spent = json.loads(self.path.read_text())["spent"]
        self.budget, self.spent, self.device = options["minutes"] * 60, spent, options["device"]
        self.until = options["until"] or float("inf")
        self.start, self.elapsed = time.time(), spent

    @property
    def done(self):
        return self.elapsed / self.budget if self.budget else 1.0

    def running(self):
        """Reads the clock; false when this run has to end."""
        now = distributed.agreed(time.time(), self.device)
        self.elapsed = self.spent + now - self.start
        return self.done < 1 and now < self.until

    def keep(self):
        """Writes down what was spent; belongs to every checkpoint."""
        self.path.write_text(json.dumps({"spent": self.elapsed}))

    @property
    def over(self):
        return self.done >= 1


def save_weights(path, state):
    """torch.save through a temporary file: whoever reads or ends the process meanwhile leaves a whole checkpoint."""
    temporary = path.with_name("part-" + path.name)
    torch.save(state, temporary)
    temporary.replace(path)


def save(path, **state):
    """A checkpoint: the states of what has one, everything else as it is."""
    temporary = path.with_suffix(".tmp")
    torch.save({key: value.state_dict() if hasattr(value, "state_dict") else value
                for key, value in state.items()}, temporary)
    temporary.replace(path)


class Interruptible:
    """A stage of minutes, whose state is kept while it runs and is gone once it is over: a run that was ended goes on.

    `parts` are what has a state_dict; `rng` is the stage's own generator.
    """

    EVERY = 60  # seconds

    def __init__(self, work, stage, options, rng, **parts):
        self.work, self.stage, self.rng, self.parts = work, stage, rng, parts
        self.path, self.step, spent = work / f"{stage}-state.pt", 0, 0.0
        if self.path.exists():
            state = torch.load(self.path, map_location=options["device"], weights_only=False)
            for name, part in parts.items():
                part.load_state_dict(state[name])
            rng.setstate(state["rng"])
            torch.set_rng_state(state["torch_rng"].cpu())
            self.step, spent = state["step"], state["spent"]
            note(work, f"{stage}: goes on at step {self.step}")
        self.clock, self.kept = Clock(work, stage, options, spent), time.time()

    def running(self):
        """Counts the steps and reads the clock; false when this run has to end, its state kept."""
        running = self.clock.running()
        if not self.clock.over and (not running or time.time() - self.kept > self.EVERY):
            save(self.path, **self.parts, rng=self.rng.getstate(), torch_rng=torch.get_rng_state(), step=self.step,
                 spent=self.clock.elapsed)
            self.kept = time.time()
        return running

    def finished(self):
        """Whether the stage is over; what was kept for another run is thrown away then."""
        if self.clock.over:
            self.path.unlink(missing_ok=True)
        else:
            note(self.work, f"{self.stage}: paused at step {self.step}, {100 * self.clock.done:.0f} % done")
        return self.clock.over
