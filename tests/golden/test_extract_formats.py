"""Files for other programs: pcap, frames as on the wire, checksums, order; read by those programs."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dpkt
import pytest
from scapy.layers.inet import IP, TCP, UDP, defragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop, Jumbo, defragment6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap

from tests.support import blocks, traffic
from tests.support.command import run
from tests.support.judges import facts, judge, rows
from tests.support.strangers import ISB, block, interface, options, packet, section, udp

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2", id=65535), IPv6(src="fd00::1", dst="fd00::2")
DATA = bytes(range(256)) * 64
HEAD = section() + traffic.described("eth0", "network namespace of init")
NOT_READY, OFFLOADED = 1 << 9, 1 << 11
FIELDS = ("frame.time_epoch", "frame.len", "frame.cap_len", "frame.protocols")


def written(path: Path) -> list[blocks.Packet]:
    """All packets of a file."""
    return blocks.packets(path.read_bytes())


def flagged(flags: int) -> bytes:
    """Options with flags."""
    return options((1, b"comm=a"), (2, struct.pack("<I", flags)))


def unfinished(frame: Packet, kind: type[Packet]) -> bytes:
    """A frame whose checksum was left to the network card."""
    frame = frame.copy()
    frame[kind].chksum = 0x1234
    return bytes(frame)


def wrong_sums(path: Path) -> list[list[str]]:
    """What tshark says of packets whose checksums are not right."""
    return [row for row in checked(path) if "0" in ",".join(row)]


def checked(path: Path) -> list[list[str]]:
    """Whether tshark finds the checksums of each packet right (1) or wrong (0)."""
    says = ["-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    fields = ["-e", "tcp.checksum.status", "-e", "udp.checksum.status", "-e", "ip.checksum.status"]
    return [line.split("\t") for line in judge(path, "tshark", "-n", *says, "-T", "fields", *fields).splitlines()]


@pytest.mark.parametrize("unit", ["ns", "us"])
def test_pcap_of_each_link_type(unit: str, path: Path, tmp_path: Path) -> None:
    """Each file has one link type and all its packets, which tshark, tcpdump, editcap and scapy read."""
    traffic.write(path)
    out = tmp_path / "out.pcap"
    code, _, said = run("extract", path, "-w", out, "--format", "pcap", "--time", unit)
    total = 0
    for name, display, link in (("ethernet", "frame.interface_id != 2", 1), ("raw", "frame.interface_id == 2", 101)):
        file = tmp_path / f"out.{name}.pcap"
        expected = rows(path, *FIELDS, where=display)
        if unit == "us":
            expected = [[row[0][:-3] + "000", *row[1:]] for row in expected]
        found = rows(file, *FIELDS)
        assert [row[1:] for row in found] == [row[1:] for row in expected]
        assert [row[0].ljust(20, "0") for row in found] == [row[0] for row in expected]
        assert f"{len(found)} packets to {file} (link type {name})\n" in said
        count = subprocess.run(["tcpdump", "--count", "-r", file], capture_output=True, text=True, check=True)
        assert count.stdout == f"{len(found)} packets\n"
        assert len(rdpcap(str(file))) == len(found)
        assert struct.unpack("<I", file.read_bytes()[20:24]) == (link,)
        total += len(found)
    assert (code, total) == (0, traffic.COUNT)
    assert "skbcapd: pcap has no comments, interfaces and directions: they are not in the file\n" in said
    assert not out.exists()
    assert not list(tmp_path.glob("*.part"))


def test_pcap_of_one_link_type(path: Path, tmp_path: Path) -> None:
    """One link type goes to the file that is named; so does nothing at all; standard output takes one only."""
    traffic.write(path)
    out = tmp_path / "out.pcap"
    code, _, said = run("extract", path, "-w", out, "--format", "pcap", "--interface", "eth0")
    assert (code, said.splitlines()[0]) == (0, f"skbcapd: 682 packets to {out} (link type ethernet)")
    assert ("Number of packets", "682") in facts(out)
    assert run("extract", path, "-w", out, "--format", "pcap", "--comm", "nobody")[0] == 0
    assert ("Number of packets", "0") in facts(out)
    code, stdout, said = run("extract", path, "-w", "-", "--format", "pcap", "--interface", "wg0")
    assert (code, said) == (0, "")
    done = subprocess.run(["tcpdump", "--count", "-r", "-"], input=stdout, capture_output=True, check=True)
    assert done.stdout == b"327 packets\n"
    code, _, said = run("extract", path, "-w", "-", "--format", "pcap")
    assert (code, said.splitlines()[0]) == (
        1,
        "skbcapd: packets of several link types (ethernet, raw); expected one, as a pcap file has only one",
    )


def test_several_link_types_are_said(path: Path, out: Path) -> None:
    """Who writes several link types into one pcapng file is told, with the command that helps: it does."""
    traffic.write(path)
    said = run("extract", path, "-w", out)[2].splitlines()
    assert said[1].startswith(
        f"skbcapd: {out} has several link types (ethernet, raw); for programs that read only one: "
    )
    command = said[1].partition("skbcapd split ")[2].split()
    assert run("split", *command, "-d", out.parent)[0] == 0
    for file in out.parent.glob("out.link-type-*.pcapng"):
        subprocess.run(["tcpdump", "--count", "-r", file], capture_output=True, check=True)


def test_microseconds_in_pcapng(path: Path, out: Path) -> None:
    """--time us also holds for pcapng; a microsecond is what is left of a time stamp."""
    path.write_bytes(HEAD + packet(b"x" * 20, time=traffic.BEGIN_NS + 1_999))
    assert run("extract", path, "-w", out, "--time", "us")[0] == 0
    assert rows(out, "frame.time_epoch") == [["1622469600.000001000"]]
    assert ("Time resolution", "0x06") in facts(out)


@pytest.mark.parametrize("link", ["plain", "vlan"])
@pytest.mark.parametrize("network", [V4, V6], ids=["IPv4", "IPv6"])
def test_tcp_is_cut_as_on_the_wire(network: Packet, link: str, path: Path, out: Path) -> None:
    """Segments carry the same bytes in order, with sequence numbers, lengths, flags and checksums that are right."""
    ether = ETHER / Dot1Q(vlan=7) if link == "vlan" else ETHER
    large = (
        ether
        / network
        / TCP(sport=7, dport=8, seq=0xFFFFFF00, flags="CPFA", options=[("Timestamp", (1, 2))])
        / Raw(DATA)
    )
    small = ether / network / TCP(sport=7, dport=8, flags="A") / Raw(b"small")
    path.write_bytes(
        HEAD
        + packet(unfinished(large, TCP), flagged(OFFLOADED | NOT_READY | 2), time=traffic.BEGIN_NS)
        + packet(bytes(small), flagged(2), time=traffic.BEGIN_NS + 1)
    )
    assert run("extract", path, "-w", out, "--segment", "1500")[0] == 0
    found = written(out)
    frames = [Ether(one.data) for one in found]
    segments = frames[:-1]
    assert b"".join(bytes(one[TCP].payload) for one in segments)[: len(DATA)] == DATA
    assert sum(len(bytes(one[TCP].payload)) for one in segments) == len(DATA)
    assert {len(one[type(network)]) for one in segments[:-1]} == {1500}
    assert [one[TCP].seq for one in segments] == [
        (0xFFFFFF00 + at) % (1 << 32) for at in range(0, len(DATA), len(segments[0][TCP].payload))
    ]
    assert [str(one[TCP].flags) for one in segments] == ["AC", *["A"] * (len(segments) - 2), "FPA"]
    assert [one.flags for one in found] == [2] * len(found)
    assert {one.time_ns for one in found[:-1]} == {traffic.BEGIN_NS}
    assert bytes(frames[-1]) == bytes(small)
    if network is V4:
        assert [one[IP].id for one in segments] == [(65535 + n) % 65536 for n in range(len(segments))]
    assert all(one.comment == "comm=a" for one in found)
    assert not wrong_sums(out)
    assert len(checked(out)) == len(found) == -(-len(DATA) // len(segments[0][TCP].payload)) + 1


@pytest.mark.parametrize("network", [V4, V6], ids=["IPv4", "IPv6"])
def test_udp_is_cut_into_fragments(network: Packet, path: Path, out: Path) -> None:
    """Fragments come together to the datagram again, whose checksum is right."""
    large = ETHER / network / UDP(sport=7, dport=8) / Raw(DATA)
    path.write_bytes(HEAD + packet(unfinished(large, UDP), flagged(OFFLOADED | NOT_READY), time=7))
    assert run("extract", path, "-w", out, "--segment", "1400")[0] == 0
    found = written(out)
    frames = [Ether(one.data) for one in found]
    assert max(len(one[type(network)]) for one in frames) <= 1400
    whole = defragment(frames)[0] if network is V4 else IPv6(bytes(defragment6([one[IPv6] for one in frames])))
    assert bytes(whole[UDP]) == bytes(large[UDP])
    assert not wrong_sums(out)
    lengths = rows(out, "udp.length", "udp.payload")
    assert [row[0] for row in lengths if row[0]] == [str(len(DATA) + 8)]


def test_big_tcp_of_ipv6(path: Path, out: Path) -> None:
    """A packet above 64 KiB loses the header that says so."""
    data = DATA * 5
    head = IPv6ExtHdrHopByHop(options=[Jumbo(jumboplen=8 + 20 + len(data))])
    large = ETHER / IPv6(src="fd00::1", dst="fd00::2", plen=0) / head / TCP(sport=7, dport=8) / Raw(data)
    path.write_bytes(HEAD + packet(bytes(large), flagged(OFFLOADED)))
    assert run("extract", path, "-w", out, "--segment", "9000")[0] == 0
    frames = [Ether(one.data) for one in written(out)]
    assert b"".join(bytes(one[TCP].payload) for one in frames) == data
    assert all(one[IPv6].nh == 6 and len(one[IPv6]) <= 9000 for one in frames)
    assert not wrong_sums(out)


def test_cut_frames_keep_their_lengths(path: Path, out: Path) -> None:
    """Of a frame that was cut by snaplen, the segments have what was captured, and their true lengths."""
    large = ETHER / V4 / TCP(sport=7, dport=8) / Raw(DATA)
    path.write_bytes(HEAD + packet(bytes(large)[:2000], flagged(OFFLOADED | NOT_READY), wire_len=len(large)))
    assert run("extract", path, "-w", out, "--segment", "1500")[0] == 0
    found = written(out)
    assert sum(one.original_len - 54 for one in found) == len(DATA)
    assert b"".join(one.data[54:] for one in found) == DATA[: 2000 - 54]
    assert [one.flags for one in found[:3]] == [0, NOT_READY, NOT_READY]
    assert all(len(one.data) >= 54 for one in found)


def test_what_is_not_cut(path: Path, out: Path) -> None:
    """A large frame without known headers stays as it is, and is counted; an MTU must be one."""
    other = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x88B5) / Raw(DATA)
    path.write_bytes(HEAD + packet(bytes(other), flagged(0)))
    code, _, said = run("extract", path, "-w", out, "--segment", "1500")
    assert code == 0
    assert "skbcapd: 1 frames larger than the MTU were not cut: they have no known headers\n" in said
    assert written(out) == written(path)
    assert "found '100'; expected 576 to 65535" in run("extract", path, "-w", out, "--segment", "100")[2]


def test_checksums_are_filled(path: Path, out: Path) -> None:
    """Only packets that are marked get a checksum, which is right; what cannot have one is counted."""
    tcp, udp = ETHER / V4 / TCP(sport=7, dport=8) / Raw(b"odd"), ETHER / Dot1Q(vlan=7) / V6 / UDP(sport=7, dport=8)
    path.write_bytes(
        HEAD
        + packet(unfinished(tcp, TCP), flagged(NOT_READY))
        + packet(unfinished(udp, UDP), flagged(NOT_READY | 1), time=1)
        + packet(unfinished(tcp, TCP), flagged(2), time=2)
        + packet(bytes(tcp)[:-1], flagged(NOT_READY), wire_len=len(tcp), time=3)
        + packet(b"x" * 20, flagged(NOT_READY), time=4)
        + packet(bytes(tcp), b"", time=5)
    )
    code, _, said = run("extract", path, "-w", out, "--fill-checksums")
    assert code == 0
    assert "skbcapd: 2 checksums were not computed: the frame is cut, or is neither TCP nor UDP\n" in said
    found = written(out)
    assert [one.data for one in found[:2]] == [bytes(tcp), bytes(udp)]
    assert [one.flags for one in found] == [0, 1, 2, NOT_READY, NOT_READY, 0]
    assert [one.data for one in found[2:]] == [one.data for one in written(path)[2:]]


def late(count: int) -> Iterator[int]:
    """Times, some of which are late by microseconds."""
    for number in range(count):
        yield traffic.BEGIN_NS + number * 1000 - (5000 if number % 7 == 0 else 0)


def test_strict_order(path: Path, out: Path) -> None:
    """--sort puts packets that are late in their place; capinfos finds strict time order, and none is lost."""
    times = list(late(1009))
    path.write_bytes(HEAD + b"".join(packet(struct.pack("<Q", time) + bytes(12), time=time) for time in times))
    assert ("Strict time order", "False") in facts(path)
    assert run("extract", path, "-w", out, "--sort")[0] == 0
    assert ("Strict time order", "True") in facts(out)
    assert [struct.unpack_from("<Q", one.data)[0] for one in written(out)] == sorted(times)


@pytest.mark.parametrize("form", ["pcapng", "pcap"])
def test_other_programs_read_it(form: str, path: Path, tmp_path: Path) -> None:
    """tshark, capinfos, editcap, mergecap, tcpdump, scapy and dpkt find the same number of packets; ngrep finds the
    same text. (tests/kernel/test_replay.py has tcpreplay, tests/package/ids.py Suricata.)
    """
    traffic.write(path)
    out, other = tmp_path / f"out.{form}", tmp_path / "other.pcap"
    words = ["--segment", "1500", "--fill-checksums", "--sort", "--interface", "eth0"]
    assert run("extract", path, "-w", out, "--format", form, *words)[0] == 0
    assert len(rows(out, "frame.number")) == 682
    assert ("Number of packets", "682") in facts(out)
    for command in (f"editcap -F pcap {out} {other}", f"mergecap -F pcap -w {other} {out}"):
        subprocess.run(command.split(), check=True, capture_output=True)
        assert ("Number of packets", "682") in facts(other)
    done = subprocess.run(["tcpdump", "--count", "-r", out], capture_output=True, text=True, check=True)
    assert done.stdout == "682 packets\n"
    assert len(rdpcap(str(out))) == 682
    with out.open("rb") as file:
        assert len(list(dpkt.pcap.UniversalReader(file))) == 682
    where = 'udp.port == 53 && !vlan && ip && frame contains "payload"'
    done = subprocess.run(["ngrep", "-qI", out, "payload", "udp port 53"], capture_output=True, text=True, check=True)
    assert len(re.findall("^U 10", done.stdout, re.MULTILINE)) == len(rows(out, "frame.number", where=where)) > 0


def test_what_other_programs_lose(path: Path, out: Path, tmp_path: Path) -> None:
    """With a process block, capinfos shows no times and editcap writes no pcap; extract leaves the block out. editcap
    and mergecap keep comments, directions and identifiers, and lose option 8, statistics and the interface's address.
    """
    ours = interface(opts=options((2, b"eth0"), (6, bytes.fromhex("020000000001")), (9, b"\x09")))
    opts = options((1, b"comm=a pid=7 tgid=7"), (2, b"\2\0\0\0"), (5, b"i" * 8), (8, struct.pack("<II", 7, 7)))
    packets = [packet(udp("10.0.0.1", "10.0.0.2"), opts, time=traffic.BEGIN_NS + at) for at in range(3)]
    statistics = block(ISB, bytes(12))
    path.write_bytes(section() + ours + block(0xBAD, struct.pack("<I", 1) + b"tgid") + b"".join(packets) + statistics)
    pcap = tmp_path / "a.pcap"
    assert not [value for name, value in facts(path) if name == "First packet time"]
    assert subprocess.run(["editcap", "-F", "pcap", path, pcap], capture_output=True, check=False).returncode == 2
    assert run("extract", path, "-w", out)[0] == 0
    assert [value for name, value in facts(out) if name == "First packet time"]
    subprocess.run(["editcap", "-F", "pcap", out, pcap], capture_output=True, check=True)
    assert ("Number of packets", "3") in facts(pcap)
    path.write_bytes(section() + ours + b"".join(packets) + statistics)
    for command in (["editcap", str(path), str(out)], ["mergecap", "-w", str(out), str(path)]):
        subprocess.run(command, capture_output=True, check=True)
        data = out.read_bytes()
        assert [one.comment for one in written(out)] == ["comm=a pid=7 tgid=7"] * 3
        assert data.count(options((2, b"\2\0\0\0"), (5, b"i" * 8))) == 3  # the end of the options follows
        assert statistics not in data
        assert bytes.fromhex("020000000001") not in data
