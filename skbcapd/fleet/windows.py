"""Windows of ranges of capture files, also of compressed ones.

In: bytes, or an open file with a compressed range. Out: the bytes around an offset.

The rule: offsets only increase. What is behind the end is missing, and no error: who reads it checks lengths.
"""

from __future__ import annotations

from pathlib import Path

from skbcapd.errors import FileError
from skbcapd.pcapng.source import Source

_BLOCK = 1 << 16  # bytes; a description of an interface is shorter
_CHECKED = 64 << 20  # bytes behind the last block that are decompressed to check it


class Window:
    """Bytes in memory.

    Args:
        data: the bytes.
        before: offset of the first one.
    """

    where = ""
    """What offsets are counted from, for messages."""

    def __init__(self, data: bytes, before: int) -> None:
        self.data = data
        self.before = before

    def skip(self, offset: int) -> int:
        """Where the byte at an offset is in `data`; behind its end: nowhere."""
        return offset - self.before

    def need(self, at: int, size: int) -> int:  # noqa: ARG002  all bytes are there
        """Read on, so that `data` has so many bytes from `at` on, if there are so many; where they begin now."""
        return at


class Unpacked(Window):
    """A compressed range.

    Args:
        name: of the file, for errors.
        descriptor: of a file with the range; its offset changes.
    """

    where = " of a decompressed range"

    def __init__(self, name: str, descriptor: int) -> None:
        super().__init__(b"", 0)
        self.wrong: FileError | None = None
        """Why the range ends early, or is not certain."""
        self._name = name
        try:
            self._source: Source | None = Source(Path(f"/proc/self/fd/{descriptor}"))
        except FileError as error:
            self._source = None
            self._fail(error)

    def skip(self, offset: int) -> int:
        """See Window."""
        while offset - self.before > len(self.data) and self._read(len(self.data), 1):
            pass
        return offset - self.before

    def need(self, at: int, size: int) -> int:
        """See Window."""
        if len(self.data) - at < size:
            self._read(at, size)
            return 0
        return at

    def block(self, offset: int) -> bytes:
        """Bytes from an offset on, at least those of a description, if there are so many."""
        at = self.need(self.skip(offset), _BLOCK)
        return self.data[at:]

    def check(self) -> None:
        """Read on, because errors show at the end; a range that is much longer is not read to its end."""
        end = self.before + _CHECKED
        while self.before < end and self._read(len(self.data), 1):
            pass

    def close(self) -> None:
        """End the process that decompresses."""
        if self._source:
            self._source.close()

    def _read(self, at: int, size: int) -> bytes:
        source = self._source
        if source and not self.wrong:
            try:
                source.read_on(at, size)
            except FileError as error:
                self._fail(error)
            self.data, self.before = source.data, source.before
        else:
            self.data, self.before = self.data[at:], self.before + at
        return self.data

    def _fail(self, error: FileError) -> None:
        where, _, why = error.message.partition(": ")
        self.wrong = FileError(f"{self._name}: {why or where}", error.hint)
