"""The peak memory of a command."""

import sys
from pathlib import Path

# A process that forks has its parent's peak at first, so that a large test process would be measured.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
sys.exit(code)
"""


def measured(command: list[str], result: Path) -> list[str]:
    """A command that runs `command` and writes the peak bytes of its largest process to a file."""
    return [sys.executable, "-c", _MEASURE, str(result), *command]


def peak_bytes(result: Path) -> int:
    """What a measured command has written."""
    return int(result.read_text())
