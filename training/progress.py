"""One line of progress per event, printed and kept in status.txt of the work folder; the reports folder."""

import os
import time
from pathlib import Path

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
