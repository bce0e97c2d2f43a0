"""Capture files: where bytes go, and under which name.

In: bytes of whole pcapng blocks. Out: a file that has its real name only when it is whole.

The rule: a file in work is called NAME.part; it is complete to its last flushed block at any time, and gets its name by
fsync and rename when it is closed.
"""

from __future__ import annotations

import io
import os
import socket
import sys
import time
from pathlib import Path
from typing import BinaryIO

from skbcapd.errors import FileError

MODE = 0o640
_BUFFER = 1 << 16  # slow-path blocks are gathered; ranges are larger and pass through


def open_new(directory: str) -> CaptureFile:
    """Start the next capture file of a directory, which is made if it is missing.

    Raises:
        FileError: directory or file cannot be made.
    """
    now = time.time_ns()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 1_000_000_000)) + f".{now // 1_000_000 % 1000:03}Z"
    name = f"skbcapd-{socket.gethostname()}-{stamp}-000001.pcapng"
    try:
        Path(directory).mkdir(0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{directory}: {error.strerror}; expected a directory to write captures to") from None
    return CaptureFile(Path(directory, name), part=True)


class CaptureFile:
    """One file being written.

    Args:
        path: its name when whole.
        part: write to NAME.part until closed (not for files that a user named on the command line).

    Raises:
        FileError: it cannot be opened.
    """

    def __init__(self, path: Path, *, part: bool) -> None:
        self.path = path
        self.working_path = path.with_name(path.name + ".part") if part else path
        try:
            descriptor = os.open(self.working_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
        except OSError as error:
            raise FileError(f"{self.working_path}: {error.strerror}; expected a file to write to") from None
        self.stream: BinaryIO = io.BufferedWriter(io.FileIO(descriptor, "wb"), _BUFFER)

    def close(self) -> None:
        """Make the file whole and give it its name.

        Raises:
            FileError: the disk refuses.
        """
        try:
            self.stream.flush()
            if self.path != self.working_path:
                os.fsync(self.stream.fileno())
            self.stream.close()
            self.working_path.rename(self.path)
        except OSError as error:
            raise FileError(f"{self.working_path}: {error.strerror} while finishing it") from None


class StandardOutput:
    """Stands for a capture file where blocks go to a pipe."""

    def __init__(self) -> None:
        self.path = Path("-")
        self.stream: BinaryIO = io.BufferedWriter(io.FileIO(sys.stdout.fileno(), "wb", closefd=False), _BUFFER)

    def close(self) -> None:
        """Hand on what is buffered; a reader that has gone wants none of it."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            # The buffer still holds bytes, and Python would try again, aloud, when it is collected.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.stream.flush()
