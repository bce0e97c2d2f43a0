"""Counts how long something took: the numbers of a histogram.

In: seconds. Out: for each bound, how many durations were not longer.

The rule: one thread adds, all threads can read.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Any

BOUNDS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Durations:
    """Durations of one kind of work."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)  # the last one: longer than all bounds
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    @property
    def facts(self) -> dict[str, Any]:
        """For clients: `count`, `sum_s`, and `buckets`, pairs of a bound in seconds and the number of
        durations up to it.
        """
        sums = list(accumulate(self._counts))
        return {
            "count": sums[-1],
            "sum_s": round(self._sum_s, 6),
            "buckets": [list(pair) for pair in zip(BOUNDS_S, sums, strict=False)],
        }
