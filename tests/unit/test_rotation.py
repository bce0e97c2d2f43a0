"""Many files of one capture: where each ends, that each stands for itself, and that a capture outlives its disk."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest

from skbcapd.kernel.segments import Cut, read_local
from skbcapd.output.compressor import Compressor
from skbcapd.output.directory import CURRENT, CaptureDirectory, Keep
from skbcapd.output.interface import Statistics
from skbcapd.output.rotation import Limits, RotatingOutput
from skbcapd.pcapng.comment import label
from skbcapd.pcapng.interface import Interface
from tests.golden.judges import judge
from tests.kernel.blocks import INTERFACE, STATISTICS, blocks, packets
from tests.kernel.deadline import until
from tests.unit.writer import cut, packet

LO = Interface(b"lo", "", 1, 0, None, None, None)
STAMP = label([("comm", b"x")], 2, 7, 7)


class Clock:
    """Time as the test has it."""

    now = 1_000_000.5

    def __call__(self) -> float:
        """Seconds since 1970."""
        return self.now


class Rig:
    """An output in a directory."""

    def __init__(self, path: Path, **limits: int) -> None:
        self.said: list[str] = []
        self.clock = Clock()
        self.path = path
        self.directory = CaptureDirectory(path, say=self.said.append)
        self.output = RotatingOutput(self.directory, Limits(**limits), say=self.said.append, clock=self.clock)
        self.output.add_interface(LO)

    def finished(self) -> list[Path]:
        """Files with their names, oldest first, each as the judges want it."""
        self.output.settle(wait=True)
        found = sorted(path for path in self.path.iterdir() if path.suffix == ".pcapng" and path.name != CURRENT)
        for path in found:
            judge(path, "capinfos")
        return found

    def frames(self) -> list[list[bytes]]:
        """The frames of each finished file."""
        return [[found.data for found in packets(path.read_bytes())] for path in self.finished()]


def small(number: int) -> bytes:
    """A ready packet block of a known frame."""
    return packet(0, number.to_bytes(4, "big"), STAMP.options)


def local(number: int) -> Cut:
    """A packet that Python writes."""
    found = read_local(memoryview(cut(0, number.to_bytes(4, "big"), 2, 4)), 0)
    assert isinstance(found, Cut)
    return found


@pytest.mark.parametrize("way", ["blocks", "packets"])
def test_a_file_is_never_larger_than_it_may_be(way: str, tmp_path: Path) -> None:
    """Files end between two packets, within their size but for statistics; none is lost or twice, in either way."""
    rig = Rig(tmp_path, size=1 << 20)
    count = 40_000
    if way == "blocks":
        for start in range(0, count, 9973):
            rig.output.write_blocks(memoryview(b"".join(map(small, range(start, min(count, start + 9973))))))
    else:
        for number in range(count):
            rig.output.write_packet(local(number), 0, STAMP)
    rig.output.finish([Statistics(0, 0, 7, 7, 0, 7)])
    found = rig.finished()
    assert len(found) > 1
    assert all(path.stat().st_size <= (1 << 20) + 200 for path in found)
    assert [frame for frames in rig.frames() for frame in frames] == [n.to_bytes(4, "big") for n in range(count)]


@pytest.mark.parametrize("way", ["blocks", "packets"])
def test_a_file_has_no_more_packets_than_it_may(way: str, tmp_path: Path) -> None:
    """Every file but the last has exactly as many packets as are asked for."""
    rig = Rig(tmp_path, packets=7)
    if way == "blocks":
        for start in (0, 5, 10):
            rig.output.write_blocks(memoryview(b"".join(map(small, range(start, start + 5)))))
    else:
        for number in range(15):
            rig.output.write_packet(local(number), 0, STAMP)
    rig.output.finish([])
    assert [len(frames) for frames in rig.frames()] == [7, 7, 1]


def test_a_file_ends_at_a_multiple_of_its_time(tmp_path: Path) -> None:
    """Files change at aligned times, also without packets; a clock that steps, either way, starts one new file."""
    rig = Rig(tmp_path, every_s=10)
    for now, finished in [
        (9.9, 0),
        (10.0, 1),
        (19.9, 1),
        (20.1, 2),
        (500.0, 3),
        (500.9, 3),
        (17.0, 4),
        (18.0, 4),
        (20.0, 5),
    ]:
        rig.clock.now = 1_000_000 + now
        rig.output.tick()
        assert len(rig.finished()) == finished, now


def test_every_file_stands_for_itself(tmp_path: Path) -> None:
    """Each file lists all interfaces, and ends with what its own time has added to each one's counters."""
    rig = Rig(tmp_path)
    rig.output.add_interface(Interface(b"eth0", "", 1, 0, None, None, None))
    rig.output.statistics = lambda: [Statistics(0, 1, 5, 4, 1, 3), Statistics(1, 2, 1, 1, 0, 1)]
    rig.output.rotate()
    rig.output.finish([Statistics(0, 1, 9, 6, 1, 5), Statistics(1, 2, 1, 1, 0, 1)])
    found = [list(blocks(path.read_bytes())) for path in rig.finished()]
    assert [[block.kind for block in file] for file in found] == [[0x0A0D0D0A, 1, 1, 5, 5]] * 2
    counts = [
        [int.from_bytes(b.body[at : at + 8], "little") for at in (40, 52, 64, 76)]
        for f in found
        for b in f
        if b.kind == STATISTICS
    ]
    assert counts == [[5, 4, 1, 3], [1, 1, 0, 1], [4, 2, 0, 2], [0, 0, 0, 0]]
    assert "Number of stat entries = 1" in judge(rig.finished()[0], "capinfos")


def test_the_list_of_interfaces_begins_anew(tmp_path: Path) -> None:
    """When most of more than 64 interfaces have had no packets, the next file lists only those that come."""
    rig = Rig(tmp_path)
    asked: list[str] = []
    for number in range(64):
        rig.output.add_interface(Interface(b"v%d" % number, "", 1, 0, None, None, None))
    rig.output.statistics = lambda: [Statistics(0, 1, 5, 5, 0, 5), *(Statistics(n, n + 1) for n in range(1, 65))]
    rig.output.renumber = lambda: asked.append("renumber")
    rig.output.rotate()
    rig.output.tick()
    assert asked == ["renumber"]
    assert rig.output.add_interface(LO) == 0
    rig.output.finish([])
    listed = [sum(block.kind == INTERFACE for block in blocks(path.read_bytes())) for path in rig.finished()]
    assert listed == [65, 65, 1]


@pytest.mark.parametrize("fault", ["moved", "removed"])
def test_a_file_that_was_taken_away(fault: str, tmp_path: Path) -> None:
    """A file that somebody moves or removes is told once; a second later the next file is written, by itself."""
    rig = Rig(tmp_path)
    rig.output.write_blocks(memoryview(small(1)))
    part = Path(rig.output.path)
    part.rename(tmp_path / "elsewhere") if fault == "moved" else part.unlink()
    rig.output.tick()
    rig.output.write_blocks(memoryview(small(2) + small(3)))
    rig.output._retry_at = 0.0
    rig.output.tick()
    rig.output.write_blocks(memoryview(small(4)))
    rig.output.finish([])
    assert [line.partition(": ")[2] for line in rig.said] == [
        "it was moved or removed; packets are lost until files can be written again",
        "writing again; 2 packets were lost",
    ]
    assert (rig.output.lost, rig.frames()[-1]) == (2, [(4).to_bytes(4, "big")])


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """When no file can be made, packets are counted; when it can, writing goes on, and all interfaces are listed."""
    rig = Rig(tmp_path / "captures")
    (tmp_path / "captures").rename(tmp_path / "gone")
    (tmp_path / "captures").write_bytes(b"in the way")
    rig.output.tick()
    rig.output.add_interface(LO)
    rig.output.write_blocks(memoryview(small(1)))
    rig.output._retry_at = 0.0
    rig.output.tick()
    assert rig.output.lost == 1
    (tmp_path / "captures").unlink()
    rig.output._retry_at = 0.0
    rig.output.tick()
    rig.output.write_packet(local(2), 1, STAMP)
    rig.output.finish([])
    assert rig.frames() == [[(2).to_bytes(4, "big")]]
    assert len(rig.said) == 2


def test_a_slow_disk_is_not_waited_for(tmp_path: Path) -> None:
    """While the disk takes its time with a finished file, the next one is written; names come in order, later."""
    rig = Rig(tmp_path)
    disk = Event()
    rig.directory._finisher.submit(disk.wait)
    for number in range(3):
        rig.output.write_blocks(memoryview(small(number)))
        rig.output.rotate()
    assert list(tmp_path.glob("skbcapd-*.pcapng")) == []
    disk.set()
    rig.output.close()
    assert rig.frames() == [[number.to_bytes(4, "big")] for number in range(3)] + [[]]
    assert (tmp_path / CURRENT).resolve() == rig.finished()[-1]


def test_files_of_an_earlier_run_are_packed(tmp_path: Path) -> None:
    """A plain file that was left is packed at the next start; `current.pcapng` goes on to lead to a file."""
    Rig(tmp_path).output.close()
    directory = CaptureDirectory(tmp_path)
    output = RotatingOutput(directory, Limits(), compressor=Compressor("gzip"), on_demand=True)
    assert (tmp_path / CURRENT).is_file()
    until(lambda: (output.tick(), bool(list(tmp_path.glob("*.gz"))))[1], "it is packed")
    assert [path.suffix for path in directory._list()] == [".gz"]
    assert (tmp_path / CURRENT).is_file()
    output.close()


def test_what_is_kept_is_looked_after(tmp_path: Path) -> None:
    """Old files go while the capture runs, at each new file and each second."""
    rig = Rig(tmp_path)
    rig.directory._keep = Keep(number=2)
    for _ in range(5):
        rig.output.rotate()
    rig.output.settle(wait=True)
    rig.output.tick()
    assert len(rig.finished()) == 2


def test_each_outage_counts_its_own(tmp_path: Path) -> None:
    """The line that tells of the end of an outage has the packets of this one, however it began."""
    away = tmp_path / "captures"
    rig = Rig(away)
    for count in (3, 5):
        for entry in away.iterdir():
            entry.unlink()
        away.rmdir()
        away.touch()
        rig.output.rotate()  # the file in work cannot get its name, and no other can be made
        for number in range(count):
            rig.output.write_blocks(memoryview(small(number)))
        away.unlink()
        until(lambda: rig.output.tick() or "writing again" in rig.said[-1], "it writes again")
        assert rig.said[-1].endswith(f"writing again; {count} packets were lost")
    assert rig.output.lost == 8
    rig.output.close()


@pytest.mark.parametrize("is_full", [False, True])
def test_a_flood_of_devices_begins_a_new_list(is_full: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """With 4,096 interfaces listed a file ends, all of them in use or not, so that the list never grows much longer."""
    rig = Rig(tmp_path)
    asked: list[str] = []
    rig.output.renumber = lambda: asked.append("renumber")
    if is_full:
        Path(rig.output.path).unlink()
        rig.output.tick()
        rig.output._retry_at = float("inf")
    for number in range(4094):  # beside the one that is there
        rig.output.add_interface(Interface(b"v%d" % number, "", 1, 0, None, None, None))
    rig.output.tick()
    assert asked == []
    rig.output.add_interface(LO)
    rig.output.tick()
    assert asked == ["renumber"]
    assert rig.output.add_interface(LO) == 0
