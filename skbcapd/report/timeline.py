"""Sums of packets by time and process.

In: packets, in any order, of any time. Out: for each key, sums in equal intervals.

The rule not to break: memory is bounded. Intervals begin at 10 ms, and become twice as long
whenever there are too many sums.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

_WIDTH_NS = 10**7
_CELLS_MAX = 1 << 18
_KEYS_MAX = 1 << 16

_Key = TypeVar("_Key", bound=Hashable)


class Timeline(Generic[_Key]):
    """Packets and bytes of each key in each interval.

    Args:
        others: key of the packets of all keys beyond the first 65,536.
    """

    def __init__(self, others: _Key) -> None:
        self.width_ns = _WIDTH_NS
        self._others = others
        self._cells: dict[_Key, dict[int, list[int]]] = {}
        self._count = 0

    def add(self, time_ns: int, key: _Key, wire_len: int) -> None:
        """Add a packet."""
        cells = self._cells.get(key)
        if cells is None:
            if len(self._cells) >= _KEYS_MAX:
                key = self._others
            cells = self._cells.setdefault(key, {})
        cell = cells.get(time_ns // self.width_ns)
        if cell is None:
            cell = cells[time_ns // self.width_ns] = [0, 0]
            self._count += 1
        cell[0] += 1
        cell[1] += wire_len
        if self._count > _CELLS_MAX:
            self._coarsen(2)

    def keys(self) -> list[_Key]:
        """All keys, the one with most bytes first."""
        sums = {key: sum(size for _, size in cells.values()) for key, cells in self._cells.items()}
        return sorted(sums, key=lambda key: -sums[key])

    def series(self, groups: Sequence[Sequence[_Key]], most: int) -> tuple[int, list[list[list[int]]]]:
        """The sums of groups of keys, in equal intervals without a gap.

        Args:
            groups: keys whose sums are added.
            most: number of intervals that is not exceeded.

        Returns:
            The beginning of the first interval, in nanoseconds since 1970 UTC; and for each group
            the packets and the bytes in each interval of `width_ns`.
        """
        bounds = self._bounds()
        if not bounds:
            return 0, [[[], []] for _ in groups]
        factor = 1
        while bounds[1] // factor - bounds[0] // factor >= most:
            factor *= 2
        self._coarsen(factor)
        first, last = (bound // factor for bound in bounds)
        found = []
        for group in groups:
            packets, sizes = [0] * (last - first + 1), [0] * (last - first + 1)
            for key in group:
                for at, cell in self._cells[key].items():
                    packets[at - first] += cell[0]
                    sizes[at - first] += cell[1]
            found.append([packets, sizes])
        return first * self.width_ns, found

    def _bounds(self) -> tuple[int, int] | None:
        filled = [cells for cells in self._cells.values() if cells]
        return (min(map(min, filled)), max(map(max, filled))) if filled else None

    def _coarsen(self, factor: int) -> None:
        """Make the intervals so many times as long."""
        self.width_ns *= factor
        self._count = 0
        for key, cells in self._cells.items():
            merged: dict[int, list[int]] = {}
            for at, (packets, size) in cells.items():
                whole = merged.setdefault(at // factor, [0, 0])
                whole[0] += packets
                whole[1] += size
            self._cells[key] = merged
            self._count += len(merged)
