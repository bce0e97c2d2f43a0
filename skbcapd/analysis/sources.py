"""Reads several capture files as one: finds the files, leaves out those without packets of the
selected time, and merges the others.

In: paths of files and directories, and selectors. Out: packets in the order of time, if each file
is in order.

The rules: memory and open files are bounded, however many files there are: a file is opened when
the other files have reached the time of its first packet. A file is left out only if it certainly
has no packet of the selected time: the next file of its series began before, or its own statistics
ended before, or its first packet is later. An error in one file does not end the others.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import stat
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeAlias

from skbcapd.analysis.selectors import Selection
from skbcapd.errors import FileError, UsageError
from skbcapd.output.naming import COMPRESSED
from skbcapd.pcapng.blocks import ISB_ENDTIME, STATISTICS
from skbcapd.pcapng.flows import Counted
from skbcapd.pcapng.reader import CountingReader, Packet, Reader, Section, TruncatedError, walk_options
from skbcapd.pcapng.source import STDIN
from skbcapd.text_safety import escaped_bytes

Timed: TypeAlias = tuple[int, Packet]
"""The time of a packet in nanoseconds since 1970 UTC, and the packet."""

_OPEN_MAX = 128
_LATE_NS = 10**9  # a packet can be older by this than the first one of its file
# a packet can be older by this than the name of the next file, because it waited for the disk
_NAMED_LATE_NS = 60 * 10**9
_ENDINGS = (".pcapng", ".pcap", ".cap")
_PART = ".part"
_TAIL = 1 << 16  # bytes at the end of a file that can have statistics
_TIME = re.compile(r"(\d{8}T\d{6}\.\d{3})Z")
_NUMBER = re.compile(r"\d{6,13}")


def expand(paths: Iterable[Path]) -> list[Path]:
    """The capture files of a command line; a directory means all captures in it.

    A compressed or unfinished file is left out if the uncompressed or finished file exists.

    Raises:
        FileError: a directory cannot be read, or has no captures.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path == STDIN or not path.is_dir():
            found[path] = None
            continue
        try:
            with os.scandir(path) as entries:
                names = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        except OSError as error:
            raise FileError(f"{_said(path)}: {error.strerror}; expected a directory that can be read") from None
        plain = {plain_name(name): name for name in sorted(names, key=len, reverse=True) if _is_capture(name)}
        if not plain:
            raise FileError(f"{_said(path)}: no capture files; expected files with names such as *.pcapng or *.pcap.gz")
        found |= dict.fromkeys(path / name for name in sorted(plain.values()))
    return list(found)


def _is_capture(name: str) -> bool:
    return (
        not name.startswith(".")
        and plain_name(name).endswith(_ENDINGS)
        and not name.endswith(
            tuple(ending + _PART for ending in COMPRESSED)  # a compressor writes it; the uncompressed file still exists
        )
    )


def plain_name(name: str) -> str:
    """A name without the endings of compressed and incomplete files."""
    for ending in (_PART, *COMPRESSED):
        name = name.removesuffix(ending)
    return name


def _said(path: Path) -> str:
    return escaped_bytes(os.fsencode(path))


@dataclass(eq=False, slots=True)
class _File:
    """A file that is not open yet; its first packet is from this time."""

    path: Path
    first_ns: int


class _Open(NamedTuple):
    """A file that is being read; the next packet is first, for the order in a heap."""

    time_ns: int
    number: int
    packet: Packet
    others: Iterator[Packet]
    reader: Reader


class Sources:
    """Reads capture files, once.

    Args:
        paths: paths of files, or STDIN.
        selection: which packets are selected.
        progress: called for each file; returns a function that takes the number of bytes read.
        has_secrets: as for Reader.
        ended: as for Reader; only for `unordered`.
        counted: as for Reader; only for `unordered`, and without selectors: otherwise all packets are returned.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        selection: Selection,
        progress: Callable[[], Callable[[int], None]] = lambda: lambda _read: None,
        *,
        has_secrets: bool = False,
        ended: Callable[[Section], None] | None = None,
        counted: Counted | None = None,
    ) -> None:
        self._paths = paths
        self._counted = counted if selection.is_all else None
        self._has_secrets, self._ended = has_secrets, ended
        self._selection = selection
        self._progress = progress
        self._waiting: deque[_File] = deque()
        self._open: set[Reader] = set()
        self._numbers = 0
        self.wrong: list[FileError] = []
        """Errors of files, in the order in which they were found."""
        self.unread = 0
        """Files that can have no packet of the selected time."""

    def unordered(self) -> Iterator[Timed]:
        """The selected packets, one file after the other; see `packets`."""
        for path in self._of_this_time():
            try:
                with Reader(_now(path), self._progress(), ended=self._ended, counted=self._counted) as reader:
                    yield from self._plain(reader)
            except FileError as error:
                self._note(path, error)

    def count(self) -> int:
        """The number of the selected packets."""
        found, kind = 0, CountingReader if self._selection.is_all else Reader
        for path in self._of_this_time():
            try:
                with kind(_now(path), self._progress()) as reader:
                    try:
                        for _ in self._selection.chosen(reader.packets()):
                            found += 1
                    finally:
                        found += reader.passed_over if isinstance(reader, CountingReader) else 0
            except FileError as error:
                self._note(path, error)
        return found

    def _plain(self, reader: Reader) -> Iterator[Timed]:
        """The selected packets of a file, in its order."""
        current, is_plain = None, False
        for packet in self._selection.chosen(reader.packets()):
            if packet[0] is not current:
                current = packet[0]
                is_plain = current.is_plain
            yield packet[2] if is_plain else current.time_ns(packet[2]), packet

    def packets(self) -> Generator[Timed, None, None]:
        """The selected packets. An error in a file is added to `wrong`; the packets before the
        error are returned.

        Raises:
            FileError: too many files have packets of the same time.
        """
        self._waiting = deque(self._in_order())
        heap: list[_Open] = []
        try:
            while heap or self._waiting:
                self._open_due(heap)
                if heap:
                    yield from self._run(heap)
        finally:
            for reader in list(self._open):
                self._close(reader)

    def _in_order(self) -> list[_File]:
        """The files that can have selected packets, in the order of their first packets."""
        span = self._selection.span
        paths = self._of_this_time()
        if len(paths) == 1 or STDIN in paths:
            if len(paths) > 1:
                raise UsageError("- is standard input; expected no other files beside it")
            return [_File(path, 0) for path in paths]
        found = []
        for path in paths:
            first_ns = self._first_ns(path)
            if first_ns is None:
                continue
            if span.end_ns is not None and first_ns - _LATE_NS >= span.end_ns:
                self.unread += 1
                continue
            found.append(_File(path, first_ns))
        return sorted(found, key=lambda file: file.first_ns)

    def _of_this_time(self) -> list[Path]:
        """The files that did not end before the selected time."""
        paths = list(self._paths)
        begin_ns = self._selection.span.begin_ns
        if begin_ns is not None:
            ends = _ends_by_name(paths)
            paths = [
                path for path in paths if not (ends.get(path, begin_ns) < begin_ns or _ended_before(path, begin_ns))
            ]
        self.unread = len(self._paths) - len(paths)
        return paths

    def _first_ns(self, path: Path) -> int | None:
        """The time of the first packet; None if there is none."""
        try:
            with Reader(_now(path)) as reader:
                for interface, _, time, *_ in reader.packets():
                    return interface.time_ns(time)
        except FileError as error:
            self._note(path, error)
        return None

    def _open_due(self, heap: list[_Open]) -> None:
        """Open the files whose packets can be before the next one."""
        while self._waiting and (not heap or self._waiting[0].first_ns - _LATE_NS <= heap[0].time_ns):
            path = self._waiting.popleft().path
            if len(heap) >= _OPEN_MAX:
                raise FileError(
                    f"more than {_OPEN_MAX} files have packets of the same time; expected fewer",
                    "extract some of them first, then from what comes out",
                )
            try:
                reader = Reader(_now(path), self._progress(), has_secrets=self._has_secrets)
            except FileError as error:
                self._note(path, error)
                continue
            self._open.add(reader)
            self._numbers += 1
            others = self._selection.chosen(self._read(path, reader))
            for packet in others:
                heapq.heappush(heap, _Open(packet[0].time_ns(packet[2]), self._numbers, packet, others, reader))
                break
            else:
                self._close(reader)

    def _read(self, path: Path, reader: Reader) -> Iterator[Packet]:
        """All packets of a file that can be read."""
        try:
            yield from reader.packets()
        except FileError as error:
            self._note(path, error)

    def _note(self, path: Path, error: FileError) -> None:
        """Store an error; a file that is being written can end anywhere."""
        if not (isinstance(error, TruncatedError) and path.name.endswith(_PART)):
            self.wrong.append(error)

    def _close(self, reader: Reader) -> None:
        self._open.discard(reader)
        reader.__exit__()

    def _run(self, heap: list[_Open]) -> Iterator[Timed]:
        """Packets of the first file, as long as no other file has an older packet."""
        first = heapq.heappop(heap)
        until_ns = min(
            heap[0].time_ns if heap else _NEVER_NS,
            self._waiting[0].first_ns - _LATE_NS if self._waiting else _NEVER_NS,
        )
        yield first.time_ns, first.packet
        current, is_plain = None, False
        for packet in first.others:
            if packet[0] is not current:
                current = packet[0]
                is_plain = current.is_plain
            time_ns = packet[2] if is_plain else current.time_ns(packet[2])
            if time_ns > until_ns:
                heapq.heappush(heap, first._replace(time_ns=time_ns, packet=packet))
                return
            yield time_ns, packet
        self._close(first.reader)


_NEVER_NS = 1 << 100


def _now(path: Path) -> Path:
    """Where a file is now: since it was listed, it may have been finished or compressed."""
    plain = path.with_name(plain_name(path.name))
    names = (path, plain, *(plain.with_name(plain.name + ending) for ending in COMPRESSED))
    return path if path == STDIN else next((name for name in names if os.path.lexists(name)), path)


def _ends_by_name(paths: Iterable[Path]) -> dict[Path, int]:
    """The latest end of files, known because the next one of their series had begun; other files
    are left out.
    """
    series: dict[tuple[Path, str], dict[int, list[tuple[int, Path]]]] = {}
    for path in paths:
        time = _TIME.search(path.name)
        rest = _TIME.sub("T", plain_name(path.name), count=1)
        numbers = _NUMBER.findall(rest)
        with contextlib.suppress(ValueError):  # not a date
            if time and numbers:
                key = path.parent, _NUMBER.sub("N", rest)
                begin = datetime.strptime(time[1], "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC)
                begin_ns = int(begin.timestamp() * 1000) * 10**6
                series.setdefault(key, {}).setdefault(int(numbers[-1]), []).append((begin_ns, path))
    found = {}
    for files in series.values():
        for number, same in files.items():
            following = files.get(number + 1, [])
            # If a number exists twice, the files belong to different captures.
            if len(same) == len(following) == 1 and following[0][0] >= same[0][0]:
                found[same[0][1]] = following[0][0] + _NAMED_LATE_NS
    return found


def _ended_before(path: Path, time_ns: int) -> bool:
    """Whether the statistics at the end of a file show that it ended before a time."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False  # the code that reads it reports the error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return False
        tail = os.pread(descriptor, _TAIL, max(0, found.st_size - _TAIL))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    end_ns = _statistics_end(tail)
    return end_ns is not None and end_ns + _LATE_NS < time_ns


def _statistics_end(tail: bytes) -> int | None:
    """The latest isb_endtime of the statistics at the end of a file of skbcapd; None if there are
    none.
    """
    latest = None
    end = len(tail)
    while end >= 24:
        (size,) = struct.unpack_from("<I", tail, end - 4)
        begin = end - size
        if size < 24 or size % 4 or begin < 0 or struct.unpack_from("<II", tail, begin) != (STATISTICS, size):
            break
        times = [value for code, value in walk_options(tail[begin + 20 : end - 4], "<") if code == ISB_ENDTIME]
        if len(times) != 1 or len(times[0]) != 8:
            return None
        high, low = struct.unpack("<II", times[0])
        latest = max(latest or 0, high << 32 | low)
        end = begin
    return latest
