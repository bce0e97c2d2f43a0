"""Triggers: when one file ends and the next one begins.

In: the content of a file, and the time. Out: whether a new file must begin.

A new trigger is one class here, and one line in `triggers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Limits:
    """When a file is full: 0 is never.

    Args:
        size: bytes; never exceeded, but for a first block and the statistics at the end.
        every_s: seconds; files begin at multiples of it since 1970 UTC.
        packets: in one file.
    """

    size: int = 0
    every_s: int = 0
    packets: int = 0


class Trigger(Protocol):
    """One reason to begin a new file.

    Args:
        counts_packets: it goes by their number, which costs a look at every block.
    """

    counts_packets: bool

    def begin(self, now: float) -> None:
        """A file begins; seconds since 1970."""
        ...

    def is_full(self, size: int, packets: int) -> bool:
        """Whether a file must not have so many bytes and packets, so that the next block goes to the next file."""
        ...

    def is_over(self, now: float) -> bool:
        """Whether the file ends, whatever it holds; asked once a second."""
        ...


class BySize:
    """A file has its bytes."""

    counts_packets = False

    def __init__(self, size: int) -> None:
        self._size = size

    def begin(self, now: float) -> None:
        """It does not matter when."""

    def is_full(self, size: int, _packets: int) -> bool:
        """By the bytes."""
        return size > self._size

    def is_over(self, _now: float) -> bool:
        """Never by the time."""
        return False


class ByPackets:
    """A file has its packets."""

    counts_packets = True

    def __init__(self, packets: int) -> None:
        self._packets = packets

    def begin(self, now: float) -> None:
        """It does not matter when."""

    def is_full(self, _size: int, packets: int) -> bool:
        """By the packets."""
        return packets > self._packets

    def is_over(self, _now: float) -> bool:
        """Never by the time."""
        return False


class ByTime:
    """A file ends at a multiple of some seconds, and when the clock was set back."""

    counts_packets = False

    def __init__(self, every_s: int) -> None:
        self._every_s = every_s
        self._next_s = 0.0

    def begin(self, now: float) -> None:
        """From here to the next multiple."""
        self._next_s = (now // self._every_s + 1) * self._every_s

    def is_full(self, _size: int, _packets: int) -> bool:
        """Never by what it holds."""
        return False

    def is_over(self, now: float) -> bool:
        """By the time; a second is no step of the clock."""
        return not self._next_s - self._every_s - 1 <= now < self._next_s


def triggers(limits: Limits) -> list[Trigger]:
    """Those that the settings ask for."""
    wanted: list[tuple[int, type[BySize | ByPackets | ByTime]]] = [
        (limits.size, BySize),
        (limits.packets, ByPackets),
        (limits.every_s, ByTime),
    ]
    return [trigger(value) for value, trigger in wanted if value]
