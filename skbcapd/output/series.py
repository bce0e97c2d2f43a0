"""File after file: when one ends, what the next begins with, and what happens while the disk takes none.

In: reasons to begin a new file. Out: files of a CaptureDirectory, one at a time.

The rule: a capture never stops for its disk. What cannot be written is counted and told once, and writing goes on by
itself when it can. Every file lists all interfaces in the same order, as the kernel program stamps their numbers.

    state     what happens             next state
    IDLE      begin                    WRITING, where a file can be made in time
    WRITING   a trigger, rotate        WRITING, LATE or WAITING
              restart_interfaces       so, too
              rest                     IDLE
              the disk refuses         WAITING
              the file is taken away   WAITING
    LATE      the next file is made    WRITING, what came meanwhile first
              it cannot be made        WAITING
    WAITING   a second later           WRITING, where that can be; not on demand
              begin, rest              as IDLE
    any       finish                   ENDED

LATE: the disk takes long to make the next file. What is handed over is held, and the output is busy, so that no more
comes: packets wait in the shared memory. WAITING: the disk refuses, and packets are dropped.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

from skbcapd.attribution.processes import Process
from skbcapd.errors import FileError
from skbcapd.lru import Bounded
from skbcapd.output.block_writer import STOP_S, CaptureFile
from skbcapd.output.blocks import count_packets
from skbcapd.output.compressor import Compressor
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.interface import Snapshot, Statistics, Told
from skbcapd.output.pcapng_output import PROCESSES_REPEATED, PcapngOutput
from skbcapd.output.triggers import Limits, Trigger, triggers
from skbcapd.output.worker import wait_until
from skbcapd.pcapng.interface import Interface

_LOG = logging.getLogger(__name__)
_RESUME_ROOM = 4 << 20  # bytes free before a full disk is written to again: less is full again at once
_ROOM = 1 << 25  # bytes that are to be free beside files.keep_free while packets come: older files go in time
_ROOM_EVERY = 1 << 24  # bytes written, and that is seen to
_RETRY_S = 1.0
_INTERFACES_MAX = 4096  # as many, and the next file begins: each file lists them all
_INTERFACES_LISTED = 64  # more than these, and most of them unused: the list begins anew


class State(enum.Enum):
    """Of a RotatingOutput; see above."""

    IDLE = "no file is wanted"
    WRITING = "packets go to a file"
    LATE = "the disk has not made the next file yet"
    WAITING = "the disk takes no packets"
    ENDED = "the capture is over"


class Flusher:
    """Forces a file to the disk now and then, in a thread of its own: it may take long.

    Args:
        every_s: seconds; 0 is never.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next_s = 0.0
        self._size = -1
        self._thread: threading.Thread | None = None

    def flush(self, descriptor: int, size: int) -> None:
        """Begin, if it is time, the file has grown, and the last one is over."""
        now = time.monotonic()
        is_due = self._every_s and now >= self._next_s and size != self._size
        if not is_due or (self._thread and self._thread.is_alive()):
            return
        self._next_s, self._size = now + self._every_s, size
        self._thread = threading.Thread(target=self._force, args=(os.dup(descriptor),), daemon=True)
        self._thread.start()

    @staticmethod
    def _force(descriptor: int) -> None:
        with contextlib.suppress(OSError):  # a write will tell
            os.fdatasync(descriptor)
        os.close(descriptor)


class Prologue:
    """What each file begins with: all interfaces, and the processes that were described last."""

    def __init__(self) -> None:
        self.interfaces: list[Interface] = []
        self._processes: Bounded[Process, None] = Bounded(PROCESSES_REPEATED)
        self._is_long = False

    @property
    def is_too_long(self) -> bool:
        """Whether there are as many interfaces as a file may begin with, used or not."""
        return len(self.interfaces) >= _INTERFACES_MAX

    @property
    def is_unused(self) -> bool:
        """Whether most of many interfaces had no packets in the last file."""
        return self._is_long

    def add_process(self, process: Process) -> None:
        """Remember a process that no file is there for."""
        self._processes[process] = None

    def write(self, output: PcapngOutput) -> None:
        """Begin a file."""
        for interface in self.interfaces:
            output.add_interface(interface)
        for process in self._processes:
            output.add_process(process)

    def take(self, output: PcapngOutput, since: Sequence[Statistics] | None = None) -> None:
        """A file ends: what the next one is to begin with.

        Args:
            output: the file.
            since: what became of the packets in its time; None where that is not known.
        """
        self._processes = output.processes
        if since is not None:
            unused = len(self.interfaces) - sum(one.received > 0 for one in since)
            self._is_long = len(self.interfaces) > _INTERFACES_LISTED and 2 * unused > len(self.interfaces)

    def clear(self) -> None:
        """Interfaces begin anew."""
        self.interfaces.clear()
        self._is_long = False


class Work:
    """The file in work: its section, and how full it is.

    Args:
        file: new.
        encode: as for PcapngOutput.
        prologue: what it begins with.
        reasons: to begin the next one.
        now: seconds since 1970.
    """

    def __init__(
        self, file: CaptureFile, encode: str, prologue: Prologue, reasons: Sequence[Trigger], now: float
    ) -> None:
        self.file = file
        self.output = PcapngOutput(file.stream, encode)
        self.packets = 0
        self._triggers = reasons
        self._room_seen_at = 0  # size then
        prologue.write(self.output)
        for trigger in reasons:
            trigger.begin(now)

    def is_full(self, size: int, packets: int) -> bool:
        """Whether so many bytes and packets are too many for it."""
        size += self.file.stream.size
        return any(trigger.is_full(size, self.packets + packets) for trigger in self._triggers)

    def is_over(self, now: float) -> bool:
        """Whether it ends, whatever it holds."""
        return any(trigger.is_over(now) for trigger in self._triggers)

    def is_room_to_be_seen_to(self) -> bool:
        """Whether much was written since this was asked with success."""
        if self.file.stream.size < self._room_seen_at + _ROOM_EVERY:
            return False
        self._room_seen_at = self.file.stream.size
        return True


class Held:
    """What is handed over while the next file is not there yet: a Sink.

    Args:
        encode: as for PcapngOutput.
    """

    def __init__(self, encode: str) -> None:
        self.blocks = bytearray()
        self.output = PcapngOutput(self, encode)
        self.blocks.clear()  # the section header: the file will have its own

    def write(self, blocks: bytes | memoryview) -> None:
        """Take one or more whole blocks."""
        self.blocks += blocks

    def flush(self) -> None:
        """Nothing is held back."""


class Ledger:
    """What has become of all that was given to files, and while there was none."""

    def __init__(self) -> None:
        self.dropped = 0  # while there was no file
        self.ending: list[CaptureFile] = []  # those that have no names yet
        self.work: Work | None = None
        self.held: Held | None = None
        self._skew = 0  # of positions: bytes that were held, less what stands before them in their file
        self._lost = self._handed = self._settled = 0  # of files that have their names

    @property
    def files(self) -> list[CaptureFile]:
        """Those whose figures still change."""
        return self.ending if self.work is None else [*self.ending, self.work.file]

    @property
    def lost(self) -> int:
        """Packets that are in no file."""
        return self.dropped + self._lost + sum(file.stream.lost for file in self.files)

    @property
    def handed(self) -> int:
        """See Output."""
        held = len(self.held.blocks) if self.held else 0
        return self._handed + self._skew + held + sum(file.stream.handed for file in self.files)

    @property
    def settled(self) -> int:
        """See Output."""
        return self._settled + self._skew + sum(file.stream.settled for file in self.files)

    @property
    def lost_before(self) -> int:
        """Packets that are in no file, but for those of the file in work."""
        return self.dropped + self._lost + sum(file.stream.lost for file in self.ending)

    def release(self) -> bytearray:
        """The file is there: what was held for it, which is to be handed over now."""
        held, self.held = self.held, None
        if held is None or self.work is None:
            return bytearray()
        self._skew -= self.work.file.stream.handed
        return held.blocks

    def drop_held(self) -> None:
        """The file will never be there: what was held for it is counted."""
        held, self.held = self.held, None
        if held is not None:
            self.dropped += count_packets(held.blocks)
            self._skew += len(held.blocks)

    def end(self) -> None:
        """The file in work is over, and yet to get its name."""
        if self.work is not None:
            self.ending.append(self.work.file)
        self.work = None

    def finish(self, file: CaptureFile) -> None:
        """A file has its name: its figures are for good."""
        if file in self.ending:
            self.ending.remove(file)
        self._lost += file.stream.lost
        self._handed += file.stream.handed
        self._settled += file.stream.settled


class Outage:
    """A time in which the disk takes no packets."""

    def __init__(self) -> None:
        self.file: CaptureFile | None = None  # that the disk has refused, as was told
        self._lost_before = 0
        self.retry_at = 0.0

    def begin(self, what: str, lost_before: int, file: CaptureFile | None = None) -> None:
        """Say what has happened, and how many packets were lost until then."""
        self.file, self._lost_before = file, lost_before
        _LOG.warning("%s; packets are dropped until files can be written again", what)
        self.retry_at = time.monotonic() + _RETRY_S

    def is_to_be_tried(self) -> bool:
        """Whether it is time to try again: once a second."""
        if time.monotonic() < self.retry_at:
            return False
        self.retry_at = time.monotonic() + _RETRY_S
        return True

    def end(self, path: str, lost: int) -> None:
        """Say that it is over, and how many packets are lost by now."""
        _LOG.warning("%s: writing again; %d packets were dropped", path, lost - self._lost_before)


class FileSeries:
    """File after file: the states above.

    Args:
        directory: where.
        limits: when a file is full.
        encode: as for PcapngOutput.
        compressor: compresses finished files.
        flush_s: how often what was written is forced to the disk; 0 is never.
        clock: seconds since 1970.
        on_demand: a file begins by `begin`, and none follows it when it has ended by `rest`.

    Raises:
        FileError: not even the first file can be made.
    """

    def __init__(
        self,
        directory: CaptureDirectory,
        limits: Limits,
        encode: str = "kernel",
        compressor: Compressor | None = None,
        flush_s: int = 0,
        clock: Callable[[], float] = time.time,
        *,
        on_demand: bool = False,
    ) -> None:
        self.labels = encode == "kernel"
        self.state = State.IDLE
        self._told = Told()
        self._prologue = Prologue()
        self._directory, self._encode, self._compressor = directory, encode, compressor
        self._clock, self._on_demand = clock, on_demand
        self._triggers = triggers(limits)
        self._counts_packets = any(trigger.counts_packets for trigger in self._triggers)
        self._flusher = Flusher(flush_s)
        self._ledger, self._outage = Ledger(), Outage()
        if compressor:  # files of a capture that ended before they were compressed
            for path in directory.plain():
                compressor.add(path)
        self._is_late_told = False
        if not on_demand:
            self._directory.clean()
            try:
                self._begin()
            except TimeoutError:
                raise FileError(f"{directory.path}: the disk does not make a file in time") from None

    @property
    def _work(self) -> Work | None:
        return self._ledger.work

    @property
    def path(self) -> str:
        """The file in work; the last finished one while there is none; the directory where that is not there."""
        if self._work is not None and not self._work.file.is_gone:
            return str(self._work.file.working_path)
        return str(self._directory.last_good or self._directory.path)

    @property
    def deleted(self) -> tuple[int, int]:
        """Files that were deleted as more was kept than shall be, and their bytes."""
        return self._directory.retention.deleted_files, self._directory.retention.deleted_bytes

    def rotate(self, snapshot: Snapshot) -> None:
        """Finish this file and begin the next."""
        if self.state is State.WRITING:
            self._end(snapshot())
            self._continue()

    def begin(self) -> None:
        """Begin a file, where there is none, and the disk has the free space that it shall keep.

        Raises:
            FileError: none can be made.
            TimeoutError: the disk does not make it in time.
        """
        if self.state is not State.WRITING:
            self._directory.clean(_RESUME_ROOM)
            self._begin(room=0)

    def rest(self, snapshot: Snapshot) -> None:
        """Finish this file, and begin no other."""
        self._end(snapshot())
        self.state = State.IDLE

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """The capture has ended: statistics, and the last file's name. One that is late is waited for."""

        def is_there() -> bool:
            self.flush(lambda: statistics)
            return self.state is not State.LATE

        wait_until(is_there, STOP_S / 2)
        self._end(statistics)
        self.state = State.ENDED

    def give_up(self) -> None:
        """Write nothing more, and count what is not written yet as lost."""
        for file in self._ledger.files:
            file.stream.disk.is_given_up = True

    def close(self) -> None:
        """Let go of the directory; a file without statistics is finished as it is.

        What the disk does not take within STOP_S is counted as lost.
        """
        self._end([])
        self.state = State.ENDED
        if not self._directory.wait(STOP_S):
            self.give_up()
            self._directory.wait(STOP_S / 2)
        self.settle()
        for file in self._ledger.ending:
            _LOG.warning(
                "%s: the disk has not written it yet; it will be finished at the next start", file.working_path
            )
            file.stream.abandon()
        self._directory.close(self._compressor, timeout_s=0)

    def settle(self, *, wait: bool = False) -> None:
        """See which files have got their names.

        Args:
            wait: for all that are finished.
        """
        for file, error in self._directory.finished(wait=wait):
            self._ledger.finish(file)
            if error and file is not self._outage.file:
                _LOG.warning("%s", error)
            elif not error and self._compressor:
                self._compressor.add(file.path)

    @property
    def is_settled(self) -> bool:
        """Whether all files that have ended have their names, and are counted."""
        return not self._ledger.ending

    def tick(self, snapshot: Snapshot) -> None:
        """Once a second: is it time for the next file, is the file still there, may we write again?"""
        self.flush(snapshot)
        self.settle()
        self._directory.tick(self._compressor)
        if self._work:
            if self._work.file.is_gone:
                self._fail("it was moved or removed")
            elif self._work.is_over(self._clock()):
                self.rotate(snapshot)
            else:
                self._flusher.flush(self._work.file.descriptor, self._work.file.stream.size)
        elif self.state is State.WAITING and not self._on_demand:
            self._resume()
        elif self.state is State.LATE and not self._is_late_told:
            self._is_late_told = True
            _LOG.warning("%s: the disk takes long to make the next file; packets wait in memory", self._directory.path)

    def flush(self, _snapshot: Snapshot) -> None:
        """Hand on what is held back, and see whether the disk took all."""
        if self.state is State.LATE:
            self._continue()
        if not self._work:
            return
        self._work.output.flush()
        error = self._work.file.stream.error
        if error is not None:
            self._fail(error.strerror or "error")
        elif self._work.is_room_to_be_seen_to():
            self._directory.clean(_ROOM)

    def _begin(self, room: int | None = None) -> None:
        file = self._directory.new_file(is_dump=self._on_demand, room=room)
        self._ledger.work = Work(file, self._encode, self._prologue, self._triggers, self._clock())
        self._directory.begin(file)  # also without a packet it is a capture file
        self.state = State.WRITING

    def _continue(self) -> None:
        """Begin the next file, or go on with one that was late."""
        if self.state is not State.LATE:
            self._directory.clean()
        try:
            self._begin()
        except TimeoutError:
            self.state = State.LATE
        except FileError as error:
            self.state = State.WAITING
            self._ledger.drop_held()
            self._outage.begin(str(error), self._ledger.lost)
        else:
            self._is_late_told = False

    def _end(self, statistics: Sequence[Statistics]) -> None:
        """Statistics of this file's time, then the file's name."""
        self._ledger.drop_held()
        work = self._work
        if work:
            since = self._told.advance(statistics)
            work.output.finish(since)
            self._prologue.take(work.output, since)
            self._ledger.end()
            self._directory.finish(work.file)

    def _fail(self, why: str) -> None:
        """The file takes no more: finish what there is of it."""
        work = self._work
        if work:
            self.state = State.WAITING
            self._outage.begin(f"{work.file.working_path}: {why}", self._ledger.lost_before, work.file)
            self._prologue.take(work.output)
            self._ledger.end()
            self._directory.finish(work.file)

    def _resume(self) -> None:
        """Try to write again; not before it is known what the last file has lost."""
        if self._outage.file in self._ledger.ending or not self._outage.is_to_be_tried():
            return
        self._directory.clean(_RESUME_ROOM)
        try:
            self._begin(room=_RESUME_ROOM)
        except (FileError, TimeoutError):
            return
        self._outage.end(self.path, self._ledger.lost)
