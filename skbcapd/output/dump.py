"""One dump of the ring buffer: what was asked for, how far it is, and what became of it.

In: triggers, and the packets that are written. Out: the sentence for the log and for `skbcapd dump`.

    state      what happens                         next state
    WAITING    it begins                            CAPTURING if time is left after the trigger, else WRITING
               no file can be created               REFUSED
    CAPTURING  another trigger                      the same: the time is extended, AFTER_MAX_S at most
               the time is over, a write fails, or the capture ends    WRITING
    WRITING    all of it is on the disk             DONE

Times are monotonic seconds unless a name says otherwise.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from skbcapd.lru import Bounded
from skbcapd.output.blocks import packet_times, utc
from skbcapd.output.memory import Memory

ORDERS_MAX = 64  # commands that wait, and that are remembered
AFTER_MAX_S = 3600.0  # a dump that is extended again and again ends, and the next one begins


class DumpState(enum.Enum):
    """The state of a dump; see above."""

    WAITING = "waiting"
    CAPTURING = "capturing"
    WRITING = "writing"
    DONE = "done"
    REFUSED = "refused"


@dataclass(slots=True)
class Dump:
    """One dump.

    Args:
        why: its first trigger, such as a rule.
        end_s: packets until then are part of it.
        from_s: packets from then are part of it.
    """

    why: str
    end_s: float
    from_s: float = float("-inf")
    state: DumpState = DumpState.WAITING
    is_over: bool = False
    """Whether a drain has found that its time is over; the next drain has its last packets."""
    refusal: str = ""
    packets: int = 0
    certain: int = 0
    """Packets that are on the disk."""
    lost: int = 0
    missed: int = 0
    paths: Sequence[str] = ()
    position: int = 0
    """See Output.completed: increases while its disk writes."""
    _lost_before: int = 0
    _missed_before: int = 0
    _begun_s: float = 0.0
    _first_ns: int | None = None
    _last_ns: int = 0

    @property
    def is_capturing(self) -> bool:
        """Whether later packets are part of it."""
        return self.state is DumpState.CAPTURING

    def merge(self, other: Dump) -> None:
        """Another trigger before it has begun."""
        self.end_s, self.from_s = max(self.end_s, other.end_s), min(self.from_s, other.from_s)

    def extend(self, other: Dump) -> None:
        """Another trigger while it captures. Packets that it has left in memory stay there."""
        self.end_s = min(max(self.end_s, other.end_s), self._begun_s + AFTER_MAX_S)

    def refuse(self, why: str) -> None:
        """No file can be created."""
        self.state, self.refusal = DumpState.REFUSED, why

    def begin(self, now: float, lost: int, missed: int) -> None:
        """Its file exists.

        Args:
            now: the time.
            lost: packets that the output could not write until now.
            missed: packets that memory has missed until now.
        """
        self._begun_s, self._lost_before, self._missed_before = now, lost, missed
        self.end_s = min(self.end_s, now + AFTER_MAX_S)
        self.state = DumpState.CAPTURING if self.end_s > now else DumpState.WRITING

    def count(self, piece: memoryview) -> None:
        """Count the packets of a piece."""
        found = packet_times(piece)
        self.packets += found.packets
        if found.packets:
            self._first_ns = found.first_ns if self._first_ns is None else self._first_ns
            self._last_ns = found.last_ns

    def note_written(self, lost: int) -> None:
        """All that was counted is on the disk, or among `lost` of the output."""
        self.lost = lost - self._lost_before
        self.certain = max(self.certain, self.packets - self.lost)

    def end_capture(self, memory: Memory) -> None:
        """Later packets are not part of it."""
        memory.end_take()
        self.state, self.missed = DumpState.WRITING, memory.missed - self._missed_before

    def finish(self, lost: int, paths: Sequence[str]) -> None:
        """It is on the disk: `lost` as for `begin`, and the paths of its files."""
        self.note_written(lost)
        self.certain = self.packets - self.lost
        self.state, self.paths = DumpState.DONE, paths

    @property
    def sentence(self) -> str:
        """What it has written, in one line."""
        times = ""
        if self.certain and self._first_ns is not None:
            times = f" from {utc(self._first_ns)} to {utc(self._last_ns)}"
        where = self.paths[0] if self.paths else "no file"
        if len(self.paths) > 1:
            where = f"{len(self.paths)} files, {where} to {self.paths[-1]}"
        text = f"dumped {self.certain} packets{times} to {where} (trigger: {self.why})"
        if self.lost:
            text += f"; {self.lost} packets could not be written"
        if self.missed:
            text += f"; {self.missed} packets are missing, because the disk was late and memory was full"
        return text

    def facts(self, now: float) -> dict[str, Any]:
        """Its state for clients."""
        left_s = max(0.0, self.end_s - now) if self.is_capturing else 0.0
        found: dict[str, Any] = {
            "state": self.state.value,
            "trigger": self.why,
            "left_s": round(left_s, 1),
            "packets": self.certain,
            "position": self.position,
        }
        if self.state is DumpState.DONE:
            found |= {"text": self.sentence, "paths": list(self.paths)}
        return found | ({"refusal": self.refusal} if self.refusal else {})


class Orders:
    """What commands have asked for, by number.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: dict[int, Dump] = {}
        self._known: Bounded[int, Dump] = Bounded(ORDERS_MAX)
        self._count = 0

    def add(self, after_s: float = 0.0, since_s: float | None = None) -> int | None:
        """Order a dump.

        Args:
            after_s: how long to capture after this moment.
            since_s: only packets of so many last seconds; None: all.

        Returns:
            Its number; None: too many are waiting.
        """
        if len(self._waiting) >= ORDERS_MAX:
            return None
        now = self._clock()
        self._count += 1
        wanted = Dump("command", now + after_s, float("-inf") if since_s is None else now - since_s)
        self._waiting[self._count] = self._known[self._count] = wanted
        return self._count

    @property
    def are_waiting(self) -> bool:
        """Whether there are orders that are not taken yet."""
        return bool(self._waiting)

    def take(self) -> dict[int, Dump]:
        """The orders that are not taken yet."""
        taken, self._waiting = self._waiting, {}
        return taken

    def follow(self, number: int, dump: Dump) -> None:
        """The dump that fulfils an order."""
        self._known[number] = dump

    def facts(self, number: int) -> dict[str, Any] | None:
        """What became of an order; None: the number is not known (any more)."""
        found = self._known.get(number)
        return None if found is None else found.facts(self._clock())
