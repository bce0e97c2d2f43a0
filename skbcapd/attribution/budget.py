"""A time limit for lookups that packets wait for: some time at once, and a tenth of all time in the long run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

SHARE = 10  # one second of so many


class Budget:
    """Counts what questions cost.

    Args:
        ahead_s: what may be spent at once.
        clock: seconds.
    """

    def __init__(self, ahead_s: float, clock: Callable[[], float]) -> None:
        self._ahead_s = ahead_s
        self._clock = clock
        self._owed = 0.0  # seconds that were spent, less a tenth of those that have passed
        self._last = clock()

    @property
    def is_spent(self) -> bool:
        """Whether the next question has to wait."""
        now = self._clock()
        self._owed = max(0.0, self._owed - (now - self._last) / SHARE)
        self._last = now
        return self._owed >= self._ahead_s

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """What is done in this block costs the time that it takes."""
        start = self._clock()
        try:
            yield
        finally:
            self._owed += self._clock() - start
