"""Capture files: where bytes go, and under which name.

In: bytes of whole pcapng blocks. Out: a file that has its real name only when it is whole.

The rule: a file in work is called NAME.part; it is complete to its last flushed block at any time, and gets its name by
fsync and rename when it is closed.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
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
        self._file = io.FileIO(descriptor, "wb")
        self.stream: BinaryIO = io.BufferedWriter(self._file, _BUFFER)

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
            with contextlib.suppress(OSError):
                self._file.close()  # or Python would write what is buffered again, aloud, when it is collected
            raise FileError(f"{self.working_path}: {error.strerror} while finishing it") from None


class StandardOutput:
    """Stands for a capture file where blocks, or lines of text, go to a pipe or a terminal.

    Args:
        descriptor: where to write.
    """

    def __init__(self, descriptor: int = 1) -> None:
        self.path = Path("standard output")
        self.descriptor = descriptor
        self.stream: BinaryIO = io.BufferedWriter(io.FileIO(descriptor, "wb", closefd=False), _BUFFER)
        self.text = io.TextIOWrapper(self.stream, "ascii", newline="\n")

    def close(self) -> None:
        """Hand on what is buffered; a reader that has gone wants none of it.

        Raises:
            FileError: what reads it refuses.
        """
        try:
            self.text.flush()
        except OSError as error:
            # The buffers still hold bytes, and Python would try again, aloud, when they are collected.
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), self.descriptor)
            self.text.flush()
            if not isinstance(error, BrokenPipeError):
                raise FileError(f"{self.path}: {error.strerror} while finishing it") from None
