"""Repairs files after a crash: unfinished files get their names, without the incomplete block at
their end.

In: the descriptor of a directory, and names. Out: finished files. Empty and half compressed files
are deleted.

The rules: only regular files without other links, opened without waiting: a user who can write to
the directory cannot make skbcapd cut a file of his choice. A start does not wait until gigabytes
are read: what takes longer than SEARCH_S is left to a separate process, and the file gets its name
later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from skbcapd.output import blocks

_LOG = logging.getLogger(__name__)
SEARCH_S = 0.2  # for all files at a start


class _Search(NamedTuple):
    """A search that runs: for the end of the last complete block of a file."""

    name: str
    descriptor: int
    process: subprocess.Popen[bytes]


class Crashed:
    """The unfinished files of captures that have ended.

    Args:
        directory: descriptor of the directory.
        path: its path, for messages.
    """

    def __init__(self, directory: int, path: Path) -> None:
        self._directory, self._path = directory, path
        self._until_s = time.monotonic() + SEARCH_S
        self._left: deque[tuple[str, int]] = deque()  # name, offset at which the search continues
        self._search: _Search | None = None

    @property
    def is_over(self) -> bool:
        """Whether all files have been finished."""
        return not self._left and self._search is None

    def finish(self, name: str) -> None:
        """Finish a file NAME.part; a later `tick` may complete it.

        Args:
            name: final name.
        """
        if time.monotonic() >= self._until_s:
            self._left.append((name, 0))  # however many there are, only one is open
            return
        with self._logged(f"{name}.part"):
            descriptor = self._open(f"{name}.part")
            end, is_all = blocks.whole_in(descriptor, until_s=self._until_s)
            if is_all:
                self._cut(name, descriptor, end)
            else:
                os.close(descriptor)
                self._left.append((name, end))

    def delete(self, part: str) -> None:
        """Delete an incomplete compressed file: the uncompressed one still exists."""
        with self._logged(part):
            os.unlink(part, dir_fd=self._directory)

    def tick(self) -> str:
        """The name of a file that is finished now, or an empty text."""
        done = ""
        search = self._search
        if search is not None and search.process.poll() is not None:
            self._search = None
            output, _ = search.process.communicate()
            with self._logged(f"{search.name}.part"):
                if output.strip().isdigit():
                    self._cut(search.name, search.descriptor, int(output))
                    done = search.name
                else:
                    os.close(search.descriptor)
                    _LOG.warning(
                        "%s.part: last complete block not found; it is left as it was after the crash",
                        self._path / search.name,
                    )
        if self._search is None and self._left:
            self._start(*self._left.popleft())
        return done

    def close(self) -> None:
        """Stop; the remaining files are finished at the next start."""
        if self._search is not None:
            self._search.process.kill()
            self._search.process.communicate()
            os.close(self._search.descriptor)
        self._search = None
        self._left.clear()

    def _open(self, part: str) -> int:
        """Open a file without waiting.

        Raises:
            OSError: that is not possible, or it is not a regular file with one name.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(part, flags, dir_fd=self._directory)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(descriptor)
            raise OSError(0, "not a regular file with one name")
        return descriptor

    def _start(self, name: str, at: int) -> None:
        """Start a process that searches a file for the end of its last complete block."""
        with self._logged(f"{name}.part"):
            descriptor = self._open(f"{name}.part")
            command = ["nice", "-n", "19", sys.executable, "-I", "-S", blocks.__file__, str(at)]
            try:
                process = subprocess.Popen(command, stdin=descriptor, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            except OSError:
                os.close(descriptor)
                raise
            self._search = _Search(name, descriptor, process)

    def _cut(self, name: str, descriptor: int, end: int) -> None:
        """Cut a file after its last complete block, and rename it."""
        part = f"{name}.part"
        try:
            size = os.fstat(descriptor).st_size
            if not end:
                os.unlink(part, dir_fd=self._directory)
                _LOG.warning("%s: deleted; it had no complete block after a crash", self._path / part)
                return
            if end < size:
                os.ftruncate(descriptor, end)
            os.rename(part, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            _LOG.warning(
                "%s: finished after a crash, %d bytes of an incomplete block cut off", self._path / part, size - end
            )
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _logged(self, part: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _LOG.warning("%s: %s; it is left as it was after the crash", self._path / part, error.strerror)
