"""Triggers: when one file ends and the next one begins.

In: the content of a file, and the time. Out: whether a new file must begin.

A new trigger is one class here, and one line in `triggers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a file; 0: no limit.

    Args:
        size: bytes; only the first block and the statistics at the end can exceed it.
        every_s: seconds; files begin at multiples of this time since 1970 UTC.
        packets: number of packets in one file.
    """

    size: int = 0
    every_s: int = 0
    packets: int = 0


class Trigger(Protocol):
    """One reason to begin a new file.

    Args:
        counts_packets: whether it needs the number of packets, which costs a walk over all blocks.
    """

    counts_packets: bool

    def begin(self, now: float) -> None:
        """A file begins; `now` in seconds since 1970."""
        ...

    def is_full(self, size: int, packets: int) -> bool:
        """Whether so many bytes and packets are too many for a file; then the next block begins a
        new one.
        """
        ...

    def is_over(self, now: float) -> bool:
        """Whether the file must end, whatever its content."""
        ...


class BySize:
    """Ends a file by its size."""

    counts_packets = False

    def __init__(self, size: int) -> None:
        self._size = size

    def begin(self, now: float) -> None:
        """Does nothing."""

    def is_full(self, size: int, _packets: int) -> bool:
        """Whether the size is too large."""
        return size > self._size

    def is_over(self, _now: float) -> bool:
        """False: time does not matter."""
        return False


class ByPackets:
    """Ends a file by its number of packets."""

    counts_packets = True

    def __init__(self, packets: int) -> None:
        self._packets = packets

    def begin(self, now: float) -> None:
        """Does nothing."""

    def is_full(self, _size: int, packets: int) -> bool:
        """Whether there are too many packets."""
        return packets > self._packets

    def is_over(self, _now: float) -> bool:
        """False: time does not matter."""
        return False


class ByTime:
    """Ends a file at multiples of some seconds, and if the clock was set back."""

    counts_packets = False

    def __init__(self, every_s: int) -> None:
        self._every_s = every_s
        self._next_s = 0.0

    def begin(self, now: float) -> None:
        """Compute the next multiple."""
        self._next_s = (now // self._every_s + 1) * self._every_s

    def is_full(self, _size: int, _packets: int) -> bool:
        """False: the content does not matter."""
        return False

    def is_over(self, now: float) -> bool:
        """Whether the time has come; less than a second backwards is no change of the clock."""
        return not self._next_s - self._every_s - 1 <= now < self._next_s


def triggers(limits: Limits) -> list[Trigger]:
    """The triggers for the settings."""
    wanted: list[tuple[int, type[BySize | ByPackets | ByTime]]] = [
        (limits.size, BySize),
        (limits.packets, ByPackets),
        (limits.every_s, ByTime),
    ]
    return [trigger(value) for value, trigger in wanted if value]
