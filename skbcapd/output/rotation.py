"""One capture, many files: each begins anew by size, time, number of packets or on request, and stands for itself.

In: packets and ready blocks. Out: files of a CaptureDirectory, one at a time.

The rule: a capture never stops for its disk. What cannot be written is counted and told once, and writing goes on by
itself when it can. Every file lists all interfaces in the same order, as the kernel program stamps their numbers.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skbcapd.attribution.processes import Process
from skbcapd.errors import FileError
from skbcapd.kernel.segments import Cut, Upcall, walk
from skbcapd.output.block_writer import CaptureFile, count_packets
from skbcapd.output.compressor import Compressor
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.interface import Statistics
from skbcapd.output.pcapng_output import PROCESSES_REPEATED, PcapngOutput
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface

_RESUME_ROOM = 4 << 20  # bytes free before a full disk is written to again: less is full again at once
_RETRY_S = 1.0
_INTERFACES_MAX = 4096  # as many, and the next file begins: each file lists them all
_INTERFACES_LISTED = 64  # more than these, and most of them unused: the list begins anew


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


class Flusher:
    """Forces a file to the disk now and then, in a thread of its own: it may take long.

    Args:
        every_s: seconds.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next_s = 0.0
        self._size = -1
        self._thread: threading.Thread | None = None

    def flush(self, descriptor: int, size: int) -> None:
        """Begin, if it is time, the file has grown, and the last one is over."""
        now = time.monotonic()
        if now < self._next_s or size == self._size or (self._thread and self._thread.is_alive()):
            return
        self._next_s, self._size = now + self._every_s, size
        self._thread = threading.Thread(target=self._force, args=(os.dup(descriptor),), daemon=True)
        self._thread.start()

    @staticmethod
    def _force(descriptor: int) -> None:
        with contextlib.suppress(OSError):  # a write will tell
            os.fdatasync(descriptor)
        os.close(descriptor)


class RotatingOutput:
    """An Output that writes file after file.

    Args:
        directory: where.
        limits: when a file is full.
        encode: as for PcapngOutput.
        compressor: packs finished files.
        flush_s: how often what was written is forced to the disk; 0 is never.
        say: takes one line for the log.
        clock: seconds since 1970.
        on_demand: a file begins by `begin`, and none follows it when it has ended by `rest`.

    Raises:
        FileError: not even the first file can be made.
    """

    dumped = None

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
        self.statistics: Callable[[], list[Statistics]] = list  # of the capture, once there is one
        self.renumber: Callable[[], None] = lambda: None
        self._told: dict[int, Statistics] = {}  # of the files before
        self._is_list_long = False
        self._directory, self._limits, self._encode = directory, limits, encode
        self._compressor, self._say, self._clock = compressor, say, clock
        self._flusher = Flusher(flush_s) if flush_s else None
        self._interfaces: list[Interface] = []
        self._processes: dict[Process, None] = {}
        self._lost = 0  # of files that are closed, and while there was none
        self._lost_before = 0  # when writing stopped
        self._retry_at = 0.0
        self._packets = 0
        self._next_s = 0.0
        self._file: CaptureFile
        self._failed: CaptureFile | None = None  # the last that the disk refused, as was told
        self._output: PcapngOutput | None = None
        self._on_demand = on_demand
        self._path = directory.path
        if compressor:  # files of a capture that ended before they were packed
            for path in directory.plain():
                compressor.add(path)
        if not on_demand:
            self._begin()

    @property
    def lost(self) -> int:
        """Packets that the disk did not take."""
        return self._lost + (self._file.stream.lost if self._output else 0)

    @property
    def path(self) -> str:
        """The file in work; the last one while there is none."""
        return str(self._path)

    def add_interface(self, interface: Interface) -> int:
        """The number holds for all files."""
        self._interfaces.append(interface)
        if self._output:
            self._output.add_interface(interface)
        return len(self._interfaces) - 1

    def add_process(self, process: Process) -> None:
        """As PcapngOutput."""
        if self._output:
            self._output.add_process(process)
        else:
            self._processes[process] = None
            if len(self._processes) > PROCESSES_REPEATED:
                del self._processes[next(iter(self._processes))]

    def write_packet(self, packet: Upcall | Cut, interface_id: int, stamp: Label) -> None:
        """As PcapngOutput."""
        if self._limits.packets and self._packets >= self._limits.packets:
            self.rotate()
        if self._limits.size and self._output and self._file.stream.size + packet.size > self._limits.size:
            self.rotate()
        if not self._output:
            self._lost += 1
            return
        self._output.write_packet(packet, interface_id, stamp)
        self._packets += 1

    def write_blocks(self, view: memoryview) -> None:
        """Ready blocks; where a file is full, from one block to the next."""
        limits = self._limits
        if not limits.packets and not (limits.size and self._output and self._size + len(view) > limits.size):
            self._put(view)
            return
        start = 0
        for at, _, size in walk(view):
            is_full = limits.size and self._size + at + size - start > limits.size
            if is_full or (limits.packets and self._packets >= limits.packets):
                self._put(view[start:at])
                self.rotate()
                start = at
            self._packets += 1
        self._put(view[start:])

    def flush(self) -> None:
        """Hand on what is held back, and see whether the disk took all."""
        if self._output:
            self._output.flush()
            if self._file.stream.error is not None:
                self._fail(self._file.stream.error.strerror or "error")

    def hurry(self) -> None:
        """As PcapngOutput."""
        if self._output:
            self._output.hurry()

    def tick(self) -> None:
        """Once a second: is it time for the next file, is the file still there, may we write again?"""
        now = self._clock()
        if not self._output:
            if not self._on_demand:
                self._resume()
        elif not self._file.is_there:
            self._fail("it was moved or removed")
        elif self._next_s and not self._next_s - self._limits.every_s - 1 <= now < self._next_s:
            self.rotate()  # also when the clock was set back
        is_long = len(self._interfaces) >= _INTERFACES_MAX and not self._on_demand
        if is_long or (self._is_list_long and self._output):
            self._shorten()
        self.settle()
        packed = self._compressor and self._compressor.tick()
        if packed:
            self._directory.rename(*packed)
        if self._flusher and self._output:
            self._flusher.flush(self._file.descriptor, self._size)
        self._directory.clean()

    def rotate(self) -> None:
        """Finish this file and begin the next."""
        if self._output:
            self._end(self.statistics())
            self._continue()

    def begin(self) -> bool:
        """Begin a file, where there is none; whether that was possible."""
        if not self._output:
            self._continue()
        return self._output is not None

    def rest(self) -> None:
        """Finish this file, and begin no other."""
        if self._output:
            self._end(self.statistics())

    def _shorten(self) -> None:
        """Begin a file that lists only interfaces which have packets from now on."""
        statistics = self.statistics()
        self.renumber()
        self._interfaces.clear()
        self._is_list_long = False
        if self._output:
            self._end(statistics)
            self._continue()

    def _continue(self) -> None:
        try:
            self._begin()
        except FileError as error:
            self._lost_before = self._lost
            self._tell(str(error))

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """The capture has ended: statistics, and the last file's name."""
        if self._output:
            self._end(statistics)

    def close(self) -> None:
        """Let go of the directory; a file without statistics is finished as it is."""
        if self._output:
            self._end([])
        self.settle(wait=True)
        self._directory.clean()
        if self._compressor:
            self._compressor.close()
        self._directory.close()

    @property
    def _size(self) -> int:
        return self._file.stream.size

    def _put(self, view: memoryview) -> None:
        if not len(view):
            return
        if self._output:
            self._output.write_blocks(view)
        else:
            self._lost += count_packets(view)

    def _begin(self) -> None:
        self._directory.clean()
        self._file = self._directory.new_file()
        self._path = self._file.working_path
        self._output = PcapngOutput(self._file.stream, self._encode, self._file.stream.hurry)
        for interface in self._interfaces:
            self._output.add_interface(interface)
        for process in self._processes:
            self._output.add_process(process)
        self._output.flush()  # also without a packet it is a capture file
        self._packets = 0
        every = self._limits.every_s
        self._next_s = (self._clock() // every + 1) * every if every else 0.0

    def _end(self, statistics: Sequence[Statistics]) -> None:
        """Statistics of this file's time, then the file's name; what went wrong is told."""
        output, self._output = self._output, None
        if output is None:
            return
        since = [one - self._told.get(one.device, Statistics(one.interface_id, one.device)) for one in statistics]
        self._told = {one.device: one for one in statistics}
        unused = len(self._interfaces) - sum(one.received > 0 for one in since)
        self._is_list_long = len(self._interfaces) > _INTERFACES_LISTED and 2 * unused > len(self._interfaces)
        output.finish(since)
        self._processes = dict.fromkeys(output.processes)
        self._directory.finish(self._file)
        self._path = self._file.path
        self._lost += self._file.stream.lost

    def settle(self, *, wait: bool = False) -> None:
        """See which files have got their names.

        Args:
            wait: for all that are finished.
        """
        for file, error in self._directory.finished(wait=wait):
            if error and file is not self._failed:
                self._say(str(error))
            elif not error and self._compressor:
                self._compressor.add(file.path)

    def _fail(self, why: str) -> None:
        """The file takes no more: finish what there is of it."""
        output, self._output = self._output, None
        if output is None:
            return
        self._lost_before = self._lost
        self._processes = dict.fromkeys(output.processes)
        self._failed = self._file
        self._directory.finish(self._file)
        self._lost += self._file.stream.lost
        self._tell(f"{self._file.working_path}: {why}")

    def _tell(self, what: str) -> None:
        self._say(f"{what}; packets are lost until files can be written again")
        self._retry_at = time.monotonic() + _RETRY_S

    def _resume(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        self._retry_at = time.monotonic() + _RETRY_S
        if self._directory.is_there and not self._directory.has_room(_RESUME_ROOM):
            return
        try:
            self._begin()
        except FileError:
            return
        self._say(f"{self._file.working_path}: writing again; {self._lost - self._lost_before} packets were lost")
