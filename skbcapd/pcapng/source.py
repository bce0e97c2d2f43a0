"""The bytes of a capture file, decompressed if it is compressed with gzip or zstd.

In: a path. Out: its bytes in parts of 120 KiB or more, and errors with the offset in the decompressed
file.

The rule: only a regular file or standard input is read, and memory is limited by what the caller asks for. A program
decompresses, in a process of its own.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO, NoReturn, cast

from skbcapd.child import memory_file
from skbcapd.errors import FileError
from skbcapd.text_safety import escaped_bytes

STDIN = Path("-")
_CHUNK = 120 << 10
"""Bytes: below M_MMAP_THRESHOLD of glibc, which maps larger buffers anew each time. Their new pages cost more than
the copy.
"""
_DECOMPRESSORS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def compressed_with(start: bytes) -> str | None:
    """The program that has compressed a file with these first bytes; None if none of those that we know."""
    return next((tool for magic, tool in _DECOMPRESSORS.items() if start.startswith(magic)), None)


class Source:
    """An open file, and a window of its decompressed bytes.

    Args:
        path: a regular file; or STDIN, which may also be a pipe, but is not decompressed then.
        progress: called from time to time with the number of bytes that were read from the disk.

    Raises:
        FileError: it cannot be opened, is not regular, or the program that decompresses it is not
            installed.
    """

    def __init__(self, path: Path, progress: Callable[[int], None] = lambda _read: None) -> None:
        self.name = escaped_bytes(os.fsencode(path))
        self.data = b""
        """The window."""
        self.before = 0
        """Bytes of the decompressed file before `data`."""
        self._progress = progress
        self._complaints: IO[bytes] | None = None
        self._decompressor: subprocess.Popen[bytes] | None = None
        self._tool = ""
        is_stdin = path == STDIN
        if is_stdin:
            self.name = "standard input"
        try:
            # O_NONBLOCK: otherwise opening a FIFO without a writer would wait.
            descriptor = os.dup(0) if is_stdin else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            self._file: BinaryIO = open(descriptor, "rb", buffering=0)  # noqa: SIM115, PTH123  the same
            found = os.fstat(self._file.fileno())
        except (OSError, ValueError) as error:  # a NUL in the path
            raise FileError(f"{self.name}: {getattr(error, 'strerror', error)}; expected a capture file") from None
        self._stream: IO[bytes] = self._file
        self._is_regular = stat.S_ISREG(found.st_mode)
        if is_stdin and not self._is_regular:
            return
        if not self._is_regular:
            self._file.close()
            raise FileError(f"{self.name}: not a regular file; expected a capture file")
        try:
            start = os.pread(self._file.fileno(), 4, 0)
        except OSError as error:  # for example a sector that the disk cannot read
            self._file.close()
            raise FileError(f"{self.name}: {error.strerror} at byte 0") from None
        if tool := compressed_with(start):
            self._decompress(tool)

    @property
    def is_compressed(self) -> bool:
        """Whether a program decompresses it."""
        return self._decompressor is not None

    def close(self) -> None:
        """Close the file, and end the process that decompresses it."""
        if self._decompressor:
            self._decompressor.kill()  # it may be waiting until we read
            self._decompressor.communicate()
        if self._complaints:
            self._complaints.close()
        self._file.close()

    def read_on(self, at: int, wanted: int) -> bytes:
        """Discard `at` bytes of `data`, and read until it has `wanted` bytes or the file ends;
        returns `data`.
        """
        parts = [self.data[at:]]
        self.before += at
        have = len(parts[0])
        while have < wanted:
            try:
                part = self._stream.read(max(_CHUNK, wanted - have))
                read = (
                    os.lseek(self._file.fileno(), 0, os.SEEK_CUR) if self._is_regular else 0
                )  # shared with the process that decompresses
            except OSError as error:
                self.data = b"".join(parts)
                raise FileError(f"{self.name}: {error.strerror} at byte {self.before + have}") from None
            self._progress(read)
            if not part:
                self.data = b"".join(parts)
                self._ask_decompressor()
                break
            parts.append(part)
            have += len(part)
        self.data = b"".join(parts)
        return self.data

    def _decompress(self, tool: str) -> None:
        """Read the output of a process that decompresses; its memory is limited."""
        self._complaints = memory_file("complaints")
        try:
            self._decompressor = subprocess.Popen(
                [tool, "-dcq"], stdin=self._file, stdout=subprocess.PIPE, stderr=self._complaints, bufsize=0
            )
        except OSError:
            self._complaints.close()
            self._file.close()
            hint = f"apt-get install {tool}"
            raise FileError(f"{self.name}: compressed with {tool}, which is not installed", hint) from None
        self._tool = tool
        self._stream = cast("IO[bytes]", self._decompressor.stdout)

    def _ask_decompressor(self) -> None:
        """Called at the end: check whether that process has reached the end, too."""
        if self._decompressor and self._complaints and self._decompressor.wait():
            self._complaints.seek(0)
            words = self._complaints.read(1000).strip().partition(b"\n")[0].rpartition(b": ")[2]
            why = escaped_bytes(words) or "fails"
            raise FileError(f"{self.name}: {self._tool}: {why}; expected a complete compressed file")

    def fail(self, at: int, found: str, expected: str, kind: type[FileError] = FileError) -> NoReturn:
        """Report what is wrong at an offset in `data`.

        Raises:
            FileError: always; of this kind.
        """
        raise kind(f"{self.name}: at byte {self.before + at}: {found}; expected {expected}")
