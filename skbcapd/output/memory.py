"""The memory of the ring buffer: the last packets, in granules.

In: complete blocks. Out: granules, oldest first, for a dump; how far back the memory reaches, and
how fast it fills.

The rule: memory is bounded by its size, and, if that is set, by the age of its packets. The oldest
granules are discarded first. A granule is what was written within GRANULE_S, at most _PIECE bytes
of small writes, or one larger write (at most a segment). Ages are measured with a monotonic clock,
when packets are written to memory: setting the system clock discards nothing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from skbcapd.output.blocks import count_packets, edge_times, utc

GRANULE_S = 1.0
RATE_S = 60  # the rate is that of the last minute
_PIECE = 1 << 18  # small writes are collected to granules of this size
_COST = 256  # bytes that a granule needs in addition to its blocks
_NEVER = float("inf")


@dataclass(slots=True)
class _Granule:
    """Blocks that were written together, and the monotonic times of the first and the last write."""

    blocks: bytearray
    begun_s: float
    ended_s: float

    @property
    def cost(self) -> int:
        """Bytes of memory."""
        return len(self.blocks) + _COST


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back the memory reaches, and how fast it fills.

    Args:
        size: maximum size in bytes.
        time_s: maximum age in seconds; 0: no limit.
        used: bytes in use, with those of a dump that is not written yet.
        first_ns: time of the oldest packet in memory, in ns since 1970; 0: no packet.
        last_ns: time of the newest one.
        filled: bytes written to it since the start.
        rate: bytes per second, over the last minute.
        by_size: bytes that were discarded because of the size.
        by_time: bytes that were discarded because of their age.
        bound: the setting that the last discarded packets exceeded; empty: nothing was discarded.
    """

    size: int
    time_s: int
    used: int
    first_ns: int
    last_ns: int
    filled: int
    rate: float
    by_size: int
    by_time: int
    bound: str

    @property
    def holds_s(self) -> float | None:
        """Seconds of packets that fit into the size at this rate; None: nothing is written to it."""
        if self.rate <= 0:
            return None
        return self.size / self.rate

    @property
    def facts(self) -> dict[str, Any]:
        """The values for clients; times as text."""
        return {
            "size": self.size,
            "time_s": self.time_s,
            "used": self.used,
            "first": utc(self.first_ns) if self.first_ns else None,
            "first_s": self.first_ns / 1e9,
            "last": utc(self.last_ns) if self.last_ns else None,
            "seconds": round((self.last_ns - self.first_ns) / 1e9, 3),
            "filled": self.filled,
            "rate": round(self.rate, 1),
            "holds_s": None if self.holds_s is None else round(self.holds_s, 1),
            "discarded": {"size": self.by_size, "time": self.by_time},
            "bound": self.bound or None,
        }


class Memory:
    """Memory with the last blocks that were written to it: a Sink.

    Args:
        size: maximum size in bytes; must be larger than the largest single write.
        time_s: maximum age in seconds; 0: no limit.
        clock: seconds; never set back.
    """

    def __init__(self, size: int, time_s: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._size, self._time_s, self._clock = size, time_s, clock
        self._used = self._filled = self._by_size = self._by_time = 0
        self._bound = ""
        self._granules: deque[_Granule] = deque()
        self._taken: deque[_Granule] = deque()
        self._filled_at: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=RATE_S + 1)
        self._wanted_s = _NEVER
        self.missed = 0
        """Packets that were discarded while a dump wanted them, because earlier ones wait for its disk."""

    @property
    def has_taken(self) -> bool:
        """Whether parts of the dump are still in memory."""
        return bool(self._taken)

    def write(self, blocks: bytes | memoryview) -> None:
        """Add one or more complete blocks; discard the oldest granules if there is no space."""
        now, size = self._clock(), len(blocks)
        while self._granules and self._used + size + _COST > self._size:
            self._discard_oldest()
        if self._used + size + _COST > self._size and self._taken:
            self._by_size += size
            if self._wanted_s < _NEVER:
                self.missed += count_packets(blocks)
            return  # the dump uses all of it
        last = self._granules[-1] if self._granules else None
        if last and len(last.blocks) + size <= _PIECE and now - last.begun_s < GRANULE_S:
            last.blocks += blocks
            last.ended_s = now
        else:
            self._granules.append(_Granule(bytearray(blocks), now, now))
            size += _COST
        self._used += size
        self._filled += size

    def clear(self) -> None:
        """Discard everything."""
        self._granules.clear()
        self._used = self._filled = 0

    def flush(self) -> None:
        """Nothing is buffered."""

    def tick(self) -> None:
        """Called once a second: discard what is too old."""
        self._expire()
        self._filled_at.append((self._clock(), self._filled))

    def take(self, from_s: float = -_NEVER) -> None:
        """Begin a dump, or continue it with later packets: `next` returns it piece by piece.

        Args:
            from_s: the first monotonic time; older granules stay in memory.
        """
        self._expire()
        self._wanted_s = from_s
        wanted: deque[_Granule] = deque()
        while self._granules and self._granules[-1].ended_s >= from_s:
            wanted.appendleft(self._granules.pop())
        self._taken.extend(wanted)

    def end_take(self) -> None:
        """The dump wants no later packets."""
        self._wanted_s = _NEVER

    def next(self) -> bytearray:
        """The oldest piece of the dump, which is removed from memory."""
        granule = self._taken.popleft()
        self._used -= granule.cost
        return granule.blocks

    def reach(self) -> Reach:
        """How far back it reaches now."""
        first = next((found for each in self._granules if (found := edge_times(each.blocks))), None)
        last = next((found for each in reversed(self._granules) if (found := edge_times(each.blocks))), None)
        then, before = self._filled_at[0]
        passed = self._clock() - then
        return Reach(
            size=self._size,
            time_s=self._time_s,
            used=self._used,
            first_ns=first[0] if first else 0,
            last_ns=last[1] if last else 0,
            filled=self._filled,
            rate=(self._filled - before) / passed if passed > 0 else 0.0,
            by_size=self._by_size,
            by_time=self._by_time,
            bound=self._bound,
        )

    def _expire(self) -> None:
        oldest = self._clock() - self._time_s
        while self._time_s and self._granules and self._granules[0].ended_s < oldest:
            size = self._granules.popleft().cost
            self._used -= size
            self._by_time += size
            self._bound = "files.ring_time"

    def _discard_oldest(self) -> None:
        granule = self._granules.popleft()
        self._used -= granule.cost
        self._by_size += granule.cost
        self._bound = "files.ring"
        if granule.ended_s >= self._wanted_s:
            self.missed += count_packets(granule.blocks)
