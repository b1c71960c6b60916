"""python peak.py FILE COMMAND...: runs a command and writes the MiB of its largest resident set into a file.

A program of its own, and a small one: Linux hands the maximum of a process on to what it starts."""

import resource
import subprocess
import sys

status = subprocess.run(sys.argv[2:]).returncode
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024))
sys.exit(status)
