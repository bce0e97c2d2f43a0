"""The result of a command: a file, or standard output.

In: bytes in parts. Out: a file that is renamed when it is complete; until then it is NAME.part.

The rules: a result never replaces one of its sources, and an error leaves no file. A device or a
FIFO is written directly.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from skbcapd.errors import FileError
from skbcapd.output.block_writer import MODE, StandardOutput
from skbcapd.text_safety import escaped_bytes

STDOUT = Path("-")
_GATHERED_MAX = 1 << 20
_PART = ".part"


class Target:
    """The target of a result.

    Args:
        path: path of the file; STDOUT: standard output.

    Raises:
        FileError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gathered = bytearray()
        """Bytes that are to be written: add to them, then call `flush_full`."""
        self._working: Path | None = None
        self._output = StandardOutput() if path == STDOUT else None
        if self._output:
            self._file: BinaryIO = self._output.stream
            return
        try:
            is_special = path.exists() and not path.is_file()
            self._working = None if is_special else path.with_name(path.name + _PART)
            how = 0 if is_special else os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            descriptor = os.open(self._working or path, os.O_WRONLY | os.O_CLOEXEC | how, MODE)
        except (OSError, ValueError) as error:
            hint = "another run may be writing it; if not, delete it" if isinstance(error, FileExistsError) else ""
            place = self._said if self._working is None else self._said + _PART
            raise FileError(f"{place}: {getattr(error, 'strerror', error)}; expected a file to write", hint) from None
        self._file = open(descriptor, "wb", buffering=0)  # noqa: SIM115, PTH123  closed by `finish` and `discard`

    @property
    def _said(self) -> str:
        return escaped_bytes(os.fsencode(self.path))

    def flush_full(self) -> None:
        """Write what is gathered, if that is much.

        Raises:
            FileError: it cannot be written.
            BrokenPipeError: the reader has ended.
        """
        if len(self.gathered) >= _GATHERED_MAX:
            self._flush()

    def _flush(self) -> None:
        view = memoryview(self.gathered)
        try:
            with view:
                written = 0
                while written < len(view):
                    written += self._file.write(view[written:])
        except BrokenPipeError:
            raise
        except OSError as error:
            raise FileError(f"{self._said}: {error.strerror}; expected a file to write") from None
        self.gathered.clear()

    def finish(self, path: Path | None = None) -> Path:
        """Finish the file, and rename it.

        Args:
            path: another final name.

        Raises:
            FileError: it cannot be finished.
        """
        self._flush()
        if self._output:
            self._output.close()
            return self.path
        self.path = path or self.path
        try:
            self._file.close()
            if self._working:
                self._working.replace(self.path)
        except OSError as error:
            raise FileError(f"{self._said}: {error.strerror}; expected a file to write") from None
        return self.path

    def discard(self) -> None:
        """Leave no file."""
        self.gathered.clear()
        if self._output is None:
            with contextlib.suppress(OSError):
                self._file.close()
                if self._working:
                    self._working.unlink()


def check(path: Path, sources: Iterable[Path]) -> None:
    """Check that the target is not one of the sources.

    Raises:
        FileError: it is.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):
        return  # a new file
    if not stat.S_ISREG(found.st_mode):
        return
    for source in sources:
        with contextlib.suppress(OSError, ValueError):
            if os.path.samestat(source.stat(), found):
                raise FileError(
                    f"{escaped_bytes(os.fsencode(path))}: is read and written; expected another file to write to"
                )
