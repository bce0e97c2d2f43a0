"""One capture, many files: each begins anew by size, time, number of packets or on request, and stands for itself.

In: packets and ready blocks. Out: files of a CaptureDirectory, one at a time.

The rule: a capture never stops for its disk. What cannot be written is counted and told once, and writing goes on by
itself when it can. Every file lists all interfaces in the same order, as the kernel program stamps their numbers.

    state     what happens             next state
    IDLE      begin                    WRITING, or WAITING where no file can be made
    WRITING   a trigger, rotate        WRITING, or WAITING where no file can be made
              restart_interfaces       so, too
              rest                     IDLE
              the disk refuses         WAITING
              the file is taken away   WAITING
    WAITING   a second later           WRITING, where that can be; not on demand
              begin, rest              as IDLE
    any       finish                   ENDED
"""

from __future__ import annotations

import contextlib
import enum
import os
import threading
import time
from collections.abc import Callable, Sequence

from skbcapd.attribution.processes import Process
from skbcapd.errors import FileError
from skbcapd.kernel.segments import Cut, Upcall
from skbcapd.output.block_writer import QUEUE_MAX, CaptureFile
from skbcapd.output.blocks import count_packets
from skbcapd.output.compressor import Compressor
from skbcapd.output.directory import STOP_S, CaptureDirectory
from skbcapd.output.interface import Snapshot, Statistics, Told
from skbcapd.output.pcapng_output import PROCESSES_REPEATED, PcapngOutput
from skbcapd.output.triggers import Limits as Limits  # noqa: PLC0414  it is part of what this offers
from skbcapd.output.triggers import triggers
from skbcapd.pcapng.blocks import walk
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface

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
        self._processes: dict[Process, None] = {}
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
        if len(self._processes) > PROCESSES_REPEATED:
            del self._processes[next(iter(self._processes))]

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
        self._processes = dict.fromkeys(output.processes)
        if since is not None:
            unused = len(self.interfaces) - sum(one.received > 0 for one in since)
            self._is_long = len(self.interfaces) > _INTERFACES_LISTED and 2 * unused > len(self.interfaces)

    def clear(self) -> None:
        """Interfaces begin anew."""
        self.interfaces.clear()
        self._is_long = False


class RotatingOutput:
    """An Output that writes file after file.

    Args:
        directory: where.
        limits: when a file is full.
        encode: as for PcapngOutput.
        compressor: compresses finished files.
        flush_s: how often what was written is forced to the disk; 0 is never.
        say: takes one line for the log.
        clock: seconds since 1970.
        on_demand: a file begins by `begin`, and none follows it when it has ended by `rest`.

    Raises:
        FileError: not even the first file can be made.
    """

    dumped = None
    wants_turn = False

    def __init__(
        self,
        directory: CaptureDirectory,
        limits: Limits,
        encode: str = "kernel",
        compressor: Compressor | None = None,
        flush_s: int = 0,
        say: Callable[[str], None] = lambda _line: None,
        clock: Callable[[], float] = time.time,
        *,
        on_demand: bool = False,
    ) -> None:
        self.labels = encode == "kernel"
        self.state = State.IDLE
        self._told = Told()
        self._prologue = Prologue()
        self._directory, self._encode, self._compressor = directory, encode, compressor
        self._say, self._clock, self._on_demand = say, clock, on_demand
        self._triggers = triggers(limits)
        self._counts_packets = any(trigger.counts_packets for trigger in self._triggers)
        self._flusher = Flusher(flush_s)
        self._file: CaptureFile | None = None  # in work
        self._output: PcapngOutput | None = None  # to it
        self._ending: list[CaptureFile] = []  # those that have no names yet
        self._failed: CaptureFile | None = None  # the last that the disk refused, as was told
        self._lost = self._handed = self._settled = 0  # of files that have their names, and while there was none
        self._lost_before = 0  # when writing stopped
        self._retry_at = 0.0
        self._packets = 0
        self._looked_at_room = 0  # size of the file then
        if compressor:  # files of a capture that ended before they were compressed
            for path in directory.plain():
                compressor.add(path)
        if not on_demand:
            self._begin()

    @property
    def lost(self) -> int:
        """Packets that the disk did not take."""
        return self._lost + sum(file.stream.lost for file in self._files)

    @property
    def handed(self) -> int:
        """See Output."""
        return self._handed + sum(file.stream.handed for file in self._files)

    @property
    def settled(self) -> int:
        """See Output."""
        return self._settled + sum(file.stream.settled for file in self._files)

    @property
    def is_busy(self) -> bool:
        """See Output; also while a file that has ended waits for the disk."""
        return self.handed - self.settled > QUEUE_MAX

    @property
    def _files(self) -> list[CaptureFile]:
        return self._ending if self._file is None else [*self._ending, self._file]

    @property
    def path(self) -> str:
        """The file in work; the last finished one while there is none; the directory where that is not there."""
        if self._file is not None and self._file.is_there:
            return str(self._file.working_path)
        last = self._directory.path / self._directory.last_good
        return str(last if self._directory.last_good and last.exists() else self._directory.path)

    @property
    def deleted(self) -> tuple[int, int]:
        """Files that were deleted as more was kept than shall be, and their bytes."""
        return self._directory.deleted_files, self._directory.deleted_bytes

    @property
    def wants_new_numbers(self) -> bool:
        """See Output."""
        is_writing = self.state is State.WRITING
        return (self._prologue.is_too_long and not self._on_demand) or (self._prologue.is_unused and is_writing)

    def restart_interfaces(self, statistics: Sequence[Statistics]) -> None:
        """Begin a file that lists only interfaces which have packets from now on."""
        self._end(statistics)
        self._prologue.clear()
        if self.state is State.WRITING:
            self._continue()

    def add_interface(self, interface: Interface) -> int:
        """The number holds for all files."""
        self._prologue.interfaces.append(interface)
        if self._output:
            self._output.add_interface(interface)
        return len(self._prologue.interfaces) - 1

    def add_process(self, process: Process) -> None:
        """As PcapngOutput."""
        if self._output:
            self._output.add_process(process)
        else:
            self._prologue.add_process(process)

    def write_packet(self, packet: Upcall | Cut, interface_id: int, stamp: Label, snapshot: Snapshot) -> None:
        """As PcapngOutput."""
        if self._is_full(packet.size, 1):
            self.rotate(snapshot)
        if not self._output:
            self._lost += 1
            return
        self._output.write_packet(packet, interface_id, stamp)
        self._packets += 1

    def write_blocks(self, view: memoryview, snapshot: Snapshot) -> None:
        """Ready blocks; where a file is full, from one block to the next."""
        if not self._counts_packets and not self._is_full(len(view), 0):
            self._put(view)
            return
        start = 0
        for at, _, size in walk(view):
            if self._is_full(at + size - start, 1):
                self._put(view[start:at])
                self.rotate(snapshot)
                start = at
            self._packets += 1
        self._put(view[start:])

    def flush(self, _snapshot: Snapshot) -> None:
        """Hand on what is held back, and see whether the disk took all."""
        if self._output and self._file:
            self._output.flush()
            if self._file.stream.error is not None:
                self._fail(self._file.stream.error.strerror or "error")
            elif self._file.stream.size > self._looked_at_room + _ROOM_EVERY:
                self._looked_at_room = self._file.stream.size
                self._directory.clean(_ROOM)

    def note_memory_pressure(self) -> None:
        """As PcapngOutput."""
        if self._output:
            self._output.note_memory_pressure()

    def tick(self, snapshot: Snapshot) -> None:
        """Once a second: is it time for the next file, is the file still there, may we write again?"""
        self.flush(snapshot)
        self.settle()
        if self._file is not None:
            if not self._file.is_there:
                self._fail("it was moved or removed")
            elif any(trigger.is_over(self._clock()) for trigger in self._triggers):
                self.rotate(snapshot)
            else:
                self._flusher.flush(self._file.descriptor, self._file.stream.size)
        elif self.state is State.WAITING and not self._on_demand:
            self._resume()
        compressed = self._compressor and self._compressor.tick(self._directory.descriptor)
        if compressed:
            self._directory.rename(*compressed)
        self._directory.tick()

    def rotate(self, snapshot: Snapshot) -> None:
        """Finish this file and begin the next."""
        if self.state is State.WRITING:
            self._end(snapshot())
            self._continue()

    def begin(self) -> bool:
        """Begin a file, where there is none; whether that was possible."""
        if self.state is not State.WRITING:
            self._continue()
        return self.state is State.WRITING

    def rest(self, snapshot: Snapshot) -> None:
        """Finish this file, and begin no other."""
        self._end(snapshot())
        self.state = State.IDLE

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """The capture has ended: statistics, and the last file's name."""
        self._end(statistics)
        self.state = State.ENDED

    def give_up(self) -> None:
        """Count what is not written yet as lost; the disk is not waited for."""
        for file in self._files:
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
        for file in self._ending:
            self._say(f"{file.working_path}: the disk has not taken it yet; it is finished at the next start")
        self._directory.clean()
        if self._compressor:
            self._compressor.close()
        self._directory.close()

    def settle(self, *, wait: bool = False) -> None:
        """See which files have got their names.

        Args:
            wait: for all that are finished.
        """
        for file, error in self._directory.finished(wait=wait):
            if file in self._ending:
                self._ending.remove(file)
            self._lost += file.stream.lost
            self._handed += file.stream.handed
            self._settled += file.stream.settled
            if error and file is not self._failed:
                self._say(str(error))
            elif not error and self._compressor:
                self._compressor.add(file.path)

    @property
    def is_settled(self) -> bool:
        """Whether all files that have ended have their names, and are counted."""
        return not self._ending

    def _is_full(self, size: int, packets: int) -> bool:
        if self._file is None:
            return False
        size += self._file.stream.size
        return any(trigger.is_full(size, self._packets + packets) for trigger in self._triggers)

    def _put(self, view: memoryview) -> None:
        if not len(view):
            return
        if self._output:
            self._output.write_blocks(view)
        else:
            self._lost += count_packets(view)

    def _begin(self) -> None:
        self._directory.clean()
        file = self._file = self._directory.new_file(is_dump=self._on_demand)
        self.state = State.WRITING
        self._output = PcapngOutput(file.stream, self._encode, file.stream.note_memory_pressure)
        self._prologue.write(self._output)
        self._directory.begin(file)  # also without a packet it is a capture file
        self._packets = self._looked_at_room = 0
        for trigger in self._triggers:
            trigger.begin(self._clock())

    def _continue(self) -> None:
        try:
            self._begin()
        except FileError as error:
            self._lost_before = self.lost
            self._wait(str(error))

    def _end(self, statistics: Sequence[Statistics]) -> None:
        """Statistics of this file's time, then the file's name; what went wrong is told."""
        if self._output:
            since = self._told.advance(statistics)
            self._output.finish(since)
            self._prologue.take(self._output, since)
        self._let_go()

    def _let_go(self) -> CaptureFile | None:
        """Have this file finished."""
        file, self._file, self._output = self._file, None, None
        if file is not None:
            self._ending.append(file)
            self._directory.finish(file)
        return file

    def _fail(self, why: str) -> None:
        """The file takes no more: finish what there is of it."""
        if self._output:
            self._prologue.take(self._output)
        before = self._lost + sum(file.stream.lost for file in self._ending)
        self._failed = self._let_go()
        if self._failed is not None:
            self._lost_before = before
            self._wait(f"{self._failed.working_path}: {why}")

    def _wait(self, what: str) -> None:
        self.state = State.WAITING
        self._say(f"{what}; packets are lost until files can be written again")
        self._retry_at = time.monotonic() + _RETRY_S

    def _resume(self) -> None:
        """Try to write again; not before it is known what the last file has lost."""
        if time.monotonic() < self._retry_at or self._failed in self._ending:
            return
        self._retry_at = time.monotonic() + _RETRY_S
        if self._directory.is_there:
            self._directory.clean(_RESUME_ROOM)
            if not self._directory.has_room(_RESUME_ROOM):
                return
        try:
            self._begin()
        except FileError:
            return
        self._say(f"{self.path}: writing again; {self.lost - self._lost_before} packets were lost")
