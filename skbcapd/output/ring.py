"""The ring buffer: the last packets stay in memory, and are written to a file on request.

In: packets and ready blocks; triggers. Out: a file for each dump, or several if one would be too
large.

The rules: a packet is in at most one file: a dump takes the packets from memory. A dump begins
between two drains, never in one: `ask` is for code that decides about a single packet, and many such
packets do not cause many files. One dump is written at a time. While it captures, a further trigger
extends it; while it is written, a further trigger begins the next one.

A dump is passed to the disk in parts, as fast as it accepts them; `has_pending_work` says that there is
more. What has not been passed on yet uses a part of the memory, so fewer new packets are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from skbcapd.attribution.processes import Process
from skbcapd.errors import FileError
from skbcapd.kernel.segments import Packet
from skbcapd.output.block_writer import STOP_S
from skbcapd.output.dump import Dump, Orders
from skbcapd.output.interface import MEMORY_S, Snapshot, Statistics
from skbcapd.output.memory import Memory
from skbcapd.output.pcapng_output import PcapngOutput
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.series import State
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface, Loan
from skbcapd.worker import wait_until

_LOG = logging.getLogger(__name__)
ASKED_PAUSE_S = 10.0  # between two dumps for rules
_LATE_S = 0.5  # until it tries again to create a file, if the disk is slow


class Recorder:
    """An Output that keeps the last packets in memory, and writes them to a file on request.

    Args:
        files: writes the dumps; it creates files on demand only.
        size: size of the memory for packets, in bytes.
        time_s: maximum age of packets in memory, in seconds; 0: no limit.
        encode: as for PcapngOutput.
        clock: seconds.
    """

    def __init__(
        self,
        files: RotatingOutput,
        size: int,
        time_s: int = 0,
        encode: str = "kernel",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.labels = encode == "kernel"
        self.is_busy = self.needs_renumbering = False
        self.accepted = self.completed = 0  # a write to memory is complete at once
        self._dumped = 0  # packets of finished dumps
        self._files, self.durations = files, files.durations
        self._memory = Memory(size, time_s, clock)
        self._encoder = PcapngOutput(self._memory, encode)
        self._memory.clear()  # without the section header, which each file has
        self.refused = 0, ""
        """The number of dumps that could not begin, and the reason of the last one."""
        self._next: Dump | None = None
        self._dump: Dump | None = None
        self.orders = Orders(clock)
        """What commands have asked for; the next call of `dump` begins it."""
        self._clock, self._not_before = clock, clock()

    @property
    def lost(self) -> int:
        """Packets of dumps that were not written because of an error."""
        return self._files.lost

    @property
    def dumped(self) -> int:
        """Packets that are in files."""
        return self._dumped + (self._dump.certain if self._dump else 0)

    @property
    def path(self) -> str:
        """The last file; the directory before the first file."""
        return self._files.path

    @property
    def memory(self) -> dict[str, Any]:
        """The state of the memory, and of the dump that is being written (None: there is none)."""
        dump = self._dump.facts(self._clock()) if self._dump else None
        return self._memory.reach().facts | {"dump": dump}

    def restart_interfaces(self, _statistics: Sequence[Statistics]) -> None:
        """Never called: packets in memory keep their numbers."""
        raise AssertionError("new numbers for interfaces of packets in memory")

    def write_packet(self, packet: Packet, interface_id: int, stamp: Label, _snapshot: Snapshot) -> None:
        """Write a packet to memory; see PcapngOutput."""
        self._encoder.write_packet(packet, interface_id, stamp)

    def write_blocks(self, view: memoryview, _snapshot: Snapshot, _loan: Loan | None = None) -> None:
        """Write complete blocks to memory."""
        self._memory.write(view)

    def add_interface(self, interface: Interface) -> int:
        """Add an interface; its number is the same in all files."""
        return self._files.add_interface(interface)

    def add_process(self, process: Process) -> None:
        """Add a process; all later files have its block."""
        self._files.add_process(process)

    def ask(self, why: str, after_s: float = 0.0) -> None:
        """Request a dump after this drain; ASKED_PAUSE_S after the last one at the earliest.

        Args:
            why: trigger for the log, such as a rule; the first one counts.
            after_s: how long to capture after this moment.
        """
        self._request(Dump(why, self._clock() + after_s))

    latency_s = MEMORY_S

    @property
    def has_pending_work(self) -> bool:
        """Whether `flush` must be called soon, even without packets."""
        if self._dump is None:
            return self._next is not None and self._clock() >= self._not_before
        is_over = self._clock() >= self._dump.end_s or self._has_failed
        return is_over or not self._dump.is_capturing or self._memory.has_taken

    @property
    def counts(self) -> dict[str, int]:
        """See RotatingOutput."""
        return self._files.counts

    def flush(self, snapshot: Snapshot) -> None:
        """A drain has ended: begin the requested dump, or continue it."""
        self._go_on(snapshot)
        self._begin(snapshot)
        dump = self._dump
        if dump is None or not dump.is_capturing:
            return
        if self._has_failed:
            dump.end_capture(self._memory)
            return
        self._memory.take(dump.from_s)
        was_over, dump.is_over = dump.is_over, self._clock() >= dump.end_s
        if was_over and dump.is_over:
            dump.end_capture(self._memory)
        self._go_on(snapshot)

    def note_memory_pressure(self) -> None:
        """Does nothing: memory does not wait for a disk."""

    def tick(self, snapshot: Snapshot) -> bool:
        """Called once a second, as it always says: continue a dump, and finish files."""
        self._memory.tick()
        self._go_on(snapshot)
        self._begin(snapshot)
        self._files.tick(snapshot)
        self._go_on(snapshot)
        return True

    def dump(self, snapshot: Snapshot, why: str = "signal") -> None:
        """Begin to write the memory to a file, even if it is empty: as commands have ordered it, or
        everything. If no file can be created, the packets stay in memory.

        Args:
            snapshot: returns the statistics of the interfaces.
            why: trigger for the log, if no command has ordered it.
        """
        orders = self.orders.take()
        for number, wanted in orders.items():
            self.orders.follow(number, self._request(wanted))
        if not orders:
            self._request(Dump(why, self._clock()))
        self._not_before = self._clock()
        self._begin(snapshot)

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """The capture has ended: finish the dump within STOP_S, and discard all other packets."""

        def snapshot() -> Sequence[Statistics]:
            return statistics

        def is_over() -> bool:
            if self._dump is not None and self._dump.is_capturing:
                self._memory.take(self._dump.from_s)
                self._dump.end_capture(self._memory)
            self._go_on(snapshot)
            self._files.collect_finished()
            self._go_on(snapshot)
            self._begin(snapshot)
            return self._dump is self._next is None

        self._not_before = self._clock()
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

    def _request(self, wanted: Dump) -> Dump:
        """The dump for a trigger: the current one while it captures, otherwise the next one."""
        if self._dump is not None and self._dump.is_capturing:
            self._dump.extend(wanted)
            return self._dump
        if self._next is None:
            self._next = wanted
        elif self._next is not wanted:
            self._next.merge(wanted)
        return self._next

    def _begin(self, snapshot: Snapshot) -> None:
        """Begin the next dump, if it is time."""
        wanted, now = self._next, self._clock()
        if wanted is None or self._dump is not None or now < self._not_before:
            return
        try:
            self._files.begin()
        except TimeoutError:  # the file is there later
            self._not_before = now + _LATE_S
            return
        except FileError as error:
            self._next, self._not_before = None, now + ASKED_PAUSE_S
            wanted.refuse(str(error))
            self.refused = self.refused[0] + 1, str(error)
            _LOG.warning("no dump (trigger: %s): %s; the packets stay in memory", wanted.why, error)
            return
        self._next, self._dump, self._not_before = None, wanted, now + ASKED_PAUSE_S
        self._memory.take(wanted.from_s)
        wanted.begin(now, self._files.lost, self._memory.missed)
        if not wanted.is_capturing:
            wanted.end_capture(self._memory)
        self._go_on(snapshot)

    @property
    def _has_failed(self) -> bool:
        """Whether a write of the dump has failed."""
        return self._files.state is State.WAITING

    def _go_on(self, snapshot: Snapshot) -> None:
        """Write as much of the dump as the disk accepts, and finish it."""
        dump = self._dump
        if dump is None:
            return
        self._files.flush(snapshot)
        while self._memory.has_taken and not self._files.is_busy:
            self._write_piece(snapshot)
        dump.position = self._files.completed
        if dump.position == self._files.accepted:
            dump.note_written(self._files.lost)
        if dump.is_capturing or self._memory.has_taken or self._files.state is State.LATE:
            return
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
        dump.finish(self._files.lost, list(self._files.paths))
        self._dumped += dump.certain
        _LOG.warning("%s", dump.sentence)
