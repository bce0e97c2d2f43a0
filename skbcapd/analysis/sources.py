"""Several capture files as one: which files are meant, which of them can have packets of a time, and their order.

In: paths of files and directories, and selectors. Out: packets in time order, as far as each file is in order.

The rules: memory and open files are bounded, however many files there are: a file is opened when the packets of the
others have come to its first one. A file is left out only if it is certain that it has no packet of the time that is
asked for: the name of the next file of its series, or its own statistics, are older; or its first packet is newer. An
error in one file does not end the others.
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
from skbcapd.pcapng.reader import Packet, Reader, TruncatedError, walk_options
from skbcapd.text_safety import escaped_bytes

Timed: TypeAlias = tuple[int, Packet]
"""A packet's time in nanoseconds since 1970 UTC, and the packet."""

STDIN = Path("-")
_OPEN_MAX = 128
_LATE_NS = 10**9  # by which a packet may be older than the first one of its file
_NAMED_LATE_NS = 60 * 10**9  # by which it may be older than the next file: it waited for the disk
_ENDINGS = (".pcapng", ".pcap", ".cap")
_PART = ".part"
_TAIL = 1 << 16  # bytes at the end of a file where statistics are
_TIME = re.compile(r"(\d{8}T\d{6}\.\d{3})Z")
_NUMBER = re.compile(r"\d{6,13}")


def expand(paths: Iterable[Path]) -> list[Path]:
    """The capture files that are meant: a directory stands for all that lie in it.

    A file that is also there without compression, or in a finished state, is one file.

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
        plain = {_plain(name): name for name in sorted(names, key=len, reverse=True) if _is_capture(name)}
        if not plain:
            raise FileError(f"{_said(path)}: no capture files; expected files with names such as *.pcapng or *.pcap.gz")
        found |= dict.fromkeys(path / name for name in sorted(plain.values()))
    return list(found)


def _is_capture(name: str) -> bool:
    return (
        not name.startswith(".")
        and _plain(name).endswith(_ENDINGS)
        and not name.endswith(
            tuple(ending + _PART for ending in COMPRESSED)  # a compressor writes it; the plain file is still there
        )
    )


def _plain(name: str) -> str:
    """A name without the endings of compressed and incomplete files."""
    for ending in (_PART, *COMPRESSED):
        name = name.removesuffix(ending)
    return name


def _said(path: Path) -> str:
    return escaped_bytes(os.fsencode(path))


@dataclass(eq=False, slots=True)
class _File:
    """A file that is yet to be opened; its first packet is from this time."""

    path: Path
    first_ns: int


class _Open(NamedTuple):
    """A file that is being read: its next packet first, so that a heap orders them."""

    time_ns: int
    number: int
    packet: Packet
    others: Iterator[Packet]
    reader: Reader


class Sources:
    """Capture files; read once.

    Args:
        paths: of files, or STDIN.
        selection: which packets are wanted.
        progress: gives what takes the number of bytes read of the next file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        selection: Selection,
        progress: Callable[[], Callable[[int], None]] = lambda: lambda _read: None,
    ) -> None:
        self._paths = paths
        self._selection = selection
        self._progress = progress
        self._waiting: deque[_File] = deque()
        self._open: set[Reader] = set()
        self._numbers = 0
        self.wrong: list[FileError] = []
        """What is wrong with files, in the order in which it was found."""
        self.unread = 0
        """Files that can have no packet of the time that is asked for."""

    def packets(self) -> Generator[Timed, None, None]:
        """The wanted packets. What is wrong with a file is added to `wrong`; its packets before that place are given.

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
        """The files that can have wanted packets, in order of their first packets."""
        span = self._selection.span
        paths = list(self._paths)
        if span.begin_ns is not None:
            ends = _ends_by_name(paths)
            begin_ns = span.begin_ns
            paths = [
                path for path in paths if not (ends.get(path, begin_ns) < begin_ns or _ended_before(path, begin_ns))
            ]
        self.unread = len(self._paths) - len(paths)
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

    def _first_ns(self, path: Path) -> int | None:
        """The time of the first packet; None where there is none."""
        try:
            with Reader(path) as reader:
                for interface, _, time, *_ in reader.packets():
                    return interface.time_ns(time)
        except FileError as error:
            self._note(path, error)
        return None

    def _open_due(self, heap: list[_Open]) -> None:
        """Open the files whose packets may come before the next one."""
        while self._waiting and (not heap or self._waiting[0].first_ns - _LATE_NS <= heap[0].time_ns):
            path = self._waiting.popleft().path
            if len(heap) >= _OPEN_MAX:
                raise FileError(
                    f"more than {_OPEN_MAX} files have packets of the same time; expected fewer",
                    "extract some of them first, then from what comes out",
                )
            try:
                reader = Reader(path, self._progress())
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
        """Take down what is wrong; a file that is being written may end anywhere."""
        if not (isinstance(error, TruncatedError) and path.name.endswith(_PART)):
            self.wrong.append(error)

    def _close(self, reader: Reader) -> None:
        self._open.discard(reader)
        reader.__exit__()

    def _run(self, heap: list[_Open]) -> Iterator[Timed]:
        """Packets of the first file, as long as no other one has an older packet."""
        first = heapq.heappop(heap)
        until_ns = min(
            heap[0].time_ns if heap else _NEVER_NS,
            self._waiting[0].first_ns - _LATE_NS if self._waiting else _NEVER_NS,
        )
        yield first.time_ns, first.packet
        for packet in first.others:
            interface = packet[0]
            time_ns = packet[2] if interface.is_plain else interface.time_ns(packet[2])
            if time_ns > until_ns:
                heapq.heappush(heap, first._replace(time_ns=time_ns, packet=packet))
                return
            yield time_ns, packet
        self._close(first.reader)


_NEVER_NS = 1 << 100


def _ends_by_name(paths: Iterable[Path]) -> dict[Path, int]:
    """When files ended at the latest: the next one of their series had begun. Only those of which that is known."""
    series: dict[tuple[Path, str], dict[int, list[tuple[int, Path]]]] = {}
    for path in paths:
        time = _TIME.search(path.name)
        rest = _TIME.sub("T", _plain(path.name), count=1)
        numbers = _NUMBER.findall(rest)
        with contextlib.suppress(ValueError):  # no date
            if time and numbers:
                key = path.parent, _NUMBER.sub("N", rest)
                begin = datetime.strptime(time[1], "%Y%m%dT%H%M%S.%f").replace(tzinfo=UTC)
                begin_ns = int(begin.timestamp() * 1000) * 10**6
                series.setdefault(key, {}).setdefault(int(numbers[-1]), []).append((begin_ns, path))
    found = {}
    for files in series.values():
        for number, same in files.items():
            following = files.get(number + 1, [])
            # Where a number stands twice, these are files of different captures.
            if len(same) == len(following) == 1 and following[0][0] >= same[0][0]:
                found[same[0][1]] = following[0][0] + _NAMED_LATE_NS
    return found


def _ended_before(path: Path, time_ns: int) -> bool:
    """Whether the statistics at the end of a file say that it ended before a time."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False  # whoever reads it says what is wrong
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
    """The latest isb_endtime of the statistics at the end of a file of skbcapd; None if there are none."""
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
