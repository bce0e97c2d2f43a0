"""A progress bar on a terminal, for work that takes longer than a second.

In: the number of processed bytes. Out: one line, drawn ten times per second; nothing if stderr is
no terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TextIO

from skbcapd import standard_streams

_QUIET_S = 1.0  # shorter work needs no bar
_BETWEEN_S = 0.1


class Progress:
    """The bar; a context manager that removes it at the end.

    Args:
        files: what will be read.
        stream: where the line goes, such as stderr.
        clock: seconds, never backwards.
    """

    def __init__(self, files: Sequence[Path], stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._is_shown = stream.isatty()
        self._started_at = self._drawn_at = clock()
        self._total = max(sum(map(_size, files)), 1)
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn_at > self._started_at:
            print("\r\x1b[K", end="", file=self._stream, flush=True)

    def next_file(self) -> Callable[[int], None]:
        """A file begins, possibly beside others; returns a function that takes the bytes read so far."""
        before = 0

        def show(done: int) -> None:
            nonlocal before
            self._done += done - before
            before = done
            self._show(self._done / self._total)

        return show

    def _show(self, part: float) -> None:
        now = self._clock()
        if not self._is_shown or now < self._started_at + _QUIET_S or now < self._drawn_at + _BETWEEN_S:
            return
        self._drawn_at = now
        width = max(standard_streams.width(self._stream.fileno()) - 8, 1)
        bar = "#" * int(width * min(part, 1.0))
        print(f"\r\x1b[K[{bar:{width}}] {min(part, 1.0):4.0%}", end="", file=self._stream, flush=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # the code that opens it reports the error
        return 0
