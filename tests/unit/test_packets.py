"""The packets of index rows: those of the rows, no others, also of stored files that are compressed or wrong."""

from __future__ import annotations

import collections
import random
import subprocess
import sys
from pathlib import Path

import pytest

from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.analysis.when import Span
from skbcapd.errors import FileError
from skbcapd.fleet.index import index
from skbcapd.fleet.packets import Ranges, packets
from skbcapd.fleet.rows import Row
from skbcapd.pcapng.reader import Reader
from tests.support import stored_files
from tests.support.strangers import interface, options, packet, process, section, udp
from tools import synthetic_fleet

NANOSECONDS = (9, b"\x09")
BASE_NS = 1_622_469_600 * 10**9
COUNT = 2003


class Stored:
    """A file of which ranges are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = self.reads = 0

    def __call__(self, begin: int, end: int | None) -> bytes:
        """Read a range."""
        data = self.path.read_bytes()[begin:end]
        self.bytes += len(data)
        self.reads += 1
        return data


def capture(path: Path, order: str = "<", count: int = COUNT) -> None:
    """Two sections, three interfaces, 7 processes and 23 peers; some blocks are longer than what is read at first."""
    chance = random.Random(3)
    with path.open("wb") as file:
        for part in range(2):
            file.write(section(order))
            for name in (b"eth0", b"wlan0"):
                file.write(interface(order, opts=options((2, name), (3, b"init"), NANOSECONDS, order=order)))
            for number in range(count):
                if number == count // 2:
                    file.write(interface(order, opts=options((2, b"late"), NANOSECONDS, order=order)))
                direction, tgid = chance.choice((1, 2)), chance.randrange(100, 107)
                here, there = "10.0.0.1", f"192.168.7.{chance.randrange(23)}"
                ends = (here, there) if direction == 2 else (there, here)
                made = udp(*ends, size=chance.choice((60, 300, 5000)))
                opts = process(tgid, f"p{tgid}", direction) if order == "<" else b""
                on = chance.randrange(2 if number < count // 2 else 3)
                time_ns = BASE_NS + (part * count + number) * 10**6 + chance.randrange(10**7)
                file.write(packet(made, opts, order, number=on, time=time_ns))


def read(path: Path) -> list[tuple[int, bytes, bytes]]:
    """Time, frame and options of all packets, sorted."""
    with Reader(path) as reader:
        return sorted((time, bytes(frame), opts) for _, _, time, _, frame, opts in reader.packets())


def written(data: bytes, path: Path) -> list[tuple[int, bytes, bytes]]:
    """The same, of a result."""
    path.write_bytes(data)
    return read(path)


def of_peer(found: list[tuple[int, bytes, bytes]], peer: bytes) -> list[tuple[int, bytes, bytes]]:
    """Packets with an address, found by their bytes: not by the package under test."""
    return [each for each in found if peer in (each[1][26:30], each[1][30:34])]


@pytest.mark.parametrize("kind", ["big-endian", *stored_files.KINDS])
def test_the_packets_of_rows(kind: str, tmp_path: Path) -> None:
    """Exactly the packets of the rows of one peer are returned, in the order of time, with the name of the host."""
    path = tmp_path / "a.pcapng"
    order = ">" if kind == "big-endian" else "<"
    capture(path, order)
    stored = stored_files.store(path, "plain" if kind == "big-endian" else kind)
    rows = [row for row in index(stored, "web-1") if "192.168.7.9" in (row.peer_address, row.local_address)]
    ranges = Stored(stored)
    data, count, wrong = packets(stored.name, ranges, rows)
    assert wrong is None
    got = written(data, tmp_path / "out.pcapng")
    wanted = of_peer(read(path), bytes([192, 168, 7, 9]))
    assert (
        len(got) == count == len(wanted) == sum(row.packets_out + row.packets_in + row.packets_unknown for row in rows)
    )
    assert [each[:2] for each in got] == [each[:2] for each in wanted]
    shown = subprocess.run(
        [
            "tshark",
            "-r",
            tmp_path / "out.pcapng",
            "-T",
            "fields",
            "-e",
            "frame.interface_name",
            "-e",
            "frame.time_epoch",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {line.split("\t")[0] for line in shown} == {"web-1: eth0", "web-1: wlan0", "web-1: late"}
    times = [line.split("\t")[1] for line in shown]
    assert times == sorted(times)


@pytest.mark.parametrize("tool", ["gzip", "zstd"])
def test_a_compressed_file_is_read_once(tool: str, tmp_path: Path) -> None:
    """A file that was compressed as a whole is read once, also for the packets of six interfaces."""
    path = tmp_path / "a.pcapng"
    capture(path, count=307)
    stored = stored_files.store(path, tool)
    rows = list(index(stored, "web-1"))
    assert len({row.interface_at for row in rows}) == 6
    ranges = Stored(stored)
    _, count, wrong = packets(stored.name, ranges, rows)
    assert (count, wrong) == (2 * 307, None)
    assert (ranges.reads, ranges.bytes) == (1, stored.stat().st_size)


def test_a_row_is_no_other_row(tmp_path: Path) -> None:
    """One row alone returns its own packets only: not those of another process, interface or granule."""
    path = tmp_path / "a.pcapng"
    capture(path)
    rows = list(index(path, "web-1"))
    assert len({row.offset for row in rows}) > 3
    for row in random.Random(1).sample(rows, 31):
        _, count, wrong = packets("a.pcapng", Stored(path), [row])
        assert wrong is None
        assert count == row.packets_out + row.packets_in


def test_a_rare_peer_reads_little(tmp_path: Path) -> None:
    """Of a file with one connection of a peer, at most 8 % are read."""
    truth = synthetic_fleet.make(tmp_path, 4, 3, 2003)
    read_bytes = size = count = 0
    for path in tmp_path.rglob("*.pcapng"):
        rows = [row for row in index(path, "web-1") if row.peer_address == synthetic_fleet.NEEDLE]
        if rows:
            ranges = Stored(path)
            count += packets(path.name, ranges, rows).packets
            read_bytes += ranges.bytes
            size += path.stat().st_size
    assert count == len(truth) > 7
    assert read_bytes <= 0.08 * size


def test_a_selection_is_exact(tmp_path: Path) -> None:
    """A row is as long as its granule; the selected time is that of packets."""
    path = tmp_path / "a.pcapng"
    capture(path)
    begin_ns, end_ns = BASE_NS + 10**9 + 1, BASE_NS + 3 * 10**9
    selection = Selection(Selectors(span=Span(begin_ns, end_ns)))
    data, _, wrong = packets("a.pcapng", Stored(path), list(index(path, "h")), selection)
    assert wrong is None
    wanted = [each for each in read(path) if begin_ns <= each[0] < end_ns]
    assert written(data, tmp_path / "out.pcapng") == wanted


@pytest.mark.parametrize("fault", ["cut", "other", "length", "description"])
def test_a_file_that_is_not_that_of_the_index(fault: str, tmp_path: Path) -> None:
    """A file that is torn, or was replaced, is an error of one line: never other packets."""
    path = tmp_path / "a.pcapng"
    capture(path)
    rows = [row for row in index(path, "h") if row.peer_address == "192.168.7.9"]
    data = bytearray(path.read_bytes())
    if fault == "cut":
        del data[len(data) // 2 :]
    elif fault == "other":
        data[28:] = random.Random(5).randbytes(len(data) - 28)
    elif fault == "length":
        for row in rows:
            at = row.offset + row.first_at + 4
            data[at : at + 4] = b"\xfc\xff\xff\x7f"
    else:
        at = rows[0].interface_offset + rows[0].interface_at
        data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    wrong = packets("a.pcapng", Stored(path), rows).wrong
    assert wrong is not None
    assert "\n" not in wrong.message
    assert "skbcapd index" in wrong.hint


@pytest.mark.fuzz
def test_hostile_rows(tmp_path: Path) -> None:
    """Rows with any numbers return packets of the file, or an error; never a crash."""
    path = tmp_path / "a.pcapng"
    capture(path)
    rows, chance = list(index(path, "h")), random.Random(11)
    wide = {"offset", "length", "first_at", "last_at", "interface_offset", "interface_length", "interface_at"}
    for _ in range(61):
        row = chance.choice(rows)
        values = row._asdict() | {
            name: chance.choice((0, 1, 4, 1 << 20, 1 << 40)) for name in chance.sample(sorted(wide), 2)
        }
        changed = Row(**values)
        if changed.first_at > changed.last_at:
            continue
        wrong = packets("a.pcapng", Stored(path), [changed]).wrong
        assert wrong is None or "\n" not in wrong.message


@pytest.mark.parametrize("kind", ["gzip members", "zstd members"])
def test_only_the_members_of_rows_are_read(kind: str, tmp_path: Path) -> None:
    """Of a file whose granules are compressed alone, the members of the rows and of the interfaces are read, once."""
    path = tmp_path / "a.pcapng"
    capture(path)
    stored = stored_files.store(path, kind)
    rows = list(index(stored, "h"))
    places = sorted({(row.offset, row.length) for row in rows})
    assert len(places) > 7
    chosen = [row for row in rows if (row.offset, row.length) == places[4]]
    ranges = Stored(stored)
    data, count, wrong = packets(stored.name, ranges, chosen)
    assert wrong is None
    assert count == sum(row.packets_out + row.packets_in for row in chosen) > 101
    described = {(row.interface_offset, row.interface_length) for row in chosen}
    assert ranges.bytes == sum(length for _, length in described) + places[4][1]
    assert ranges.bytes < 0.5 * stored.stat().st_size
    wanted = {each[:2] for each in read(path)}
    assert all(each[:2] in wanted for each in written(data, tmp_path / "out.pcapng"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes, list[Row]]]:
    """A capture as it can be stored: by kind the path, the bytes and the index."""
    path = tmp_path_factory.mktemp("files") / "a.pcapng"
    capture(path, count=701)
    made = {}
    for kind in stored_files.KINDS:
        stored = stored_files.store(path, kind)
        made[kind] = stored, stored.read_bytes(), list(index(stored, "h"))
    return made


def of_bytes(data: bytes) -> Ranges:
    """A file of which ranges are read."""
    return lambda begin, end: data[begin:end]


def total(rows: list[Row]) -> int:
    """Packets of rows."""
    return sum(row.packets_out + row.packets_in + row.packets_unknown for row in rows)


@pytest.mark.parametrize("fault", ["torn", "changed"])
@pytest.mark.parametrize("kind", stored_files.KINDS)
def test_one_bad_place_loses_no_other(
    kind: str, fault: str, files: dict[str, tuple[Path, bytes, list[Row]]], tmp_path: Path
) -> None:
    """Where a stored file is torn or damaged, one line says it; the packets of all other granules are returned, each
    once.
    """
    stored, data, rows = files[kind]
    places = sorted({(row.offset, row.length) for row in rows})
    offset, length = places[len(places) // 2]
    middle = offset + length // 2 if length else len(data) // 2
    size = min(6000, (length or len(data)) // 4)
    damaged = random.Random(5).randbytes(size) + data[middle + size :] if fault == "changed" else b""
    found, count, wrong = packets(stored.name, of_bytes(data[:middle] + damaged), rows)
    assert wrong is not None
    assert "\n" not in wrong.message
    assert wrong.message.startswith(f"{stored.name}: ")
    others = total([row for row in rows if row.offset < offset or (fault == "changed" and row.offset > offset)])
    assert others <= count < total(rows)
    got = collections.Counter(each[:2] for each in written(found, tmp_path / "out.pcapng"))
    assert got.total() == count
    strangers = got - collections.Counter(each[:2] for each in read(files["plain"][0]))
    assert strangers.total() <= (count - others if fault == "changed" else 0)


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd members"])
@pytest.mark.parametrize(
    "changed",
    [
        {"offset": 1 << 40},
        {"offset": 1 << 40, "length": 1 << 40},
        {"first_at": 1 << 47, "last_at": 1 << 47},
        {"last_at": 1 << 47},
        {"first_at": 7},
        {"interface_offset": 1 << 40, "interface_length": 60},
        {"interface_at": 1 << 40},
        {"offset": 12345, "length": 67890},
    ],
)
def test_rows_that_lead_nowhere(
    changed: dict[str, int], kind: str, files: dict[str, tuple[Path, bytes, list[Row]]]
) -> None:
    """Rows whose offsets or lengths are outside of the file, or not at blocks: one line; the packets of all other rows
    are returned, each once.
    """
    stored, data, rows = files[kind]
    good = [row for row in rows if row.process_pid != 103]
    bad = [Row(**(row._asdict() | changed)) for row in rows if row.process_pid == 103]
    _, count, wrong = packets(stored.name, of_bytes(data), good + bad)
    assert total(good) <= count <= total(rows)
    assert wrong is not None
    assert "\n" not in wrong.message


@pytest.mark.parametrize("kind", stored_files.KINDS)
def test_rows_twice_and_too_long(kind: str, files: dict[str, tuple[Path, bytes, list[Row]]]) -> None:
    """Rows that are there twice, or claim more bytes than the file has: each packet is returned once."""
    stored, data, rows = files[kind]
    few = [row for row in rows if row.process_pid == 103]
    _, count, wrong = packets(stored.name, of_bytes(data), few * 2)
    assert (count, wrong and wrong.message) == (
        total(few),
        f"{stored.name}: found {count} packets; the index says {2 * count}",
    )
    last = max(few, key=lambda row: (row.offset, row.first_at))
    _, count, wrong = packets(stored.name, of_bytes(data), [last._replace(length=1 << 47)])
    assert (count, wrong) == (total([last]), None)


@pytest.mark.parametrize("kind", stored_files.KINDS)
def test_a_torn_file_gives_what_its_index_has(kind: str, files: dict[str, tuple[Path, bytes, list[Row]]]) -> None:
    """Of a file that was torn when it was indexed, all packets of the rows are returned."""
    original, data, _ = files[kind]
    stored = original.with_name(f"torn-{original.name}")
    for size in (len(data) // 3, len(data) - 1):
        stored.write_bytes(data[:size])
        rows: list[Row] = []
        with pytest.raises(FileError):
            rows.extend(index(stored, "h"))  # keeps those before the error
        _, count, wrong = packets(stored.name, of_bytes(data[:size]), rows)
        assert rows
        assert count == total(rows)
        assert (wrong is None) == (kind == "plain")


def test_fleet_without_its_libraries(tmp_path: Path) -> None:
    """Where the libraries are not installed, one line says how to install them."""
    program = "import sys; sys.modules['duckdb'] = None; from skbcapd.__main__ import main; sys.exit(main())"
    for name in ("pyarrow", "fsspec"):
        program = program.replace("import sys;", f"import sys; sys.modules['{name}'] = None;")
    done = subprocess.run(
        [sys.executable, "-c", program, "fleet", "query", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "docs/fleet.md shows how to install them" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["extract", "d"],
        ["query", "d", "-w", "x"],
        ["compact", "d", "--format", "json"],
        ["compact", "d", "--peer", "10.0.0.1"],
        ["compact", "d", "--host", "web"],
        ["compact", "d", "--pid", "1"],
        ["compact", "d", "--from", "10:00"],
        ["query", "d", "--replace"],
        ["extract", "d", "-w", "x", "--names", "ecs"],
    ],
)
def test_an_option_of_another_action(words: list[str]) -> None:
    """An option that an action does not have is an error, not ignored."""
    done = subprocess.run(
        [sys.executable, "-m", "skbcapd", "fleet", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "expected" in done.stderr
    assert "not installed" not in done.stderr


@pytest.mark.parametrize("option", ["--dropped", "--dropped-at"])
def test_no_selector_of_dropped_packets(option: str, tmp_path: Path) -> None:
    """An index has no dropped packets: their selectors are unknown to `fleet`, also without a table."""
    words = [sys.executable, "-m", "skbcapd", "fleet"]
    done = subprocess.run([*words, "query", str(tmp_path), option, "*"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"unrecognized arguments: {option}" in done.stderr
    shown = subprocess.run([*words, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--direction" in shown
    assert "--dropped" not in shown
