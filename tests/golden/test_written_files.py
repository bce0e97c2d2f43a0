"""Files of our writer, read by tshark and capinfos without a warning."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader

from skbcapd.attribution.processes import Process
from skbcapd.pcapng import blocks
from skbcapd.pcapng.comment import comment, packet_options, parse
from skbcapd.pcapng.interface import Interface
from skbcapd.pcapng.writer import PcapngWriter
from tests.support import stored_files
from tests.support.frames import NTP_FRAME
from tests.support.judges import facts, judge, rows

CHRONYD = comment([("comm", b"chronyd"), ("pid", 1058), ("tgid", 1058)])
OPTIONS = packet_options(CHRONYD, blocks.DIRECTION_OUT, 1058, 1058)
TIME_NS = 1_622_469_600_123_456_789
ETH0 = Interface(b"eth0", "netns host", 1, 262144, bytes.fromhex("3c7c3f2023bd"), 10**10, "udp port 123")
TUN0 = Interface(b"tun0", "", 101, 262144, None, None, None)


@contextmanager
def capture(path: Path, *interfaces: Interface) -> Iterator[PcapngWriter]:
    """A new file with one section and its interfaces."""
    with path.open("wb") as file, PcapngWriter(file) as writer:
        writer.write_section("x86_64", "Linux 6.1.0-1-amd64", "skbcapd 0.1", "a section")
        for interface in interfaces:
            writer.write_interface(interface)
        yield writer


def with_comments(path: Path, texts: list[str]) -> None:
    """A file with one packet of the seed frame per comment."""
    with capture(path, ETH0) as writer:
        for text in texts:
            options = packet_options(text, blocks.DIRECTION_OUT, 1, 1)
            writer.write_packet(0, TIME_NS, NTP_FRAME, len(NTP_FRAME), options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the capture file of the test."""
    return tmp_path / "test.pcapng"


def test_capinfos_shows_the_whole_description(path: Path) -> None:
    """Machine, system, program, each interface with its options, and its packets and statistics are
    read.
    """
    with capture(path, ETH0, TUN0) as writer:
        for _ in range(7):
            writer.write_packet(0, TIME_NS, NTP_FRAME, 90, OPTIONS)
        for _ in range(5):
            writer.write_packet(1, TIME_NS, NTP_FRAME[14:], 76, OPTIONS)
        writer.write_statistics(0, TIME_NS, TIME_NS - 5, TIME_NS, 11, 0, 7, 0, 7)
        writer.write_statistics(1, TIME_NS, received=5)
    read = facts(path)
    for fact in (
        ("File type", "pcapng"),
        ("Number of packets", "12"),
        ("Capture hardware", "x86_64"),
        ("Capture oper-sys", "Linux 6.1.0-1-amd64"),
        ("Capture application", "skbcapd 0.1"),
        ("Capture comment", "a section"),
    ):
        assert fact in read
    resolution = [("Time precision", "nanoseconds (9)"), ("Time ticks per second", "1000000000")]
    resolution += [("Time resolution", "0x09")]
    assert read[read.index(("Interface #0 info", "")) :] == [
        ("Interface #0 info", ""),
        ("Name", "eth0"),
        ("Description", "netns host"),
        ("Encapsulation", "Ethernet (1 - ether)"),
        ("Speed", "10000000000"),
        ("Capture length", "262144"),
        *resolution,
        ("Filter string", "udp port 123"),
        ("Operating system", "Linux 6.1.0-1-amd64"),
        ("Number of stat entries", "1"),
        ("Number of packets", "7"),
        ("Interface #1 info", ""),
        ("Name", "tun0"),
        ("Encapsulation", "Raw IP (7 - rawip)"),
        ("Capture length", "262144"),
        *resolution,
        ("Operating system", "Linux 6.1.0-1-amd64"),
        ("Number of stat entries", "1"),
        ("Number of packets", "5"),
    ]


def test_seed_frame_is_read_completely(path: Path) -> None:
    """The frame of the first question is shown byte for byte, dissected as NTP, with its process."""
    with capture(path, ETH0) as writer:
        writer.write_packet(0, TIME_NS, NTP_FRAME, 90, OPTIONS)
    (packet,) = json.loads(judge(path, "tshark", "-n", "-T", "jsonraw"))
    assert packet["_source"]["layers"]["frame_raw"][0] == NTP_FRAME.hex()
    fields = ("frame.protocols", "frame.comment", "frame.interface_name", "frame.interface_description")
    assert rows(path, *fields) == [["eth:ethertype:ip:udp:ntp", CHRONYD, "eth0", "netns host"]]


def test_the_documented_filters_find_what_they_should(path: Path) -> None:
    """Filters on the comment find the packets of chronyd, and none of a process that imitates its
    name.
    """
    comms = [b"chronyd", b"sshd", b"x comm=chronyd", b'" comm=chronyd', b"\ncomm=chronyd", b"chronyd2", b"xchronyd"]
    comms += [b"chronyd", b"tmux: server"]
    with_comments(
        path, [comment([("comm", comm), ("pid", 1000 + at), ("ppid", 1000)]) for at, comm in enumerate(comms)]
    )

    def found(where: str) -> list[int]:
        return [int(number) - 1 for (number,) in rows(path, "frame.number", where=where)]

    assert found('frame.comment contains "comm=chronyd"') == [0, 5, 7]
    assert found('frame.comment contains "comm=chronyd "') == [0, 7]
    assert found(r'frame.comment matches "(^| )pid=1000( |$)"') == [0]
    assert found(r'frame.comment contains "comm=\"tmux: server\""') == [8]
    assert found(r'frame.comment contains r"\x0a"') == [4]
    assert found("frame.packet_flags_direction == 2 and frame.packet_flags & 2") == list(range(len(comms)))


def test_hostile_names_survive_the_trip_through_tshark(path: Path) -> None:
    """The comment that tshark prints parses back to the bytes of the process name."""
    chosen = random.Random(1058)
    names = [bytes([byte]) for byte in range(256)] + [chosen.randbytes(15) for _ in range(257)] + [b""]
    with_comments(path, [comment([("comm", name), ("pid", 1)]) for name in names])
    read = [parse(text) for (text,) in rows(path, "frame.comment")]
    assert read == [[("comm", name), ("pid", b"1")] for name in names]


def test_time_is_exact_to_the_nanosecond(path: Path) -> None:
    """Nanoseconds are read as written, around the limits of the two time words and up to the year
    2262.
    """
    times = [0, 1, 999_999_999, 2**32 - 1, 2**32, TIME_NS, TIME_NS + 1, 2**62 + 1, 2**63 - 1]
    with capture(path, ETH0) as writer:
        for time_ns in times:
            writer.write_packet(0, time_ns, NTP_FRAME, 90, OPTIONS)
    assert [int(text.replace(".", "")) for (text,) in rows(path, "frame.time_epoch")] == times


def test_flags_are_read(path: Path) -> None:
    """Each direction, reception type and offload bit is at the position of the draft."""
    receptions = [blocks.RECEPTION_UNICAST, blocks.RECEPTION_MULTICAST, blocks.RECEPTION_BROADCAST]
    receptions.append(blocks.RECEPTION_PROMISCUOUS)
    directions = (blocks.DIRECTION_IN, blocks.DIRECTION_OUT)
    offloads = (blocks.CHECKSUM_NOT_READY, blocks.CHECKSUM_VALID, blocks.SEGMENTATION_OFFLOADED)
    words = [0, *(d | r | o for d in directions for r in (0, *receptions) for o in (0, *offloads, sum(offloads)))]
    with capture(path, ETH0) as writer:
        for word in words:
            writer.write_packet(0, TIME_NS, NTP_FRAME, 90, packet_options(CHRONYD, word, 1, 1))
    names = ("", "_direction", "_reception_type")
    read = rows(path, *("frame.packet_flags" + name for name in names))
    assert [[int(text, 0) for text in row] for row in read] == [[word, word & 3, word >> 2 & 7] for word in words]


def test_cut_frames_and_every_padding(path: Path) -> None:
    """Frames of 0 to 67 bytes, complete and cut, keep their captured and original lengths."""
    with capture(path, ETH0) as writer:
        for size in range(68):
            writer.write_packet(0, TIME_NS, NTP_FRAME[:size], size, OPTIONS)
            writer.write_packet(0, TIME_NS, NTP_FRAME[:size], 65549, b"")
    expected = [[str(size), length] for size in range(68) for length in (str(size), "65549")]
    assert rows(path, "frame.cap_len", "frame.len") == expected


def test_frames_of_the_largest_snaplen(path: Path) -> None:
    """A 262144-byte frame, as with GSO, is read completely."""
    with capture(path, ETH0) as writer:
        writer.write_packet(0, TIME_NS, NTP_FRAME + bytes(262144 - 90), 524288, OPTIONS)
    assert rows(path, "frame.cap_len", "frame.len", "frame.comment") == [["262144", "524288", CHRONYD]]


def test_ready_blocks_and_written_packets_mix(path: Path) -> None:
    """Blocks of the kernel program are between those of the writer, in the order of writing."""
    frame = NTP_FRAME + b"\0\0"  # padding
    body = b"".join(n.to_bytes(4, "little") for n in (0, TIME_NS >> 32, TIME_NS & 0xFFFFFFFF, 90, 90)) + frame + OPTIONS
    length = (12 + len(body)).to_bytes(4, "little")
    block = b"\x06\0\0\0" + length + body + length
    with capture(path, ETH0) as writer:
        writer.write_packet(0, TIME_NS, NTP_FRAME, 90, OPTIONS)
        writer.write_blocks(memoryview(block * 3))
        writer.write_packet(0, TIME_NS, NTP_FRAME, 90, OPTIONS)
    assert path.read_bytes().endswith(block * 5)
    assert rows(path, "frame.time_epoch", "frame.comment") == [["1622469600.123456789", CHRONYD]] * 5


def test_devices_of_any_kind(path: Path) -> None:
    """Interfaces without address, speed or filter, of many link types, and with any name that Linux
    allows, are read.
    """
    names = [b"eth0", b"\xff\xfe", "größe".encode(), b"\x1b[31m", b'a"b\\', b"x" * 15]
    link_types = [1, 101, 113, 276, 9, 824]
    devices = [Interface(name, "", kind, 0, None, None, None) for name, kind in zip(names, link_types, strict=True)]
    with capture(path, *devices):
        pass
    assert [value for name, value in facts(path) if name == "Name"][:3] == ["eth0", r"\xff\xfe", "größe"]


@pytest.mark.parametrize("interfaces", [(), (ETH0,), (ETH0, TUN0)])
def test_files_without_packets(path: Path, interfaces: tuple[Interface, ...]) -> None:
    """A file without packets is valid."""
    with capture(path, *interfaces):
        pass
    assert rows(path, "frame.number") == []
    read = facts(path)
    assert ("Number of packets", "0") in read
    names = [interface.name.decode() for interface in interfaces]
    assert [value for name, value in read if name == "Name"] == names


def test_process_blocks_cost_no_packet(path: Path) -> None:
    """Process blocks, also hostile ones, are read without a warning, as records that are not
    packets.
    """
    names = [b"curl", b"\x1b[31m\n\xff", b"x" * 15, b""]
    comments = [comment([("comm", name), ("tgid", 1058)]) for name in names]
    with capture(path, ETH0) as writer:
        for name, text in zip(names, comments, strict=True):
            arguments = b"curl\0" + bytes(range(1, 256))
            process = Process(1058, 7, name, 1, 0, b"root", b"/bin/" + name, arguments, b"/")
            writer.write_process(process, TIME_NS - 10**9)
            writer.write_packet(0, TIME_NS, NTP_FRAME, 90, packet_options(text, blocks.DIRECTION_OUT, 1058, 1058))

    assert ("Number of packets", str(len(names))) in facts(path)
    read = rows(path, "frame.protocols", "frame.comment")
    # tshark 4.0 shows custom blocks; newer versions read this one without a row.
    assert [text.replace("\\\\", "\\") for protocols, text in read if protocols != "data"] == comments
    assert all(text == "" for protocols, text in read if protocols == "data")


def test_two_sections(path: Path) -> None:
    """A second section with its own interfaces is read; ids start at 0 again.

    The name is not compared: tshark 4.0 looks it up in the first section.
    """
    with capture(path, TUN0, ETH0) as writer:
        writer.write_packet(1, TIME_NS, NTP_FRAME, 90, OPTIONS)
        writer.write_section("x86_64", "Linux", "skbcapd 0.1")
        writer.write_packet(writer.write_interface(ETH0), TIME_NS, NTP_FRAME, 90, OPTIONS)
    fields = ("frame.section_number", "frame.interface_id", "frame.protocols")
    protocols = "eth:ethertype:ip:udp:ntp"
    assert rows(path, *fields) == [["1", "1", protocols], ["2", "0", protocols]]


def test_scapy_agrees(path: Path) -> None:
    """The reader of scapy returns the same frames and times from the file."""
    written = [(NTP_FRAME[:size], TIME_NS + size) for size in range(0, 90, 7)]
    with capture(path, ETH0) as writer:
        for frame, time_ns in written:
            writer.write_packet(0, time_ns, frame, 90, packet_options(None, blocks.DIRECTION_IN, 0, 0))
        writer.write_statistics(0, TIME_NS, received=len(written))
    with closing(RawPcapNgReader(str(path))) as reader:  # that of scapy 2.5 is no context manager
        assert [(frame, meta.tshigh << 32 | meta.tslow) for frame, meta in reader] == written


def test_seekable_files(path: Path) -> None:
    """Judges read a file of files.seekable as the one that is not compressed; those of Wireshark 4.0, in
    Debian 12, only if it is compressed with gzip, as the documentation says.
    """
    chance = random.Random(7)
    with capture(path, ETH0) as writer:
        for number in range(1501):
            frame = NTP_FRAME + chance.randbytes(1200)
            writer.write_packet(0, TIME_NS + number, frame, len(frame), OPTIONS)
    fields = ("frame.number", "frame.len", "frame.time_epoch", "frame.interface_name", "frame.comment")
    wanted = rows(path, *fields)
    assert len(wanted) == 1501
    said = subprocess.run(["tshark", "--version"], capture_output=True, text=True, check=True).stdout
    for kind in stored_files.KINDS[3:4] if "(Wireshark) 4.0." in said else stored_files.KINDS[3:]:
        stored = stored_files.store(path, kind)
        assert rows(stored, *fields) == wanted
        assert dict(facts(stored))["Number of packets"] == "1501"
