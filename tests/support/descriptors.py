"""Programs whose standard descriptors are closed, full, or a pipe without a reader.

In: a command and the faulty descriptor. Out: its exit code, and its output on the other two.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.deadline import DEADLINE_S

ROOT = Path(__file__).parents[2]
FAULTS = ("closed", "full", "broken")
CASES = [(descriptor, fault) for descriptor in range(3) for fault in FAULTS]

# Runs a command with one faulty descriptor; a shell would use the free number itself.
_PROGRAM = """
import os, sys
descriptor, fault = int(sys.argv[1]), sys.argv[2]
if fault == "closed":
    os.close(descriptor)
else:
    reader, found = os.pipe() if fault == "broken" else (None, os.open("/dev/full", os.O_RDWR))
    if reader is not None:
        os.close(reader)
    os.dup2(found, descriptor)
    os.close(found)
os.execv(sys.executable, [sys.executable, "-m", "skbcapd", *sys.argv[3:]])
"""


@dataclass(frozen=True)
class Said:
    """The end of a command, and its output on the other descriptors."""

    exit_code: int
    stdout: str
    stderr: str


class Faulty:
    """A command with one faulty standard descriptor."""

    def __init__(self, descriptor: int, fault: str, arguments: Sequence[str]) -> None:
        self._stdout, self._stderr = (os.fdopen(os.memfd_create(name), "w+b") for name in ("stdout", "stderr"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(descriptor), fault, *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
        )

    def wait(self) -> Said:
        """Its end."""
        try:
            self.process.wait(DEADLINE_S)
        finally:
            said = self.kill()
        return said

    def kill(self) -> Said:
        """Its end, at once if it still runs."""
        self.process.kill()
        code = self.process.wait()
        texts = []
        for file in (self._stdout, self._stderr):
            with file:
                texts.append(os.pread(file.fileno(), 1 << 20, 0).decode(errors="replace"))
        return Said(code, *texts)
