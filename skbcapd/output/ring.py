"""The flight recorder: the last packets stay in memory, and become a file when somebody asks for them.

In: packets and ready blocks. Out: for each dump a file, or several where one would be too large.

The rule: memory is bounded, and the oldest packets go first, in pieces of up to a segment. A packet is in one file at
most: a dump takes what is in memory, and the memory begins anew. Dumps happen between two looks at the segments, never
in the middle of one: `ask` is for what decides on a single packet, and a flood of such packets is no flood of files.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from skbcapd.attribution.processes import Process
from skbcapd.kernel.segments import Cut, Upcall
from skbcapd.output.block_writer import count_packets
from skbcapd.output.interface import Statistics
from skbcapd.output.pcapng_output import PcapngOutput
from skbcapd.output.rotation import RotatingOutput
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface

ASKED_PAUSE_S = 10.0  # between two dumps that rules ask for
_PIECE = 1 << 18  # small writes are gathered to pieces of this size; what goes, goes by the piece


class Memory:
    """The last blocks that were written to it: a Sink.

    Args:
        size: bytes, never exceeded; more than the largest single write.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._pieces: deque[bytearray] = deque()

    def write(self, blocks: bytes | memoryview) -> None:
        """Take one or more whole blocks; the oldest go where there is no room."""
        while self._pieces and self._used + len(blocks) > self._size:
            self._used -= len(self._pieces.popleft())
        if self._pieces and len(self._pieces[-1]) + len(blocks) <= _PIECE:
            self._pieces[-1] += blocks
        else:
            self._pieces.append(bytearray(blocks))
        self._used += len(blocks)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> deque[bytearray]:
        """All that is there, oldest first; the memory is empty after that."""
        pieces, self._pieces, self._used = self._pieces, deque(), 0
        return pieces


class Recorder:
    """An Output that keeps the last packets in memory until a dump is asked for.

    Args:
        files: where dumps go; it makes files on demand only.
        size: bytes of memory for packets.
        encode: as for PcapngOutput.
        say: takes one line for the log.
        clock: seconds.
    """

    def __init__(
        self,
        files: RotatingOutput,
        size: int,
        encode: str = "kernel",
        say: Callable[[str], None] = lambda _line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.labels = encode == "kernel"
        self.dumped: int | None = 0
        self._files, self._say = files, say
        self._memory = Memory(size)
        self._encoder = PcapngOutput(self._memory, encode)
        self._memory.take()  # the section header: each file has its own
        self._asked = ""
        self._clock, self._not_before = clock, clock()
        self.write_packet: Callable[[Upcall | Cut, int, Label], None] = self._encoder.write_packet
        self.write_blocks: Callable[[memoryview], None] = self._memory.write

    @property
    def lost(self) -> int:
        """Packets of dumps that the disk did not take."""
        return self._files.lost

    @property
    def path(self) -> str:
        """The last file; the directory before the first one."""
        return self._files.path

    @property
    def statistics(self) -> Callable[[], list[Statistics]]:
        """What tells what became of the packets; set once there is a capture."""
        return self._files.statistics

    @statistics.setter
    def statistics(self, tell: Callable[[], list[Statistics]]) -> None:
        self._files.statistics = tell

    def add_interface(self, interface: Interface) -> int:
        """The number holds for all files."""
        return self._files.add_interface(interface)

    def add_process(self, process: Process) -> None:
        """Its block will be in each file from now on."""
        self._files.add_process(process)

    def ask(self, why: str) -> None:
        """Have a dump made after this look at the segments, or when the last one is ASKED_PAUSE_S ago.

        Args:
            why: who wants it, for the log, such as a rule; the first of several is told.
        """
        self._asked = self._asked or why

    def flush(self) -> None:
        """All of this look is in memory: make the dump that was asked for."""
        if self._asked and self._clock() >= self._not_before:
            self.dump(self._asked)

    def hurry(self) -> None:
        """Memory does not wait for a disk."""

    def tick(self) -> None:
        """Once a second: look after finished files."""
        self.flush()
        self._files.tick()

    def dump(self, why: str = "a signal") -> None:
        """Write what is in memory to a file, also if that is nothing; where none can be made, it stays in memory.

        Args:
            why: who wants it, for the log.
        """
        self._asked = ""
        self._not_before = self._clock() + ASKED_PAUSE_S
        if not self._files.begin():
            return
        lost, taken = self._files.lost, 0
        pieces = self._memory.take()
        while pieces:
            piece = memoryview(pieces.popleft())
            taken += count_packets(piece)
            self._files.write_blocks(piece)
        self._files.flush()
        self._files.rest()
        lost = self._files.lost - lost
        self.dumped = (self.dumped or 0) + taken - lost
        self._say(f"{self.path}: {taken - lost} packets out of memory, asked for by {why}")

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """The capture has ended; what nobody has asked for is forgotten."""
        if self._asked:
            self.dump(self._asked)
        self._files.finish(statistics)

    def close(self) -> None:
        """Let go of the directory."""
        self._files.close()
