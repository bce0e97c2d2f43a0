"""Capture files: where bytes go, and under which name.

In: bytes of whole pcapng blocks. Out: a file that has its real name only when it is whole.

The rule: a file in work is called NAME.part; it is complete to its last flushed block at any time, and gets its name by
fsync and rename when it is closed. What the disk refuses is counted in packets, and cut off at a block's end.
"""

from __future__ import annotations

import contextlib
import grp
import io
import os
import pwd
import struct
from pathlib import Path
from typing import BinaryIO

from skbcapd.errors import FileError

MODE = 0o640
_BUFFER = 1 << 16  # slow-path blocks are gathered; ranges are larger and pass through
_PACKET = 6


def count_packets(blocks: bytes | memoryview) -> int:
    """How many Enhanced Packet Blocks are among whole blocks."""
    packets = at = 0
    while at < len(blocks):
        kind, size = struct.unpack_from("<II", blocks, at)
        packets += kind == _PACKET
        at += size
    return packets


def owner_ids(text: str) -> tuple[int, int]:
    """User and group ids of `USER`, `USER:GROUP` or `:GROUP`; -1 for what is not said, and for both of `self`.

    Raises:
        FileError: there is no such user or group.
    """
    user, _, group = ("", "", "") if text == "self" else text.partition(":")
    try:
        return pwd.getpwnam(user).pw_uid if user else -1, grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        raise FileError(f"files.owner is {text}: no such user or group on this machine") from None


class BlockSink:
    """Takes whole blocks to a descriptor. After an error it takes no more, and counts the packets that it refuses.

    Args:
        descriptor: of a file, at its end.
        strict: raise the error, too.
    """

    def __init__(self, descriptor: int, *, strict: bool = False) -> None:
        self._strict = strict
        self.error: OSError | None = None
        self.lost = 0
        self.size = 0  # bytes of whole blocks, those in `_held` among them
        self._descriptor = descriptor
        self._held = bytearray()

    def write(self, blocks: bytes | memoryview) -> None:
        """Take one or more whole blocks."""
        if self.error is not None:
            self.lost += count_packets(blocks)
            return
        self.size += len(blocks)
        if len(self._held) + len(blocks) < _BUFFER:
            self._held += blocks
            return
        self.flush()
        self._put(blocks)

    def flush(self) -> None:
        """Hand on what is held back."""
        if self._held and self.error is None:
            held, self._held = self._held, bytearray()
            self._put(held)

    def _put(self, blocks: bytes | bytearray | memoryview) -> None:
        left = memoryview(blocks)
        try:
            if self.error is not None:
                raise self.error
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            self.error = error
            self._refuse(blocks)
            with contextlib.suppress(OSError):  # a torn block would end the file for every reader
                os.ftruncate(self._descriptor, self.size)
                os.lseek(self._descriptor, self.size, os.SEEK_SET)
            if self._strict:
                raise

    def _refuse(self, blocks: bytes | bytearray | memoryview) -> None:
        self.size -= len(blocks)
        self.lost += count_packets(memoryview(blocks))


class CaptureFile:
    """One file being written.

    Args:
        path: its name when whole.
        part: write to NAME.part until closed, and take no name that is in use (not for files that a user named on the
            command line).
        mode: permission bits.
        owner: user and group ids; -1 keeps the process's.

    Raises:
        FileError: it cannot be opened.
    """

    def __init__(self, path: Path, *, part: bool, mode: int = MODE, owner: tuple[int, int] = (-1, -1)) -> None:
        self.path = path
        self.working_path = path.with_name(path.name + ".part") if part else path
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if part else os.O_TRUNC)
        try:
            self.descriptor = os.open(self.working_path, flags, mode)
            if owner != (-1, -1):
                os.fchown(self.descriptor, *owner)
        except OSError as error:
            raise FileError(f"{self.working_path}: {error.strerror}; expected a file to write to") from None
        self.stream = BlockSink(self.descriptor, strict=not part)

    @property
    def is_there(self) -> bool:
        """Whether the name still leads to the file: it may have been moved or removed."""
        try:
            named, own = self.working_path.stat(), os.fstat(self.descriptor)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def close(self) -> None:
        """Make the file whole and give it its name.

        Raises:
            FileError: the disk refuses, now or at a write before.
        """
        with contextlib.suppress(OSError):
            self.stream.flush()
        error = self.stream.error
        try:
            if self.path != self.working_path:
                os.fsync(self.descriptor)
                self.working_path.rename(self.path)
        except OSError as late:
            error = error or late
        os.close(self.descriptor)
        if error is not None:
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
