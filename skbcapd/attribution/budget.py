"""A time limit for lookups that packets wait for: a first amount, then at most a tenth of all time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

SHARE = 10  # lookups may take one tenth of the time


class Budget:
    """Limits the time that lookups take.

    Args:
        ahead_s: seconds that may be used without a pause.
        clock: seconds.
        busy: seconds that count as used, of this thread alone; None: all that pass.
    """

    def __init__(self, ahead_s: float, clock: Callable[[], float], busy: Callable[[], float] | None = None) -> None:
        self._ahead_s = ahead_s
        self._clock = clock
        self._busy = busy or clock
        self._owed = 0.0  # seconds that were used, minus a tenth of the elapsed time
        self._last = clock()

    @property
    def is_spent(self) -> bool:
        """Whether the next lookup has to wait."""
        now = self._clock()
        self._owed = max(0.0, self._owed - (now - self._last) / SHARE)
        self._last = now
        return self._owed >= self._ahead_s

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time that this block takes."""
        start = self._busy()
        try:
            yield
        finally:
            self._owed += self._busy() - start
