"""A series of files: when a file ends, how the next one begins, and what happens while nothing can
be written.

In: reasons to begin a new file. Out: files of a CaptureDirectory, one at a time.

The rule: a disk error never stops a capture. Packets that cannot be written are counted, the error
is logged once, and writing continues by itself when it is possible again. All files list all
interfaces in the same order, because the labels contain their numbers.

    state     what happens             next state
    IDLE      begin                    WRITING if a file can be created in time
    WRITING   a trigger, rotate        WRITING, LATE or WAITING
              restart_interfaces       the same
              rest                     IDLE
              a write fails            WAITING
              the file is moved or deleted  WAITING
    LATE      the next file is created WRITING; the held blocks are written first
              it cannot be created     WAITING
    WAITING   a second later           WRITING if possible; not on demand
              begin, rest              as for IDLE
    any       finish                   ENDED

LATE: the disk takes long to create the next file. Blocks are held, and the output is busy, so packets
wait in the shared memory. WAITING: a write has failed, or no file can be created: packets are dropped.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence

from skbcapd.attribution.processes import Process
from skbcapd.durations import Durations
from skbcapd.errors import FileError
from skbcapd.lru import Bounded
from skbcapd.output.block_writer import STOP_S, CaptureFile
from skbcapd.output.blocks import count_packets
from skbcapd.output.compressor import Compressor
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.interface import FILE_S, Snapshot, Statistics, StatisticsDelta
from skbcapd.output.key_log import KeyLogs
from skbcapd.output.pcapng_output import PROCESSES_REPEATED, PcapngOutput
from skbcapd.output.secrets import OVERLAP_S, Secrets, secrets_for
from skbcapd.output.triggers import Limits, Trigger, triggers
from skbcapd.pcapng.interface import Interface
from skbcapd.worker import Worker, wait_until

_LOG = logging.getLogger(__name__)
_RESUME_ROOM = 4 << 20  # free bytes before writing continues on a full disk; with less it would be full again at once
# free bytes in addition to files.keep_free while packets arrive, so that older files are deleted in
# time
_ROOM = 1 << 25
_ROOM_EVERY = 1 << 24  # bytes written between two checks of free space
_RETRY_S = 1.0
_EARLY_S = 0.5  # ticks are not exactly seconds apart
_FIRST_S = 5.0  # for the first file: nothing is captured yet
PATHS_MAX = 1024
_INTERFACES_MAX = 4096  # with so many interfaces the next file begins; each file lists them all
_INTERFACES_LISTED = 64  # with more interfaces, most of them unused, the list starts again


class State(enum.Enum):
    """The state of a FileSeries; see above."""

    IDLE = "no file is wanted"
    WRITING = "packets go to a file"
    LATE = "the disk has not created the next file yet"
    WAITING = "the disk takes no packets"
    ENDED = "the capture is over"


class Flusher:
    """Calls fdatasync for a file periodically, in a thread, because it can take long.

    Args:
        every_s: interval in seconds; 0: never.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next_s = 0.0
        self._size = -1
        self._is_asked = False
        self._worker = Worker("flusher")
        self.durations = Durations()

    def flush(self, file: CaptureFile) -> None:
        """Start when what was passed on is written, if it is time, the file has grown, and the last call has ended."""
        now, size = time.monotonic(), file.stream.size
        is_due = self._every_s and now >= self._next_s and size != self._size
        if not is_due or self._is_asked or not self._worker.start():
            return
        with contextlib.suppress(OSError):  # no descriptor is left: next time
            copy = os.dup(file.descriptor)
            self._next_s, self._size, self._is_asked = now + self._every_s - _EARLY_S, size, True
            file.stream.do(lambda: self._worker.do(lambda: self._force(copy)))

    def _force(self, descriptor: int) -> None:
        begun = time.monotonic()
        with contextlib.suppress(OSError):  # a later write reports the error
            os.fdatasync(descriptor)
        self._is_asked = False
        self.durations.add(time.monotonic() - begun)
        with contextlib.suppress(OSError):
            os.close(descriptor)


class Prologue:
    """The beginning of each file: all interfaces, and the last described processes."""

    def __init__(self) -> None:
        self.interfaces: list[Interface] = []
        self._processes: Bounded[Process, None] = Bounded(PROCESSES_REPEATED)
        self._is_long = False

    @property
    def is_too_long(self) -> bool:
        """Whether there are too many interfaces for a file, used or not."""
        return len(self.interfaces) >= _INTERFACES_MAX

    @property
    def is_unused(self) -> bool:
        """Whether there are many interfaces, and most of them had no packets in the last file."""
        return self._is_long

    def add_process(self, process: Process) -> None:
        """Add a process while there is no file."""
        self._processes[process] = None

    def write(self, output: PcapngOutput) -> None:
        """Write the beginning of a file."""
        for interface in self.interfaces:
            output.add_interface(interface)
        for process in self._processes:
            output.add_process(process)

    def take(self, output: PcapngOutput, since: Sequence[Statistics] | None = None) -> None:
        """A file ends: keep what the next one begins with.

        Args:
            output: the file.
            since: statistics of the file; None if they are not known.
        """
        self._processes = output.processes
        if since is not None:
            unused = len(self.interfaces) - sum(one.received > 0 for one in since)
            self._is_long = len(self.interfaces) > _INTERFACES_LISTED and 2 * unused > len(self.interfaces)

    def clear(self) -> None:
        """Discard all interfaces."""
        self.interfaces.clear()
        self._is_long = False


class Work:
    """The current file: its section, and its size.

    Args:
        file: the new file.
        encode: as for PcapngOutput.
        prologue: its beginning.
        reasons: triggers for the next file.
        now: seconds since 1970.
        secrets: as for PcapngOutput.
    """

    def __init__(
        self,
        file: CaptureFile,
        encode: str,
        prologue: Prologue,
        reasons: Sequence[Trigger],
        now: float,
        secrets: Callable[[], Secrets] | None,
    ) -> None:
        self.file = file
        self.output = PcapngOutput(file.stream, encode, secrets)
        self.packets = 0
        self._triggers = reasons
        self._room_seen_at = 0  # size of the file at the last check
        prologue.write(self.output)
        for trigger in reasons:
            trigger.begin(now)

    def is_full(self, size: int, packets: int) -> bool:
        """Whether the file is too small for so many more bytes and packets."""
        size += self.file.stream.size
        return any(trigger.is_full(size, self.packets + packets) for trigger in self._triggers)

    def is_over(self, now: float) -> bool:
        """Whether the file must end now, whatever its content."""
        return any(trigger.is_over(now) for trigger in self._triggers)

    def is_room_to_be_seen_to(self) -> bool:
        """Whether free space must be checked again."""
        if self.file.stream.size < self._room_seen_at + _ROOM_EVERY:
            return False
        self._room_seen_at = self.file.stream.size
        return True


class Held:
    """Blocks that arrive while the next file does not exist yet: a Sink.

    Args:
        encode: as for PcapngOutput.
    """

    def __init__(self, encode: str) -> None:
        self.blocks = bytearray()
        self.output = PcapngOutput(self, encode)
        self.blocks.clear()  # without the section header: the file has its own

    def write(self, blocks: bytes | memoryview) -> None:
        """Write one or more complete blocks."""
        self.blocks += blocks

    def flush(self) -> None:
        """Nothing is buffered."""


class Ledger:
    """Counts what was written to files, and what was dropped."""

    def __init__(self) -> None:
        self.dropped = 0  # packets without a file
        self.ending: list[CaptureFile] = []  # files that are not renamed yet
        self.work: Work | None = None
        self.held: Held | None = None
        self._skew = 0  # added to positions: held bytes, minus the bytes before them in their files
        self._lost = self._accepted = self._completed = 0  # of renamed files

    @property
    def files(self) -> list[CaptureFile]:
        """Files whose counters still change."""
        return self.ending if self.work is None else [*self.ending, self.work.file]

    @property
    def lost(self) -> int:
        """Packets that are in no file."""
        return self.dropped + self._lost + sum(file.stream.lost for file in self.files)

    @property
    def accepted(self) -> int:
        """See Output."""
        held = len(self.held.blocks) if self.held else 0
        return self._accepted + self._skew + held + sum(file.stream.accepted for file in self.files)

    @property
    def completed(self) -> int:
        """See Output."""
        return self._completed + self._skew + sum(file.stream.completed for file in self.files)

    @property
    def borrowed(self) -> int:
        """Bytes of lent memory that wait for the disk."""
        return sum(file.stream.borrowed for file in self.files)

    @property
    def lost_before(self) -> int:
        """Packets that are in no file, without those of the current file."""
        return self.dropped + self._lost + sum(file.stream.lost for file in self.ending)

    def release(self) -> bytearray:
        """The file exists: returns the blocks that were held for it."""
        held, self.held = self.held, None
        if held is None or self.work is None:
            return bytearray()
        self._skew -= self.work.file.stream.accepted
        return held.blocks

    def drop_held(self) -> None:
        """There will be no file: count the held packets as dropped."""
        held, self.held = self.held, None
        if held is not None:
            self.dropped += count_packets(held.blocks)
            self._skew += len(held.blocks)

    def end(self) -> None:
        """The current file ends; it is not renamed yet."""
        if self.work is not None:
            self.ending.append(self.work.file)
        self.work = None

    def finish(self, file: CaptureFile) -> None:
        """A file was renamed: its counters do not change any more."""
        if file in self.ending:
            self.ending.remove(file)
        self._lost += file.stream.lost
        self._accepted += file.stream.accepted
        self._completed += file.stream.completed


class Outage:
    """A time in which nothing can be written."""

    def __init__(self) -> None:
        self.file: CaptureFile | None = None  # the file with the error that was logged
        self._lost_before = 0
        self.retry_at = 0.0

    def begin(self, what: str, lost_before: int, file: CaptureFile | None = None) -> None:
        """Log the error; `lost_before` is the number of dropped packets before it."""
        self.file, self._lost_before = file, lost_before
        _LOG.warning("%s; packets are dropped until files can be written again", what)
        self.retry_at = time.monotonic() + _RETRY_S

    def is_to_be_tried(self) -> bool:
        """Whether it is time for another try: once a second."""
        if time.monotonic() < self.retry_at:
            return False
        self.retry_at = time.monotonic() + _RETRY_S
        return True

    def end(self, path: str, lost: int) -> None:
        """Log the end, with the number of packets dropped since the error."""
        _LOG.warning("%s: writing again; %d packets were dropped", path, lost - self._lost_before)


class FileSeries:
    """Writes file after file; see the states above.

    Args:
        directory: the directory of the files.
        limits: limits of one file.
        encode: as for PcapngOutput.
        compressor: compresses finished files.
        flush_s: interval of fdatasync in seconds; 0: never.
        clock: seconds since 1970.
        on_demand: a file begins only by `begin`, and ends by `rest`.
        key_logs: their TLS secrets are written to each file.

    Raises:
        FileError: the first file cannot be created.
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
        key_logs: KeyLogs | None = None,
    ) -> None:
        self.labels = encode == "kernel"
        self.state = State.IDLE
        self._statistics, self._prologue = StatisticsDelta(), Prologue()
        self._directory, self._encode, self._compressor = directory, encode, compressor
        self._clock, self._on_demand, self._key_logs = clock, on_demand, key_logs
        self._triggers = triggers(limits)
        self._counts_packets = any(trigger.counts_packets for trigger in self._triggers)
        self._flusher, self._rotations, self._ended_at = Flusher(flush_s), Durations(), 0.0
        self.latency_s = min(FILE_S, flush_s or FILE_S)
        self._ledger, self._outage = Ledger(), Outage()
        if compressor:  # files of an earlier capture
            for path in directory.unprocessed(compressor):
                compressor.add(path)
        self._is_late_logged = False
        self.paths: deque[str] = deque(maxlen=PATHS_MAX)
        """Names that the files since the last `begin` have when they are finished; the last ones of many."""
        if not on_demand:
            self._directory.clean()
            try:
                self._begin(timeout_s=_FIRST_S)
            except TimeoutError:
                raise FileError(f"{directory.path}: the disk does not create a file in time") from None

    @property
    def _work(self) -> Work | None:
        return self._ledger.work

    @property
    def path(self) -> str:
        """The path of the current file; without one, of the last finished file; without that, of the directory."""
        if self._work is not None and not self._work.file.is_gone:
            return str(self._work.file.working_path)
        return str(self._directory.last_good or self._directory.path)

    @property
    def durations(self) -> dict[str, Durations]:
        """Durations from the end of a file until the next one exists, and those of fdatasync."""
        return {"rotation": self._rotations, "flush": self._flusher.durations}

    @property
    def counts(self) -> dict[str, int]:
        """Finished files and their disk; what retention has deleted; indexes that were written, and
        files that have none or one that ends early.
        """
        retention, compressor = self._directory.retention, self._compressor
        return {
            **retention.usage._asdict(),
            "deleted_files": retention.deleted_files,
            "deleted_bytes": retention.deleted_bytes,
            "indexes": compressor.indexed if compressor else 0,
            "index_errors": compressor.index_errors if compressor else 0,
        }

    def rotate(self, snapshot: Snapshot) -> None:
        """Finish this file and begin the next one."""
        if self.state is State.WRITING:
            self._end(snapshot())
            self._continue()

    def begin(self) -> None:
        """Begin a file if there is none.

        Raises:
            FileError: it cannot be created, or there is not enough free space.
            TimeoutError: the disk is too slow.
        """
        if self.state is not State.WRITING:
            self._directory.clean(_RESUME_ROOM)
            self.paths.clear()
            self._begin(room=0)

    def rest(self, snapshot: Snapshot) -> None:
        """Finish this file, and begin no other one."""
        self._end(snapshot())
        self.state = State.IDLE

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """The capture has ended: write the statistics, and rename the last file. Waits for a late file."""

        def is_there() -> bool:
            self.flush(lambda: statistics)
            return self.state is not State.LATE

        wait_until(is_there, STOP_S / 2)
        self._end(statistics)
        self.state = State.ENDED

    def give_up(self) -> None:
        """Write nothing more: count all packets that are not written as dropped."""
        for file in self._ledger.files:
            file.stream.disk.is_given_up = True

    def close(self) -> None:
        """Close the directory; a file without statistics is finished without them.

        Packets that are not written within STOP_S are counted as dropped.
        """
        self._end([])
        self.state = State.ENDED
        if not self._directory.wait(STOP_S):
            self.give_up()
            self._directory.wait(STOP_S / 2)
        self.collect_finished()
        for file in self._ledger.ending:
            _LOG.warning(
                "%s: the disk has not written it yet; it will be finished at the next start", file.working_path
            )
            file.stream.abandon()
        self._directory.close(self._compressor, timeout_s=0)

    def collect_finished(self, *, wait: bool = False) -> None:
        """Process the files that were renamed.

        Args:
            wait: wait for all finished files.
        """
        for file, error in self._directory.finished(wait=wait):
            self._ledger.finish(file)
            if error and file is not self._outage.file:
                _LOG.warning("%s", error)
            elif not error and self._compressor:
                self._compressor.add(file.path)

    @property
    def is_complete(self) -> bool:
        """Whether all finished files are renamed and counted."""
        return not self._ledger.ending

    def tick(self, snapshot: Snapshot) -> bool:
        """Check for triggers, for the file, and whether writing is possible again. Returns whether this must be called
        again in a second.
        """
        self.flush(snapshot)
        self.collect_finished()
        self._directory.tick(self._compressor)
        if self._work:
            if self._work.file.is_gone:
                self._fail("it was moved or removed")
            elif self._work.is_over(self._clock()):
                self.rotate(snapshot)
            else:
                self._flusher.flush(self._work.file)
        elif self.state is State.WAITING and not self._on_demand:
            self._resume()
        elif self.state is State.LATE and not self._is_late_logged:
            self._is_late_logged = True
            _LOG.warning("%s: the disk is slow to create the next file; packets wait in memory", self._directory.path)
        is_changing = self._work.is_over(self._clock() + FILE_S) if self._work else self.state is not State.IDLE
        return is_changing or self.latency_s < FILE_S or self._directory.is_at_work(self._compressor)

    def flush(self, _snapshot: Snapshot) -> None:
        """Write the buffered blocks, and check for errors."""
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

    def _begin(self, room: int | None = None, timeout_s: float | None = None) -> None:
        file = self._directory.new_file(is_dump=self._on_demand, room=room, timeout_s=timeout_s)
        # The packets of a dump can be as old as the oldest lines.
        secrets = secrets_for(file, self._key_logs, float("inf") if self._on_demand else OVERLAP_S)
        self._ledger.work = Work(file, self._encode, self._prologue, self._triggers, self._clock(), secrets)
        self.paths.append(str(file.path))
        self._directory.begin(file)  # a file without packets is a capture file, too
        self.state = State.WRITING

    def _continue(self) -> None:
        """Begin the next file, or continue with one that was late."""
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
            self._rotations.add(time.monotonic() - self._ended_at)
            self._is_late_logged = False

    def _end(self, statistics: Sequence[Statistics]) -> None:
        """Write the statistics of this file, and finish it."""
        self._ledger.drop_held()
        self._ended_at = time.monotonic()
        work = self._work
        if work:
            since = self._statistics.advance(statistics)
            work.output.finish(since)
            self._prologue.take(work.output, since)
            self._ledger.end()
            self._directory.finish(work.file)

    def _fail(self, why: str) -> None:
        """A write has failed: finish the file as it is."""
        work = self._work
        if work:
            self.state = State.WAITING
            self._outage.begin(f"{work.file.working_path}: {why}", self._ledger.lost_before, work.file)
            self._prologue.take(work.output)
            self._ledger.end()
            self._directory.finish(work.file)

    def _resume(self) -> None:
        """Try to write again, but only after the drops of the last file are known."""
        if self._outage.file in self._ledger.ending or not self._outage.is_to_be_tried():
            return
        self._directory.clean(_RESUME_ROOM)
        try:
            self._begin(room=_RESUME_ROOM)
        except (FileError, TimeoutError):
            return
        self._outage.end(self.path, self._ledger.lost)
