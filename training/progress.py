"""One line of progress per event, printed and kept in status.txt of the work folder; the reports folder; the clock."""

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
        return self.elapsed / self.budget

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
