"""Repairs files after a crash: unfinished files get their names, without the incomplete block at
their end.

In: the descriptor of a directory, and names. Out: finished files. Empty and half compressed files
are deleted.

The rules: only regular files without other links, opened without waiting: somebody who can write to
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

from skbcapd.output import blocks

_LOG = logging.getLogger(__name__)
SEARCH_S = 0.3  # for all files at a start


class Crashed:
    """The unfinished files of captures that have ended.

    Args:
        directory: descriptor of the directory.
        path: its path, for messages.
    """

    def __init__(self, directory: int, path: Path) -> None:
        self._directory, self._path = directory, path
        self._until_s = time.monotonic() + SEARCH_S
        self._left: deque[tuple[str, int, int]] = deque()  # name, descriptor, offset at which the search continues
        self._search: subprocess.Popen[bytes] | None = None

    @property
    def is_over(self) -> bool:
        """Whether all files have been finished."""
        return not self._left

    def finish(self, name: str) -> None:
        """Finish a file NAME.part; a later `tick` may complete it.

        Args:
            name: final name.
        """
        part = f"{name}.part"
        with self._logged(part):
            descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                os.close(descriptor)
                _LOG.warning("%s: the uncompressed file is missing; it is kept", self._path / part)
                return
            end, is_all = blocks.whole_in(descriptor, until_s=self._until_s)
            if is_all:
                self._cut(name, descriptor, end)
            else:
                self._left.append((name, descriptor, end))

    def delete(self, part: str) -> None:
        """Delete an incomplete compressed file: the uncompressed one still exists."""
        with self._logged(part):
            os.unlink(part, dir_fd=self._directory)

    def tick(self) -> str:
        """Called once a second: the name of a file that is finished now, or an empty text."""
        done = ""
        if self._search is not None and self._search.poll() is not None and self._left:
            name, descriptor, _ = self._left.popleft()
            output, _ = self._search.communicate()
            self._search = None
            with self._logged(f"{name}.part"):
                if output.strip().isdigit():
                    self._cut(name, descriptor, int(output))
                    done = name
                else:
                    os.close(descriptor)
                    _LOG.warning(
                        "%s.part: last complete block not found; it is left as it was after the crash",
                        self._path / name,
                    )
        if self._search is None and self._left:
            _, descriptor, at = self._left[0]
            command = ["nice", "-n", "19", sys.executable, "-I", "-S", blocks.__file__, str(at)]
            try:
                self._search = subprocess.Popen(
                    command, stdin=descriptor, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            except OSError as error:
                self._left.clear()
                _LOG.warning(
                    "%s: %s; files from before a crash are repaired at the next start", self._path, error.strerror
                )
        return done

    def close(self) -> None:
        """Stop; the remaining files are finished at the next start."""
        if self._search is not None:
            self._search.kill()
            self._search.communicate()
        for _, descriptor, _ in self._left:
            os.close(descriptor)
        self._left.clear()

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
