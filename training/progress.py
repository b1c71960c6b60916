"""One line of progress per event, printed and kept in status.txt of the work folder; the reports folder; the clock."""

import os
import time
from pathlib import Path

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

    `stop_after` seconds end this run early; the stage is not over then, and goes on with its next run.
    """

    def __init__(self, options, spent):
        self.budget, self.spent, self.device = options["minutes"] * 60, spent, options["device"]
        self.stop_after = options["stop_after"]
        self.start, self.elapsed = time.time(), spent

    @property
    def done(self):
        return self.elapsed / self.budget

    def running(self):
        """Reads the clock; false when this run has to end."""
        passed = distributed.agreed(time.time() - self.start, self.device)
        self.elapsed = self.spent + passed
        return self.done < 1 and (self.stop_after is None or passed < self.stop_after)

    @property
    def over(self):
        return self.done >= 1
