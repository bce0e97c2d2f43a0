"""The command line of skbcapd as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import skbcapd

ROOT = Path(skbcapd.__file__).parent.parent


def run(command: str, *arguments: str | Path, stdin: bytes = b"") -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr of a command of skbcapd, in UTC."""
    done = subprocess.run(
        [sys.executable, "-m", "skbcapd", command, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TZ": "UTC"},
        input=stdin,
        capture_output=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr.decode()
