"""Several files as one: their order, which of them are read, and errors."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import pytest

from skbcapd.analysis import sources
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.analysis.sources import Sources, expand
from skbcapd.analysis.when import Span
from skbcapd.errors import FileError, UsageError
from skbcapd.pcapng.source import STDIN
from tests.support.strangers import ISB, SPB, block, comment, interface, options, packet, pcap, process, section

START = section() + interface(opts=options((2, b"eth0"), (9, b"\x09")))
SECOND = 10**9
DAY_NS = 1_622_419_200 * SECOND  # 2021-05-31


def capture(path: Path, times: list[int], end_ns: int | None = None, comm: str = "a") -> Path:
    """A file with a packet at each of these times; its frame contains the time."""
    content = START + b"".join(packet(struct.pack("<Q", time), process(7, comm), time=time) for time in times)
    if end_ns is not None:
        content += statistics(end_ns)
    path.write_bytes(content)
    return path


def statistics(end_ns: int) -> bytes:
    """A file with one interface, as skbcapd writes it."""
    time = struct.pack("<II", end_ns >> 32, end_ns & 0xFFFFFFFF)
    return block(ISB, struct.pack("<I", 0) + time + options((2, time), (3, time), (4, bytes(8))))


def times(paths: list[Path], wanted: Selectors | None = None) -> tuple[list[int], Sources]:
    """The times of all packets, in order; each is the one in its frame."""
    found = Sources(paths, Selection(wanted or Selectors()))
    seen = []
    for time_ns, packet_ in found.packets():
        assert struct.unpack("<Q", packet_[4]) == (time_ns,)
        seen.append(time_ns)
    return seen, found


def between(begin_ns: int | None, end_ns: int | None) -> Selectors:
    """A selector by time."""
    return Selectors(span=Span(begin_ns, end_ns))


@pytest.mark.parametrize("seed", range(7))
def test_files_are_merged(seed: int, tmp_path: Path) -> None:
    """Packets of files that overlap, contain each other, or follow each other are returned in the
    order of time.
    """
    chosen = random.Random(seed)
    paths, every = [], []
    for number in range(11):
        begin, length = chosen.randrange(100 * SECOND), chosen.randrange(1, 30 * SECOND)
        own = sorted(chosen.randrange(begin, begin + length) for _ in range(chosen.randrange(97)))
        paths.append(capture(tmp_path / f"{number}.pcapng", own))
        every += own
    found, done = times(paths)
    assert found == sorted(every)
    assert (done.wrong, done.unread) == ([], 0)


def test_the_order_inside_a_file_stays(tmp_path: Path) -> None:
    """Packets that are late by microseconds stay at their position, and do not stop other files."""
    first = capture(tmp_path / "1.pcapng", [5, 4, 7, 6, 2 * SECOND])
    second = capture(tmp_path / "2.pcapng", [SECOND, 3 * SECOND])
    assert times([second, first])[0] == [5, 4, 7, 6, SECOND, 2 * SECOND, 3 * SECOND]


def test_few_files_are_open(tmp_path: Path) -> None:
    """Files that follow each other are open one after the other, whatever their order on the
    command line.
    """
    paths = [capture(tmp_path / f"{number}.pcapng", [number * 5 * SECOND] * 3) for number in range(300)]
    random.Random(7).shuffle(paths)
    most, found = 0, Sources(paths, Selection(Selectors()))
    for _ in found.packets():
        most = max(most, len(found._open))
    assert most <= 2
    assert not found._open


def test_too_many_files_of_one_time(tmp_path: Path) -> None:
    """Too many files of the same time are an error with a way out."""
    paths = [capture(tmp_path / f"{number}.pcapng", [number, SECOND]) for number in range(sources._OPEN_MAX + 1)]
    with pytest.raises(FileError, match="more than 128 files have packets of the same time") as raised:
        times(paths)
    assert "extract some of them first" in raised.value.hint
    assert len(times(paths[1:])[0]) == 2 * sources._OPEN_MAX


def name(second: int, number: int) -> str:
    """A name as skbcapd writes it."""
    return f"skbcapd-host-20210531T00{second // 60:02}{second % 60:02}.000Z-{number:06}.pcapng"


def test_files_that_ended_before_are_not_read(tmp_path: Path) -> None:
    """A file is not opened if the next one of its series began a minute before the time: garbage in
    it is not noticed.
    """
    for number in range(10):
        capture(tmp_path / name(number * 120, number), [DAY_NS + number * 120 * SECOND + 7])
    for number in range(4):
        (tmp_path / name(number * 120, number)).write_bytes(b"garbage")
    wanted = between(DAY_NS + 9 * 60 * SECOND + 1, None)  # file 4 begins at 480 s, file 3 ends by 540 s
    found, done = times(expand([tmp_path]), wanted)
    assert found == [DAY_NS + number * 120 * SECOND + 7 for number in range(5, 10)]
    assert (done.wrong, done.unread) == ([], 4)
    done = times(expand([tmp_path]), between(wanted.span.begin_ns - 1, None))[1]  # type: ignore[operator]
    assert ["begins with 67 61" in str(error) for error in done.wrong] == [True]


def test_names_prove_nothing_beside_another_capture(tmp_path: Path) -> None:
    """If a number exists twice, or the next file is older, all files are read."""
    paths = [
        capture(tmp_path / name(0, 1), [DAY_NS + 900 * SECOND]),
        capture(tmp_path / name(120, 2), [DAY_NS + 901 * SECOND]),
        capture(tmp_path / name(121, 2), [DAY_NS + 902 * SECOND]),
        capture(tmp_path / name(60, 3), [DAY_NS + 903 * SECOND]),
        capture(tmp_path / "skbcapd-host-20219931T000000.000Z-000004.pcapng", [DAY_NS + 904 * SECOND]),
    ]
    found, done = times(paths, between(DAY_NS + 800 * SECOND, None))
    assert (len(found), done.unread) == (5, 0)


@pytest.mark.parametrize("form", ["plain", "gzip", "zstd"])
def test_a_file_that_begins_later_is_not_read(form: str, tmp_path: Path) -> None:
    """Of a file whose first packet is after the end of the span, no more is read."""
    first, later = capture(tmp_path / "a.pcapng", [5, SECOND]), capture(tmp_path / "b.pcapng", [9 * SECOND])
    later.write_bytes(later.read_bytes() + b"garbage and more")
    if form != "plain":
        subprocess.run([form, "-q", str(later)], check=True)
        (later,) = tmp_path.glob("b.pcapng.*")
    found, done = times([first, later], between(None, 8 * SECOND))
    assert (found, done.wrong, done.unread) == ([5, SECOND], [], 1)


def test_statistics_say_when_a_file_ended(tmp_path: Path) -> None:
    """A file whose statistics ended a second before the time is not read; other blocks have no
    effect.
    """
    path = tmp_path / "a.pcapng"
    path.write_bytes(b"garbage!" + statistics(3 * SECOND) + statistics(5 * SECOND))
    assert times([path], between(6 * SECOND + 1, None))[1].unread == 1
    assert times([path], between(6 * SECOND, None))[1].unread == 0
    for tail in (
        statistics(3 * SECOND)[:-4] + b"\x20\0\0\0",
        block(ISB, bytes(12)),
        statistics(3 * SECOND) + b"more",
        b"",
    ):
        capture(path, [7 * SECOND])
        path.write_bytes(path.read_bytes() + tail)
        assert times([path], between(6 * SECOND, None))[1].unread == 0


def test_a_directory_is_all_its_captures(tmp_path: Path) -> None:
    """Compressed and incomplete files count; links, hidden files, other files and duplicates of a
    capture do not.
    """
    for each in ("a.pcapng", "b.pcapng.gz", "c.pcapng.zst", "d.pcapng.part", "e.pcap", "f.cap.gz"):
        (tmp_path / each).touch()
    for each in (
        ".skbcapd.lock",
        ".hidden.pcapng",
        "notes.txt",
        "a.pcapng.gz",
        "b.pcapng.zst.part",
        "c.pcapng.zst.part",
    ):
        (tmp_path / each).touch()
    (tmp_path / "current.pcapng").symlink_to("a.pcapng")
    (tmp_path / "below.pcapng").mkdir()
    expected = ["a.pcapng", "b.pcapng.gz", "c.pcapng.zst", "d.pcapng.part", "e.pcap", "f.cap.gz"]
    assert [path.name for path in expand([tmp_path])] == expected
    assert [path.name for path in expand([tmp_path / "e.pcap", tmp_path])] == [
        "e.pcap",
        *(set_ for set_ in expected if set_ != "e.pcap"),
    ]


def test_directories_without_captures(tmp_path: Path) -> None:
    """An empty or unreadable directory is an error."""
    with pytest.raises(FileError, match="no capture files; expected files with names such as"):
        expand([tmp_path])


def test_a_file_that_is_being_written_may_end_anywhere(tmp_path: Path) -> None:
    """NAME.part is read up to its last complete block; the same end of a finished file is an error."""
    part = capture(tmp_path / "a.pcapng.part", [1, 2])
    part.write_bytes(part.read_bytes()[:-3])
    found, done = times([part])
    assert (found, done.wrong) == ([1], [])
    finished = part.rename(tmp_path / "a.pcapng")
    found, done = times([finished])
    assert found == [1]
    assert ["into a block" in str(error) for error in done.wrong] == [True]


def test_a_bad_file_does_not_end_the_others(tmp_path: Path) -> None:
    """The errors of each file are reported; all readable packets are returned."""
    bad = tmp_path / "bad.pcapng"
    bad.write_bytes(b"garbage")
    torn = capture(tmp_path / "torn.pcapng", [1, 2, 3])
    torn.write_bytes(torn.read_bytes() + b"\x06\0\0\0\x07\0\0\0" + bytes(24))
    good = capture(tmp_path / "good.pcapng", [2, 4])
    found, done = times([bad, torn, good, tmp_path / "nosuch"])
    assert found == [1, 2, 2, 3, 4]
    said = sorted(str(error).removeprefix(f"{tmp_path}/").partition(";")[0] for error in done.wrong)
    assert said == [
        "bad.pcapng: begins with 67 61 72 62 61 67 65",
        "nosuch: No such file or directory",
        f"torn.pcapng: at byte {torn.stat().st_size - 32}: a block has length 7",
    ]


def test_selectors_apply_to_each_file(tmp_path: Path) -> None:
    """Packets that are not selected are not returned, and do not keep a file open."""
    paths = [capture(tmp_path / f"{number}.pcapng", [number, number + 3], comm="ab"[number % 2]) for number in range(4)]
    wanted = Selection(Selectors(interfaces=()))
    assert [time for time, _ in Sources(paths, wanted).packets()] == [0, 1, 2, 3, 3, 4, 5, 6]


def test_standard_input_stands_alone(tmp_path: Path) -> None:
    """There is one standard input, and no file beside it."""
    with pytest.raises(UsageError, match="- is standard input; expected no other files beside it"):
        times([STDIN, capture(tmp_path / "a.pcapng", [1])])


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """If the loop ends early, no file stays open."""
    paths = [capture(tmp_path / f"{number}.pcapng", [number, number + 3]) for number in range(4)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    packets = Sources(paths, Selection(Selectors())).packets()
    next(packets)
    packets.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


_OTHERS = [
    START + packet(b"1") + block(SPB, struct.pack("<I", 3) + b"abc\0") + packet(b"22") + statistics(7) + packet(b"333"),
    START + packet(b"1") * 3 + section(">") + interface(">") + packet(b"22", order=">") * 2,
    START + packet(b"1") + packet(b"2", number=1) + packet(b"3"),  # an interface that is not described
    START + packet(b"1") + packet(b"2")[:-4] + b"\x07\0\0\0" + packet(b"3"),  # another length at the end
    pcap([b"1", b"22", b"333"]),
]


@pytest.mark.parametrize("content", _OTHERS, ids=["others", "orders", "number", "length", "pcap"])
def test_packets_are_counted_as_they_are_read(content: bytes, tmp_path: Path) -> None:
    """`count` has the packets and the errors of `unordered`, wherever a file ends."""
    path = tmp_path / "a.pcapng"
    for end in range(0, len(content) + 1, 2):
        path.write_bytes(content[:end])
        read, counted = (Sources([path], Selection(Selectors())) for _ in range(2))
        assert (counted.count(), list(map(str, counted.wrong))) == (
            sum(1 for _ in read.unordered()),
            list(map(str, read.wrong)),
        )
    chosen = Selection(Selectors(tgids=frozenset({7})))
    assert Sources([path], chosen).count() == sum(1 for _ in Sources([path], chosen).unordered())


def test_identifiers_of_packets_are_passed_over(tmp_path: Path) -> None:
    """Packets have the process of their own options, whatever options with an identifier were read before."""
    flags, own = (2, struct.pack("<I", 2)), (8, struct.pack("<II", 7, 7))
    marks = [(5, struct.pack("<Q", number)) for number in (1, 2, 0x0000000C_00080005)]
    texts = [b"comm=a", b"comm=b", b"comm=a tgid=7"]
    made = [comment(text, flags, mark, own) for text in texts for mark in marks]
    made += [comment(texts[0], mark, flags, own) for mark in marks] + [comment(texts[0], flags, own)]
    made += [comment(texts[0], flags, (5, b"1234"), (5, b"5678"), own), comment(texts[0] + bytes(40), flags, own)]
    like = b"comm=" + b"a" * 43
    made += [comment(text, (5, b"x" * 20)) for text in (like, like[:-12] + b"\5\0\10\0" + like[-8:])]
    path = tmp_path / "a.pcapng"
    alone = []
    for opts in made:
        path.write_bytes(START + packet(b"x", opts))
        alone += [packet_[1] for _, packet_ in Sources([path], Selection(Selectors())).unordered()]
    chosen = random.Random(5)
    for _ in range(20):
        order = [chosen.randrange(len(made)) for _ in range(60)]
        path.write_bytes(START + b"".join(packet(b"x", made[one]) for one in order))
        together = [packet_[1] for _, packet_ in Sources([path], Selection(Selectors())).unordered()]
        assert together == [alone[one] for one in order]
