"""The maximum memory of a command of skbcapd.

`ru_maxrss` cannot be used: it starts with the memory of the test process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

_PROGRAM = """
import atexit, re, sys
from pathlib import Path
place = Path(sys.argv.pop(1))
def tell():
    place.write_text(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
atexit.register(tell)
from skbcapd.__main__ import main
sys.exit(main())
"""


def peak(place: Path, *arguments: str, cwd: Path, stdout: IO[str] | int | None = None) -> tuple[int, int]:
    """Run a command to its end.

    Args:
        place: a file for the result.
        arguments: arguments of skbcapd.
        cwd: its working directory.
        stdout: its standard output.

    Returns:
        Exit code, and the largest resident size in KiB.
    """
    command = [sys.executable, "-c", _PROGRAM, str(place), *arguments]
    done = subprocess.run(command, cwd=cwd, stdout=stdout, stderr=subprocess.DEVNULL, check=False)
    return done.returncode, int(place.read_text())
