"""Capture files: names, modes, renaming from NAME.part to NAME, and messages of errors."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skbcapd.errors import FileError, UsageError
from skbcapd.output.block_writer import BlockSink, CaptureFile, StandardOutput, owner_ids
from skbcapd.output.blocks import count_packets
from skbcapd.output.disk import DirectWriter, WriteMode
from skbcapd.worker import InlineJobs, Worker
from tests.support.writer import block, packet

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The umasks of systemd and of a login on Debian."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    """The names in a directory."""
    return [entry.name for entry in directory.iterdir()]


def test_flushed_blocks_can_be_read_before_the_end(tmp_path: Path) -> None:
    """An unfinished file contains all flushed blocks, under the displayed name."""
    file = CaptureFile(tmp_path / "a.pcapng", part=True)
    file.stream.write(b"blocks")
    file.stream.flush()
    assert file.working_path == tmp_path / "a.pcapng.part"
    assert file.working_path.read_bytes() == b"blocks"
    file.close()


def test_a_file_that_the_user_named(tmp_path: Path) -> None:
    """A file from the command line has its final name from the start, and replaces an existing
    file.
    """
    path = tmp_path / "mine.pcapng"
    path.write_bytes(b"old and long")
    file = CaptureFile(path, part=False)
    assert names(tmp_path) == ["mine.pcapng"]
    file.stream.write(b"new")
    file.close()
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/a", "No such file or directory"), ("file/a", "Not a directory"), ("directory", "Is a directory")],
)
def test_a_file_that_cannot_be_opened(name: str, reason: str, tmp_path: Path) -> None:
    """The error names the file and the reason."""
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with pytest.raises(FileError, match=rf"{re.escape(str(tmp_path / name))}: {reason}; expected a file to write to"):
        CaptureFile(tmp_path / name, part=False)


def test_a_full_disk(tmp_path: Path) -> None:
    """An error of the disk at the end is reported once; nothing tries to write again."""
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    file = CaptureFile(full, part=False)
    file.stream.write(packet(0))
    with pytest.raises(FileError, match="full: No space left on device while finishing it"):
        file.close()


def test_packets_refused_by_a_full_disk_are_counted() -> None:
    """After an error a sink writes no more, and counts packets (no other blocks), waiting and new
    ones.
    """
    with Path("/dev/full").open("wb") as full:
        sink = BlockSink(full.fileno())
        sink.write(packet(0) + block(1, 0, b"", b""))
        assert (sink.lost, sink.error) == (0, None)
        sink.flush()
        sink.write(memoryview(packet(1) * 3))
        assert (sink.lost, sink.size) == (4, 0)
        assert sink.error is not None
        assert sink.error.errno == errno.ENOSPC


def test_a_torn_block_is_cut_off(tmp_path: Path) -> None:
    """After a partial write, the file ends with the last complete block."""
    program = (
        "import resource, signal, sys; from skbcapd.output.block_writer import CaptureFile; from pathlib import Path\n"
        "from tests.support.writer import packet\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "file = CaptureFile(Path(sys.argv[1]), part=True)\n"
        "file.stream.write(packet(0, bytes(70_000)))\n"
        "file.stream.write(packet(0, bytes(70_000)))\n"
        "file.stream.flush()\n"
        "print(file.stream.lost, file.stream.size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.pcapng")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == f"1 {len(packet(0, bytes(70_000)))}\n"
    assert (tmp_path / "a.pcapng.part").read_bytes() == packet(0, bytes(70_000))


class Lent:
    """Memory that must not be used after the call and after it was given back: then it has other content.

    Args:
        blocks: its content.
        at: offset of the content in the memory.
    """

    def __init__(self, blocks: bytes, at: int) -> None:
        self.memory, self.at, self.users = mmap.mmap(-1, at + len(blocks)), at, 0
        self.memory[at:] = blocks
        self.view = memoryview(self.memory)[at:]
        self.drifts: list[int] = []
        self.is_over = False  # the call

    def take(self) -> None:
        """One more user."""
        self.users += 1

    def give_back(self) -> None:
        """One less."""
        self.users -= 1
        self._change()

    def return_from_call(self) -> None:
        """The call that has passed the memory is over."""
        self.is_over = True
        self._change()

    def _change(self) -> None:
        if self.is_over and not self.users:
            self.memory[:] = b"\xff" * len(self.memory)

    def behind(self, size: int) -> Lent:
        """Not used."""
        raise AssertionError(size)

    def wish(self, drift: int) -> None:
        """Where the next bytes should be."""
        self.drifts.append(drift)


PIECES = st.lists(
    st.tuples(st.integers(1, 300_000) | st.integers(300_000, 5_000_000), st.booleans(), st.none() | st.integers(0, 2)),
    max_size=12,
)


@given(PIECES, st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_writes_are_in_the_file(pieces: list[tuple[int, bool, int | None]], slow: bool) -> None:  # noqa: FBT001  hypothesis
    """Blocks of any size, in lent memory (with the offset of the file, or not) or in other memory,
    flushed at any time, on a fast and a slow disk: the file has all of them in order, and all memory
    is given back.
    """
    times = itertools.count(step=1.0)
    with tempfile.TemporaryFile() as file:
        sink = BlockSink(file.fileno(), clock=lambda: next(times))
        written, every = [], []
        for number, (size, is_flushed, drift) in enumerate(pieces):
            if slow and number % 3 == 1:
                sink.note_memory_pressure()
            written.append(packet(0, number.to_bytes(4, "big") + bytes(size)))
            if drift is None:
                sink.write(written[-1])
            else:
                lent = Lent(written[-1], (sink.size - 4 * drift) % 4096)
                every.append(lent)
                sink.write(lent.view, lent)
                lent.return_from_call()
                assert lent.drifts == [4 * drift]
                assert lent.users == 0 or (lent.users == 1 and size < 300_000)  # until it is known whether more follow
            if is_flushed:
                sink.flush()
                sink.flush()
                assert os.fstat(file.fileno()).st_size == len(b"".join(written))
        sink.flush(whole=True)
        sink.close()
        assert not any(lent.users for lent in every)
        file.seek(0)
        assert file.read() == b"".join(written)
        assert (sink.size, sink.lost, sink.error) == (len(b"".join(written)), 0, None)


def test_lent_memory_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks in lent memory are written from there; the bytes around its complete blocks of
    the disk are copied.
    """
    real, parts = os.pwritev, []

    def pwritev(descriptor: int, given: list[memoryview], at: int) -> int:
        parts.append([len(part) for part in given])
        return real(descriptor, given, at)

    monkeypatch.setattr(os, "pwritev", pwritev)
    with tempfile.TemporaryFile() as file:
        sink = BlockSink(file.fileno())
        sink.write(packet(0, bytes(68)))
        lent = Lent(packet(0, bytes((1 << 20) + 4096)), 100)
        sink.write(lent.view, lent)
        rest = packet(0, bytes(-sink.size % 4096 + 4096 - 32))
        sink.write(rest)
        at_a_block = Lent(packet(0, bytes((1 << 20) - 32)), 0)
        sink.write(at_a_block.view, at_a_block)
        sink.flush(whole=True)
        at_a_block = Lent(packet(0, bytes((1 << 20) - 32)), 0)
        sink.write(at_a_block.view, at_a_block)
        assert parts == [[4096, 1 << 20], [8192, 1 << 20], [1 << 20]]
        assert os.fstat(file.fileno()).st_size == sink.size == 3 * (1 << 20) + 3 * 4096
        sink.close()


def test_a_little_lent_memory_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few bytes for a direct write are written from lent memory, too, wherever it is, with the bytes
    before them. A direct write after that begins at a block of the disk. They are copied if more follow
    before they are to be in the file.
    """
    real, written = os.pwritev, []

    def pwritev(descriptor: int, given: list[memoryview], at: int) -> int:
        written.append((at, [len(part) for part in given]))
        return real(descriptor, given, at)

    monkeypatch.setattr(os, "pwritev", pwritev)
    blocks = [packet(0, bytes([number]) * size) for number, size in enumerate((68, 100_000, 80_000, 40, 4 << 20))]
    with tempfile.TemporaryFile() as file:
        sink = BlockSink(file.fileno())
        sink.write(blocks[0])
        for block in blocks[1:3]:
            lent = Lent(block, 4)
            sink.write(lent.view, lent)
            lent.return_from_call()
            sink.flush()
            assert lent.users == 0
        assert written == [(0, [100, 100_032]), (100_132, [80_032])]
        sink.write(blocks[3])
        sink.write(blocks[4])
        sink.flush(whole=True)
        sink.close()
        assert written[2][0] == 180_164 // 4096 * 4096
        file.seek(0)
        assert file.read() == b"".join(blocks)
    written.clear()
    with tempfile.TemporaryFile() as file:
        sink = BlockSink(file.fileno())
        for block in blocks[1:3]:
            lent = Lent(block, 4)
            sink.write(lent.view, lent)
            lent.return_from_call()
        sink.flush()
        sink.close()
        assert written == [(0, [180_064])]
        file.seek(0)
        assert file.read() == b"".join(blocks[1:3])


@pytest.mark.parametrize("size", [70_000, 300_000])
def test_a_disk_that_hangs_does_not_fill_the_memory(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk hangs, and packets are flushed rarely, their memory is that of the packets, not a buffer for each
    flush.
    """
    gate, real, allocated = threading.Event(), mmap.mmap, []

    def allocate(descriptor: int, size: int) -> mmap.mmap:
        allocated.append(size)
        return real(descriptor, size)

    def hang() -> None:
        gate.wait(60)

    monkeypatch.setattr("skbcapd.output.aligned.mmap.mmap", allocate)
    now, worker, blocks = itertools.count(step=1.0), Worker("disk"), packet(0, bytes(size))
    with tempfile.TemporaryFile() as file:
        worker.do(hang)
        sink = BlockSink(file.fileno(), clock=lambda: next(now), jobs=worker)
        for _ in range(200):
            sink.write(blocks)
            sink.flush()
        assert sum(allocated) <= 200 * len(blocks) + (3 << 21)
        gate.set()
        sink.flush(whole=True)
        assert worker.close(60)
        sink.close()
        file.seek(0)
        assert file.read() == 200 * blocks


def test_the_end_of_a_large_write_does_not_wait_for_long() -> None:
    """Bytes after the last complete block of the disk wait for the next flush if that is soon: then the disk
    needs no more of it. Packets that have waited for seconds do not wait once more.
    """
    now, blocks = 0.0, packet(0, bytes((1 << 20) + 68))
    with tempfile.TemporaryFile() as file:
        sink = BlockSink(file.fileno(), clock=lambda: now)
        waits = []
        for passed_s in (5.0, 0.1, 0.1, 5.0):
            now += passed_s
            sink.write(blocks)
            sink.flush()
            waits.append(sink.accepted - sink.completed)
        sink.close()
    assert waits[0] == waits[3] == 0
    assert 0 < waits[1] < 4096
    assert 0 < waits[2] < 4096


def test_lent_pieces_that_wait_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk writes one piece, others wait: then it gets those that are lent in one call, at
    most 16 MiB, and all memory is given back.
    """
    real, sizes, begun, gate = os.pwritev, [], threading.Event(), threading.Event()

    def pwritev(descriptor: int, parts: list[memoryview], at: int) -> int:
        begun.set()
        gate.wait(60)
        sizes.append(sum(map(len, parts)))
        return real(descriptor, parts, at)

    monkeypatch.setattr(os, "pwritev", pwritev)
    worker = Worker("disk")
    with tempfile.TemporaryFile() as file:
        sink = BlockSink(file.fileno(), jobs=worker)
        blocks = [packet(0, bytes([number]) * ((2 << 20) - 32)) for number in range(12)]
        lent = [Lent(block, 0) for block in blocks]
        for one in lent:
            sink.write(one.view, one)
            one.return_from_call()
            assert begun.wait(60)  # the disk has the first one
        assert sink.borrowed == 24 << 20
        assert not sink.is_busy
        gate.set()
        assert worker.close(60)
        assert sizes == [2 << 20, 16 << 20, 6 << 20]
        file.seek(0)
        assert file.read() == b"".join(blocks)
        assert (sink.borrowed, sink.completed, {one.users for one in lent}) == (0, 24 << 20, {0})
        sink.close()


@pytest.mark.parametrize(
    ("cache", "least", "most"),
    [pytest.param(4e9, 2.4, 2.6, id="a quick cache"), pytest.param(0.5e9, 0.001, 0.1, id="a slow cache is tried")],
)
def test_the_faster_way_is_taken(
    cache: float, least: float, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large pieces are written directly, at 1 GB/s; under memory pressure for 5 s through a faster
    cache, but the cache never has more than the disk writes in 5 s: with a cache of 4 GB/s these
    are 10 GB, in 2.5 s.
    """
    now = 0.0
    through = 0
    direct = []

    def take(way: DirectWriter, descriptor: int) -> None:
        direct.append(os.dup(descriptor))
        way._descriptor = direct[0]

    def pwritev(descriptor: int, parts: list[memoryview], _: int) -> int:
        nonlocal now, through
        size = sum(map(len, parts))
        through += size * (descriptor not in direct)
        now += size / (1e9 if descriptor in direct else cache)
        return size

    monkeypatch.setattr(DirectWriter, "__init__", take)
    monkeypatch.setattr(os, "pwritev", pwritev)
    blocks = packet(0, bytes((1 << 22) - 100))
    with (tmp_path / "a").open("wb") as file:
        sink = BlockSink(file.fileno(), clock=lambda: now)
        found = []
        for piece in range(3):
            through, end = 0, 5.0 * piece + 5
            if piece == 1:
                sink.note_memory_pressure()
            while now < end:
                sink.write(blocks)
            found.append(through / cache)  # seconds
        sink.close()
    assert found[0] == 0
    assert least < found[1] < most
    assert found[2] < 0.01


@pytest.mark.parametrize(("later", "is_tried"), [(1.0, True), (0.01, False)])
def test_the_first_writes_do_not_show_how_fast_a_disk_is(later: float, *, is_tried: bool) -> None:
    """The first 16 MiB of a burst take 0.02 s, at 0.8 GB/s: the cache is not tried before 32 MiB show the same."""
    mode = WriteMode(lambda: 0.0)
    mode.direct.add(1 << 24, 0.02)
    mode.note_memory_pressure()
    assert not mode.tries_cache
    mode.direct.add(1 << 24, later)
    assert mode.tries_cache == is_tried


def test_a_slow_disk_is_known_soon() -> None:
    """A disk that writes 125 MB/s is known after 0.1 s, not after 32 MiB: the buffer would be full by then."""
    mode = WriteMode(lambda: 0.0)
    mode.note_memory_pressure()
    mode.direct.add(1 << 23, 0.067)
    assert not mode.tries_cache
    mode.direct.add(1 << 22, 0.034)
    assert mode.tries_cache


def test_small_writes_do_not_show_how_fast_a_disk_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet capture writes some 100 KB at a time, and each takes 10 ms: a burst after it does not try the cache."""
    now = 0.0

    def pwritev(_descriptor: int, parts: list[memoryview], _: int) -> int:
        nonlocal now
        now += 0.01
        return sum(map(len, parts))

    with (tmp_path / "a").open("wb") as file:
        sink = BlockSink(file.fileno(), clock=lambda: now)
        with monkeypatch.context() as patch:
            patch.setattr(DirectWriter, "__init__", lambda way, descriptor: setattr(way, "_descriptor", descriptor))
            patch.setattr(os, "pwritev", pwritev)
            for _ in range(101):
                sink.write(packet(0, bytes(600_000)))
                sink.flush(whole=True)
        sink.note_memory_pressure()
        assert not sink.disk.mode.tries_cache
        sink.close()


def test_only_pieces_with_a_buffer_wait_for_the_disk() -> None:
    """A small piece does not wait. A buffer waits; but no more after a wait in vain, until the disk has caught up."""
    waits = []

    class Waiting(InlineJobs):
        def wait_below(self, _count: int, _timeout_s: float) -> bool:
            waits.append(self.waiting)
            return False

    jobs, large = Waiting(), packet(0, bytes((2 << 20) - 32))
    with tempfile.TemporaryFile() as file:
        sink = BlockSink(file.fileno(), jobs=jobs)
        for waiting, blocks in ((2, packet(0, b"small")), (3, large), (4, large), (1, large), (5, large)):
            jobs.waiting = waiting
            sink.write(blocks)
            sink.flush(whole=True)
        sink.close()
    assert waits == [3, 5]


def test_small_pieces_use_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces are written through the cache, also after a direct write; large ones directly."""
    real, ways, direct = os.pwritev, [], []

    def take(way: DirectWriter, descriptor: int) -> None:
        direct.append(os.dup(descriptor))
        way._descriptor = direct[0]

    def pwritev(descriptor: int, parts: list[memoryview], at: int) -> int:
        ways.append("direct" if descriptor in direct else "cache")
        return real(descriptor, parts, at)

    monkeypatch.setattr(DirectWriter, "__init__", take)
    monkeypatch.setattr(os, "pwritev", pwritev)
    little, much = packet(0, bytes(100_000)), packet(0, bytes(3_000_000))
    with (tmp_path / "a").open("wb") as file:
        sink = BlockSink(file.fileno())
        found = []
        for blocks in (little, much, little, packet(0)):
            ways.clear()
            sink.write(blocks)
            sink.flush()
            found.append([*ways])
        sink.flush(whole=True)
        sink.close()
    assert found == [["cache"], ["direct", "direct"], ["cache"], ["cache"]]
    assert (tmp_path / "a").read_bytes() == little + much + little + packet(0)


TEAR = """
import os, resource, signal, sys
from skbcapd.output.block_writer import BlockSink
from tests.support.writer import packet
from tests.unit.test_files import Lent
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, is_slow, sizes = int(sys.argv[2]), sys.argv[3] == "slow", [int(size) for size in sys.argv[5:]]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sink = BlockSink(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT))
if is_slow:
    sink.note_memory_pressure()
loans = []
for size in sizes:
    blocks = b"".join(packet(0, bytes(size)) for _ in range(7))
    if sys.argv[4] == "lent":
        loans.append(Lent(blocks, sink.size % 4096))
        sink.write(loans[-1].view, loans[-1])
        loans[-1].return_from_call()
    else:
        sink.write(blocks)
    if size % 2:
        sink.flush()
sink.flush(whole=True)
assert not any(loan.users for loan in loans)
print(sink.lost, sink.size)
"""


@pytest.mark.parametrize("memory", ["lent", "own"])
@pytest.mark.parametrize("disk", ["quick", "slow"])
@pytest.mark.parametrize("limit", [1, 4096, 100_000, 1 << 20, (1 << 20) + 4097, 2_000_001])
def test_wherever_a_disk_is_full(limit: int, disk: str, memory: str, tmp_path: Path) -> None:
    """The file ends with the last complete block that fits; each packet is in it or counted."""
    file, sizes = tmp_path / "torn", [60, 1_401, 40_000, 9, 60_000, 70_001, 65_536, 5]
    words = [sys.executable, "-c", TEAR, file, limit, disk, memory, *sizes]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True, cwd=ROOT)
    blocks = [packet(0, bytes(size)) for size in sizes for _ in range(7)]
    ends = list(itertools.accumulate(map(len, blocks)))
    kept = sum(end <= limit for end in ends)
    assert done.stdout == f"{len(blocks) - kept} {len(b''.join(blocks[:kept]))}\n"
    assert file.read_bytes() == b"".join(blocks[:kept])


def test_packets_are_counted_among_blocks() -> None:
    """Only Enhanced Packet Blocks are counted."""
    assert count_packets(packet(0) + block(5, 0, b"", b"") + packet(1, b"x")) == 2
    assert count_packets(b"") == 0


def test_a_file_that_exists_keeps_its_owner(tmp_path: Path) -> None:
    """The owner is that of new files only: the user can name any file of the system."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(b"old")
    before = path.stat()
    CaptureFile(path, part=False, owner=(os.geteuid() + 1, os.getegid() + 1)).close()
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_size) == (before.st_uid, before.st_gid, 0)


def test_owners() -> None:
    """A name is looked up; a missing part is -1; an unknown name gives an error with the setting."""
    assert owner_ids("self") == (-1, -1)
    assert owner_ids("root") == (0, -1)
    assert owner_ids("root:root") == (0, 0)
    assert owner_ids(":root") == (-1, 0)
    assert owner_ids("999983:999979") == (999983, 999979)
    with pytest.raises(UsageError, match=r"files\.owner is nobody-here: no such user or group"):
        owner_ids("nobody-here")


def test_a_file_that_was_deleted(tmp_path: Path) -> None:
    """A file that was deleted while it was written cannot be renamed, which is reported."""
    file = CaptureFile(tmp_path / "a.pcapng", part=True)
    file.working_path.unlink()
    with pytest.raises(FileError, match=r"a\.pcapng\.part: No such file or directory while finishing it"):
        file.close()


def test_standard_output_accepts_blocks_and_lines() -> None:
    """Blocks are written to the descriptor unchanged, lines as ASCII; both are complete after
    close.
    """
    reading, writing = os.pipe()
    output = StandardOutput(writing)
    output.stream.write(b"\xff\0\n")
    output.text.write("line\n")
    output.close()
    assert os.read(reading, 100) == b"\xff\0\nline\n"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("way", ["stream.write(b'blocks')", "text.write('line')"])
@pytest.mark.parametrize(
    ("reader", "said"),
    [("closed", ""), ("full", "standard output: No space left on device while finishing it")],
)
def test_standard_output_that_cannot_be_written(way: str, reader: str, said: str) -> None:
    """A reader that has ended is no error; a full device is one, reported once, also when the
    interpreter ends.
    """
    program = (
        "from skbcapd.output.block_writer import StandardOutput, FileError\n"
        "output = StandardOutput()\n"
        f"output.{way}\n"
        "try:\n    output.stream.flush() or output.text.flush()\nexcept OSError:\n    pass\n"
        "try:\n    output.close()\nexcept FileError as error:\n    print(error, file=__import__('sys').stderr)\n"
    )
    reading, writing = os.pipe() if reader == "closed" else (os.open(os.devnull, 0), os.open("/dev/full", os.O_WRONLY))
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr.strip()) == (0, said)
