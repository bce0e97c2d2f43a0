"""The ring buffer: the last packets stay in memory, and are written to a file on request.

In: packets and ready blocks. Out: a file for each dump, or several if one would be too large.

The rule: memory is bounded, and the oldest packets are discarded first, in parts of up to one
segment. A packet is in at most one file: a dump takes all of the memory, which is empty then. A
dump happens between two drains, never in one: `ask` is for code that decides about a single packet,
and many such packets do not cause many files.

A dump is passed to the disk in parts, as fast as it accepts them; `has_pending_work` says that there is
more. What has not been passed on yet uses a part of the memory, so fewer new packets are kept.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from skbcapd.attribution.processes import Process
from skbcapd.errors import FileError
from skbcapd.kernel.segments import Packet
from skbcapd.output.block_writer import STOP_S
from skbcapd.output.blocks import packet_times
from skbcapd.output.interface import FILE_S, Snapshot, Statistics
from skbcapd.output.pcapng_output import PcapngOutput
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.series import State
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface
from skbcapd.worker import wait_until

_LOG = logging.getLogger(__name__)
ASKED_PAUSE_S = 10.0  # between two dumps for rules
_LATE_S = 0.5  # until it tries again to create a file, if the disk is slow
_PIECE = 1 << 18  # small writes are collected to pieces of this size; the oldest pieces are discarded


class Memory:
    """Memory with the last blocks that were written to it: a Sink.

    Args:
        size: maximum size in bytes; must be larger than the largest single write.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._pieces: deque[bytearray] = deque()
        self._taken: deque[bytearray] = deque()

    @property
    def has_taken(self) -> bool:
        """Whether parts of the dump are still in memory."""
        return bool(self._taken)

    def write(self, blocks: bytes | memoryview) -> None:
        """Add one or more complete blocks; discard the oldest pieces if there is no space."""
        while self._pieces and self._used + len(blocks) > self._size:
            self._used -= len(self._pieces.popleft())
        if self._used + len(blocks) > self._size and self._taken:
            return  # the dump uses all of it
        if self._pieces and len(self._pieces[-1]) + len(blocks) <= _PIECE:
            self._pieces[-1] += blocks
        else:
            self._pieces.append(bytearray(blocks))
        self._used += len(blocks)

    def flush(self) -> None:
        """Nothing is buffered."""

    def take(self) -> None:
        """Begin a dump of all packets: `next` returns it piece by piece; later packets are not part
        of it.
        """
        self._taken.extend(self._pieces)
        self._pieces = deque()

    def next(self) -> bytearray:
        """The oldest piece of the dump, which is removed from memory."""
        piece = self._taken.popleft()
        self._used -= len(piece)
        return piece


class Recorder:
    """An Output that keeps the last packets in memory, and writes them to a file on request.

    Args:
        files: writes the dumps; it creates files on demand only.
        size: size of the memory for packets, in bytes.
        encode: as for PcapngOutput.
        clock: seconds.
    """

    def __init__(
        self,
        files: RotatingOutput,
        size: int,
        encode: str = "kernel",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.labels = encode == "kernel"
        self.is_busy = self.needs_renumbering = False
        self.accepted = self.completed = 0  # a write to memory is complete at once
        self.dumped: int | None = 0
        self._files = files
        self._memory = Memory(size)
        self._encoder = PcapngOutput(self._memory, encode)
        self._memory.take()
        self._memory.next()  # the section header, which each file has
        self.refused = 0, ""
        """The number of dumps that could not begin, and the reason of the last one."""
        self._asked = ""
        self._dump: _Dump | None = None
        self._clock, self._not_before = clock, clock()

    @property
    def lost(self) -> int:
        """Packets of dumps that were not written because of an error."""
        return self._files.lost

    @property
    def path(self) -> str:
        """The last file; the directory before the first file."""
        return self._files.path

    def restart_interfaces(self, _statistics: Sequence[Statistics]) -> None:
        """Never called: packets in memory keep their numbers."""
        raise AssertionError("new numbers for interfaces of packets in memory")

    def write_packet(self, packet: Packet, interface_id: int, stamp: Label, _snapshot: Snapshot) -> None:
        """Write a packet to memory; see PcapngOutput."""
        self._encoder.write_packet(packet, interface_id, stamp)

    def write_blocks(self, view: memoryview, _snapshot: Snapshot) -> None:
        """Write complete blocks to memory."""
        self._memory.write(view)

    def add_interface(self, interface: Interface) -> int:
        """Add an interface; its number is the same in all files."""
        return self._files.add_interface(interface)

    def add_process(self, process: Process) -> None:
        """Add a process; all later files have its block."""
        self._files.add_process(process)

    def ask(self, why: str) -> None:
        """Request a dump after this drain; ASKED_PAUSE_S after the last one at the earliest.

        Args:
            why: trigger for the log, such as a rule; the first one counts.
        """
        self._asked = self._asked or why

    latency_s = FILE_S

    @property
    def has_pending_work(self) -> bool:
        """Whether `flush` must be called soon, even without packets."""
        return self._dump is not None or bool(self._asked and self._clock() >= self._not_before)

    @property
    def deleted(self) -> tuple[int, int]:
        """See RotatingOutput."""
        return self._files.deleted

    def flush(self, snapshot: Snapshot) -> None:
        """A drain has ended: begin the requested dump, or continue it."""
        self._go_on(snapshot)
        if self._asked and self._dump is None and self._clock() >= self._not_before:
            self.dump(snapshot, self._asked)

    def note_memory_pressure(self) -> None:
        """Does nothing: memory does not wait for a disk."""

    def tick(self, snapshot: Snapshot) -> None:
        """Called once a second: continue a dump, and finish files."""
        self.flush(snapshot)
        self._files.tick(snapshot)
        self._go_on(snapshot)

    def dump(self, snapshot: Snapshot, why: str = "signal") -> None:
        """Begin to write the memory to a file, even if it is empty. If no file can be created, the
        packets stay in memory.

        Args:
            snapshot: returns the statistics of the interfaces.
            why: trigger for the log.
        """
        if self._dump is not None:
            self._asked, self._not_before = why, self._clock()  # after the current dump
            return
        self._asked = ""
        self._not_before = self._clock() + ASKED_PAUSE_S
        try:
            self._files.begin()
        except TimeoutError:  # the file is there later
            self._asked, self._not_before = why, self._clock() + _LATE_S
            return
        except FileError as error:
            self.refused = self.refused[0] + 1, str(error)
            _LOG.warning("no dump (trigger: %s): %s; the packets stay in memory", why, error)
            return
        self._memory.take()
        self._dump = _Dump(why, self._files.lost)
        self._go_on(snapshot)

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """The capture has ended: finish the dump within STOP_S, and discard all other packets."""

        def snapshot() -> Sequence[Statistics]:
            return statistics

        def is_over() -> bool:
            self.flush(snapshot)
            self._files.collect_finished()
            self._go_on(snapshot)
            return self._dump is None

        if self._asked and self._dump is None:
            self.dump(snapshot, self._asked)
        if not wait_until(is_over, STOP_S):
            self._files.give_up()
            while self._memory.has_taken:
                self._write_piece(snapshot)
            self._files.rest(snapshot)
        self._files.finish(statistics)

    def close(self) -> None:
        """Close the directory."""
        self._files.close()
        self._end_dump()

    def _go_on(self, snapshot: Snapshot) -> None:
        """Write as much of the dump as the disk accepts, and finish it."""
        if self._dump is None:
            return
        self._files.flush(snapshot)
        while self._memory.has_taken and not self._files.is_busy:
            self._write_piece(snapshot)
        if not self._memory.has_taken and self._files.state is not State.LATE:
            if self._files.state is not State.IDLE:
                self._files.flush(snapshot)
                self._files.rest(snapshot)
            self._files.collect_finished()
            if self._files.is_complete:
                self._end_dump()

    def _write_piece(self, snapshot: Snapshot) -> None:
        piece = memoryview(self._memory.next())
        if self._dump is not None:
            self._dump.count(piece)
        self._files.write_blocks(piece, snapshot)

    def _end_dump(self) -> None:
        """The dump is finished: log the result."""
        dump, self._dump = self._dump, None
        if dump is None:
            return
        packets = dump.packets - (self._files.lost - dump.lost_before)
        self.dumped = (self.dumped or 0) + packets
        _LOG.warning("dumped %d packets%s to %s (trigger: %s)", packets, dump.times, self.path, dump.why)


class _Dump:
    """A dump that is being written.

    Args:
        why: trigger for the log.
        lost_before: number of dropped packets before the dump.
    """

    def __init__(self, why: str, lost_before: int) -> None:
        self.why, self.lost_before = why, lost_before
        self.packets = 0
        self._first_ns = self._last_ns = 0

    def count(self, piece: memoryview) -> None:
        """Count the packets of a piece."""
        found = packet_times(piece)
        self.packets += found.packets
        if found.packets:
            self._first_ns = self._first_ns or found.first_ns
            self._last_ns = found.last_ns

    @property
    def times(self) -> str:
        """Times of the first and last packet, for the log; empty without packets."""
        return f" from {_time(self._first_ns)} to {_time(self._last_ns)}" if self.packets else ""


def _time(time_ns: int) -> str:
    """A time in UTC, with milliseconds."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(time_ns // 1_000_000_000))
    return f"{stamp}.{time_ns // 1_000_000 % 1000:03}Z"
