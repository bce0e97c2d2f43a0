"""`skbcapd split`: its files, read by tshark and capinfos, compared with the original file."""

from __future__ import annotations

import re
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import skbcapd
from skbcapd.analysis.records import Record, records
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.analysis.sources import Sources
from skbcapd.analysis.split import Splitter
from skbcapd.errors import FileError
from skbcapd.pcapng import comment as label
from tests.support import faults
from tests.support.judges import facts, rows
from tests.support.memory import peak
from tests.support.strangers import ISB, PB, SPB, block, comment, interface, options, packet, pcap, process, section

ROOT = Path(skbcapd.__file__).parent.parent
RUN = "import sys; from skbcapd.__main__ import main; sys.exit(main())"
TIME_NS = 1_622_469_600_123_456_789
FIELDS = ("frame.time_epoch", "frame.len", "frame.cap_len", "frame.interface_name", "frame.comment", "eth.type")


def split(file: Path, by: str, directory: Path) -> tuple[int, str]:
    """Exit code and stderr of `skbcapd split`; stdout stays empty."""
    done = subprocess.run(
        [sys.executable, "-m", "skbcapd", "split", str(file), "--by", by, "-d", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the capture file of the test."""
    return tmp_path / "a.pcapng"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """An empty directory for the new files."""
    directory = tmp_path / "parts"
    directory.mkdir()
    return directory


def packets(path: Path) -> Iterator[Record]:
    """All packets of a file."""
    return records(Sources([path], Selection(Selectors())).packets())


def named(name: str, *, order: str = "<", resolution: bytes = b"\x09") -> bytes:
    """An Ethernet interface with a name."""
    return interface(order, opts=options((2, name.encode()), (9, resolution), order=order))


def by_part(parts: Path) -> dict[str, list[list[str]]]:
    """The fields that tshark reads of each file."""
    return {file.name: rows(file, *FIELDS) for file in sorted(parts.iterdir())}


def test_every_packet_is_in_one_file_as_it_was(path: Path, parts: Path) -> None:
    """Times, lengths, interface names and comments are those of the original file, in its order; no
    packet is missing.
    """
    content = section() + named("eth0") + named("eth1") + named("unused")
    tgids = [number * number % 13 for number in range(101)]
    for number, tgid in enumerate(tgids):
        frame = bytes(12) + b"\x88\xb5" + bytes(number)
        opts = process(tgid, f"p{tgid}") if tgid else comment(b"via=kernel", (2, b"\x02\0\0\0"))
        content += packet(frame, opts, number=number % 2, time=TIME_NS + number, wire_len=len(frame) + 7)
        content += block(ISB, bytes(12))
    path.write_bytes(content)
    assert split(path, "tgid", parts) == (0, f"skbcapd: 101 packets in 7 files: {parts}/a.*tgid*.pcapng\n")
    whole, found = rows(path, *FIELDS), by_part(parts)
    assert len(whole) == 101
    expected: dict[str, list[list[str]]] = {}
    for tgid, row in zip(tgids, whole, strict=True):
        expected.setdefault(f"a.tgid-{tgid}.pcapng" if tgid else "a.no-tgid.pcapng", []).append(row)
    assert found == expected


def test_interface_lists_stay_small(path: Path, parts: Path) -> None:
    """A file describes the interfaces of its packets, and no others."""
    many = b"".join(named(f"veth{number}") for number in range(97))
    path.write_bytes(section() + many + packet(bytes(14), process(7, "a"), number=83))
    assert split(path, "tgid", parts)[0] == 0
    found = facts(parts / "a.tgid-7.pcapng")
    assert ("Number of interfaces in file", "1") in found
    assert ("Name", "veth83") in found


def test_sections_keep_their_byte_order(path: Path, parts: Path) -> None:
    """Packets of a big endian section after a little endian one are unchanged."""
    big = comment(b"comm=a pid=7 tgid=7", (2, b"\0\0\0\x02"), order=">")
    frame = bytes(12) + b"\x88\xb5" + b"seven77"
    path.write_bytes(
        section()
        + named("little")
        + packet(frame, process(7, "a"), time=TIME_NS)
        + section(">")
        + named("other", order=">")
        + named("big", order=">")
        + packet(frame, big, ">", number=1, time=TIME_NS + 1) * 2
        + section()
        + named("again")
        + packet(frame, process(7, "a"), time=TIME_NS + 2)
    )
    assert split(path, "comm", parts)[0] == 0
    # Without the name of the interface: Wireshark 4.0 looks it up in the first section.
    fields = [field for field in FIELDS if field != "frame.interface_name"]
    part = parts / "a.comm-a.pcapng"
    assert rows(part, *fields) == rows(path, *fields)
    assert len(rows(part, *fields)) == 4
    names = [value for name, value in facts(part) if name == "Name"]  # capinfos prints them once for each section
    assert (names[:3], set(names)) == (["little", "big", "again"], {"little", "big", "again"})


def test_old_blocks_become_new_ones(path: Path, parts: Path) -> None:
    """Obsolete and simple packet blocks are written as enhanced ones."""
    frame = bytes(12) + b"\x88\xb5"
    old = block(PB, struct.pack("<HH4I", 0, 0, 0, 3, 14, 14) + frame + bytes(2) + comment(b"comm=a tgid=7"))
    simple = block(SPB, struct.pack("<I", 14) + frame)
    path.write_bytes(section() + named("eth0", resolution=b"\x06") + old + simple)
    assert split(path, "tgid", parts)[0] == 0
    found = by_part(parts)
    assert {name: len(packets) for name, packets in found.items()} == {"a.no-tgid.pcapng": 1, "a.tgid-7.pcapng": 1}
    assert found["a.tgid-7.pcapng"][0][:3] == ["0.000003000", "14", "14"]


def test_names_of_files_are_harmless(path: Path, parts: Path) -> None:
    """For any name of a process, its file is in the directory, with a name in printable ASCII,
    different for different processes.
    """
    names = [
        b"../../etc/passwd",
        b".",
        b"",
        b"a b",
        b"a/b",
        b"a%2Fb",
        b"\x1b[31m",
        b"gr\xc3\xb6\xc3\x9fe",
        b"\x00",
        b"-r",
    ]
    names += [b"x" * 200 + b"1", b"x" * 200 + b"2"]
    made = [label.label([("comm", name), ("pid", 7), ("tgid", 7)], 2, 7, 7).options for name in names]
    path.write_bytes(section() + named("eth0") + b"".join(packet(bytes(14), opts) for opts in made))
    assert split(path, "comm", parts)[0] == 0
    found = [file.name for file in parts.iterdir()]
    assert len(found) == len(names)
    assert all(re.fullmatch(r"a\.comm-[A-Za-z0-9._~%-]{0,120}\.pcapng", name) for name in found)
    assert {"a.comm-..%2F..%2Fetc%2Fpasswd.pcapng", "a.comm-a%20b.pcapng", "a.comm-.pcapng"} <= set(found)


def test_by_unit(path: Path, parts: Path) -> None:
    """Units have one file each, whatever their processes."""
    units = ["ssh.service", "cron.service", "ssh.service", ""]
    opts = [process(tgid, "a", more=f" unit={unit}" if unit else "") for tgid, unit in enumerate(units, 7)]
    path.write_bytes(section() + named("eth0") + b"".join(packet(bytes(14), each) for each in opts))
    assert split(path, "unit", parts)[0] == 0
    assert {name: len(found) for name, found in by_part(parts).items()} == {
        "a.no-unit.pcapng": 1,
        "a.unit-cron.service.pcapng": 1,
        "a.unit-ssh.service.pcapng": 2,
    }


@pytest.mark.parametrize("tool", ["gzip", "zstd"])
def test_compressed_files(tool: str, path: Path, parts: Path) -> None:
    """A compressed file is split like the uncompressed one, with the same names."""
    path.write_bytes(section() + named("eth0") + packet(bytes(14), process(7, "a")))
    subprocess.run([tool, "-q", str(path)], check=True)
    (compressed,) = (file for file in path.parent.iterdir() if file.is_file() and file != path)
    assert split(compressed, "tgid", parts)[0] == 0
    assert [file.name for file in parts.iterdir()] == ["a.tgid-7.pcapng"]


@pytest.mark.parametrize(
    ("content", "by", "message"),
    [
        (pcap([b"one"]), "tgid", "a pcap file, which has no processes; expected pcapng"),
        (section() + named("eth0") + packet() * 3, "tgid", "none of 3 packets has the field tgid; nothing to split"),
        (section() + named("eth0") + packet(opts=process(7, "a")), "unit", "none of 1 packets has the field unit"),
        (section() + named("eth0") + packet(opts=comment(b"via=forwarded")), "tgid", "(hint) no packet belongs to a"),
        (section(), "comm", "none of 0 packets has the field comm"),
        (b"garbage", "comm", "begins with 67 61 72 62 61 67 65; expected pcapng or pcap"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else str(value),
)
def test_files_that_cannot_be_split(content: bytes, by: str, message: str, path: Path, parts: Path) -> None:
    """A file without the field gives an error with the reason, and no files."""
    path.write_bytes(content)
    code, said = split(path, by, parts)
    assert (code, list(parts.iterdir())) == (1, [])
    assert said.startswith(f"skbcapd: {path}: ")
    assert message in said
    assert "Traceback" not in said


def test_a_torn_file_is_split_up_to_there(path: Path, parts: Path) -> None:
    """The packets before the end of a truncated file are written; then the offset is reported, with
    exit code 1.
    """
    path.write_bytes(section() + named("eth0") + packet(bytes(14), process(7, "a")) * 3 + packet()[:-1])
    code, said = split(path, "tgid", parts)
    assert code == 1
    assert "the file ends 39 bytes into a block" in said
    assert {name: len(found) for name, found in by_part(parts).items()} == {"a.tgid-7.pcapng": 3}


def test_no_file_is_overwritten(path: Path, parts: Path) -> None:
    """A second run into the same directory is an error; a missing directory is made; modes are 0640."""
    path.write_bytes(section() + named("eth0") + packet(bytes(14), process(7, "a")))
    assert split(path, "tgid", parts)[0] == 0
    (file,) = parts.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    code, said = split(path, "tgid", parts)
    faults.compare("split, files that exist", 1, said.splitlines()[-1].strip())
    hint = "  (hint) move it away, or name another directory with -d\n"
    assert (code, said) == (1, f"skbcapd: {file}: File exists; expected a new file to write\n{hint}")
    new = parts / "new" / "er"
    assert split(path, "tgid", new)[0] == 0
    assert [entry.name for entry in new.iterdir()] == [file.name]
    code, said = split(path, "tgid", file / "new")
    assert (code, said) == (1, f"skbcapd: {file}/new: Not a directory; expected a directory for the new files\n")


def test_by_process_and_container(path: Path, parts: Path) -> None:
    """All packets of programs with one name are in one file, whatever the names of their threads;
    so are those of a container.
    """
    dig = [process(tgid, "isc-net-0000", more=" process=dig container=a/b") for tgid in (7, 8)]
    opts = [*dig, process(9, "dig"), process(10, "cron")]
    path.write_bytes(section() + named("eth0") + b"".join(packet(bytes(14), each) for each in opts))
    assert split(path, "process", parts)[0] == 0
    assert split(path, "container", parts)[0] == 0
    assert {name: len(found) for name, found in by_part(parts).items()} == {
        "a.container-a%2Fb.pcapng": 2,
        "a.no-container.pcapng": 2,
        "a.process-cron.pcapng": 1,
        "a.process-dig.pcapng": 3,
    }


@pytest.mark.parametrize("others", [0, 7])
def test_a_full_disk_leaves_nothing(others: int, path: Path, parts: Path) -> None:
    """If a file cannot be written, all files of the run are deleted, so that the next try works;
    other files stay.
    """
    many = b"".join(packet(bytes(14), process(tgid, "a")) for tgid in range(1, 18))
    path.write_bytes(section() + named("eth0") + many + packet(bytes(9000), process(18, "a")))
    strangers = [parts / f"other-{number}" for number in range(others)]
    for stranger in strangers:
        stranger.touch()
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); {RUN}"
    command = [sys.executable, "-c", full, "split", str(path), "--by", "tgid", "-d", str(parts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"skbcapd: {parts}/a.tgid-18.pcapng: File too large; expected a new file to write\n",
    )
    left = len(list(parts.iterdir())) - len(strangers)
    code = split(path, "tgid", parts)[0]
    faults.compare("split on a full disk", 1, f"{left} files left, exit code {code} of the next try")
    assert (left, code) == (0, 0)
    assert set(strangers) <= set(parts.iterdir())


def test_sections_are_not_held(tmp_path: Path) -> None:
    """With a section per packet and large descriptions, only one section is in memory."""
    path, parts = tmp_path / "a.pcapng", tmp_path / "parts"
    parts.mkdir()
    described = interface(opts=options((2, b"x" * 60_000)))
    with path.open("wb") as file:
        for tgid in range(1, 1010):
            file.write(section() + named("eth0") + described * 7 + packet(bytes(14), process(tgid, "a")))
    code, kib = peak(tmp_path / "peak", "split", str(path), "--by", "tgid", "-d", str(parts), cwd=ROOT)
    assert (code, len(list(parts.iterdir()))) == (0, 1009)
    assert 10 << 10 < kib < 128 << 10  # 424 MB were described


def test_many_processes(path: Path, parts: Path) -> None:
    """More processes than open files are allowed, and more bytes than are buffered, are complete."""
    count, sizes = 1301, 65536
    with path.open("wb") as file:
        file.write(section() + named("eth0"))
        file.writelines(packet(bytes(sizes), process(tgid, "a"), time=TIME_NS) for tgid in range(1, count + 1))
        file.writelines(packet(bytes(14), process(tgid, "a"), time=TIME_NS) for tgid in range(1, count + 1))
    splitter = Splitter(path, "tgid", parts)
    splitter.read(packets(path))
    assert (splitter.packets, len(splitter.paths)) == (2 * count, count)
    start = len(section() + named("eth0"))
    assert sum(file.stat().st_size - start for file in splitter.paths) == path.stat().st_size - start
    assert [row[1] for row in rows(parts / "a.tgid-997.pcapng", *FIELDS)] == ["65536", "14"]


def test_descriptions_are_bounded(tmp_path: Path) -> None:
    """A file whose parts need too many bytes of descriptions gives an error."""
    file = tmp_path / "a.pcapng"
    names = [b"x" * 60_000] * 7  # options of an interface
    described = interface(opts=b"".join(options((2, name))[:-4] for name in names) + bytes(4))
    file.write_bytes(section() + described + b"".join(packet(opts=process(tgid, "a")) for tgid in range(1, 5)))
    splitter = Splitter(file, "tgid", tmp_path)
    splitter._described = (1 << 30) - 3 * len(described) - 100  # a description gets a resolution of time stamps
    with pytest.raises(FileError, match="interfaces in all files"):
        splitter.read(packets(file))
    assert len(splitter.paths) == 4
