"""What extract and split change in packets that they write: payload, fields of comments."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, GRE, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from tests.support import blocks, traffic
from tests.support.command import ROOT, run
from tests.support.judges import facts, rows
from tests.support.strangers import comment, options, packet, pcap, process, section

SECRET = b"GET /?token=hunter2 HTTP/1.1"
ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
V4, V6 = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fd00::1", dst="fd00::2")
KINDS: dict[str, tuple[Packet, int]] = {  # frame, and bytes of its headers
    "tcp": (ETHER / V4 / TCP(options=[("Timestamp", (1, 2)), ("NOP", None)]), 14 + 20 + 32),
    "vlan": (ETHER / Dot1Q(vlan=7) / V4 / TCP(), 14 + 4 + 20 + 20),
    "udp": (ETHER / V6 / UDP(), 14 + 40 + 8),
    "extension headers": (ETHER / V6 / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(), 14 + 40 + 8 + 8 + 8),
    "sctp": (ETHER / V4 / SCTP(), 14 + 20 + 12),
    "icmp": (ETHER / V4 / ICMP(), 14 + 20 + 8),
    "gre": (ETHER / V4 / GRE(), 14 + 20),
    "ip in ip": (ETHER / V4 / V4, 14 + 20),
    "arp": (ETHER / ARP(psrc="10.0.0.1", pdst="10.0.0.2", hwsrc="02:00:00:00:00:01"), 14 + 28),
    "no header that is known": (Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x88B5), 14),
}  # fmt: skip


def written(path: Path) -> list[blocks.Packet]:
    """All packets of a file."""
    return blocks.packets(path.read_bytes())


def test_no_payload_is_left(path: Path, out: Path, tmp_path: Path) -> None:
    """Of each kind of packet its headers are left, to the last byte, and no byte of payload; lengths stay true."""
    frames = [bytes(kind / Raw(SECRET)) for kind, _ in KINDS.values()]
    path.write_bytes(
        section()
        + traffic.described("eth0", "network namespace of init")
        + traffic.described("wlan0", "network namespace of init", link_type=105)
        + b"".join(packet(frame, process(7, "a"), time=n) for n, frame in enumerate(frames))
        + packet(SECRET, process(7, "a"), number=1, time=99)
    )
    assert run("extract", path, "-w", out, "--payload", "none")[0] == 0
    found = written(out)
    assert [one.data for one in found[:-1]] == [
        frame[:size] for frame, (_, size) in zip(frames, KINDS.values(), strict=True)
    ]
    assert found[-1].data == b""
    assert [one.original_len for one in found] == [*map(len, frames), len(SECRET)]
    assert b"hunter2" not in out.read_bytes()
    assert [row[0] for row in rows(out, "frame.protocols")][:2] == [
        "eth:ethertype:ip:tcp",
        "eth:ethertype:vlan:ethertype:ip:tcp",
    ]
    assert run("split", path, "--by", "comm", "--payload", "none", "-d", tmp_path)[0] == 0
    assert written(tmp_path / "a.comm-a.pcapng") == found


def test_fields_are_removed(path: Path, out: Path) -> None:
    """What is dropped is neither in a comment nor in option 8; all else stays as it was."""
    more = ' exe=/bin/a cmdline="a --password hunter2" unit=a.service cut=exe,cmdline'
    linked = comment(
        f"comm=a pid=8 tgid=7{more}".encode(),
        (2, b"\x02\0\0\0"),
        (5, bytes(7) + b"\x01"),
        (8, struct.pack("<II", 7, 8)),
    )
    path.write_bytes(
        section()
        + traffic.described("eth0", "network namespace of init")
        + packet(b"x", linked)
        + packet(b"x", process(9, "b", more=" cut=cmdline"), time=1)
        + packet(b"x", comment(b"via=kernel"), time=2)
        + packet(b"x", options((1, b"PID: 7\nCmd: /bin/a\nArgs: --password hunter2")), time=3)
        + packet(b"x", options((1, b"cmdline=" + b"x" * 2000)), time=4)
    )
    code, _, said = run("extract", path, "-w", out, "--drop", "cmdline,exe", "--drop", "via")
    assert (code, said) == (
        0,
        f"skbcapd: 5 packets to {out}\nskbcapd: 2 comments of other programs removed, as their fields are not known\n",
    )
    found = written(out)
    assert [one.comment for one in found] == ["comm=a pid=8 tgid=7 unit=a.service", "comm=b pid=9 tgid=9", "", "", ""]
    assert [one.process for one in found[:2]] == [(7, 8), (9, 9)]
    assert (found[0].packet_id, found[0].flags) == (1 << 56, 2)
    assert b"hunter2" not in out.read_bytes()
    assert run("extract", path, "-w", out, "--drop", "tgid")[0] == 0
    assert [one.process for one in written(out)[:2]] == [(0, 8), (0, 9)]
    assert run("extract", path, "-w", out, "--drop", "pid,tgid,comm,unit,exe,cmdline")[0] == 0
    assert [(one.process, one.comment) for one in written(out)[:2]] == [(None, ""), (None, "")]


def test_what_cannot_be_dropped(path: Path) -> None:
    """A field that there is not is refused, with those that there are."""
    code, _, said = run("extract", path, "--count", "--drop", "comm,nosuch")
    assert code == 2
    assert "argument --drop: found 'nosuch'; expected one of comm, pid, tgid" in said


def test_split_takes_selectors_and_several_files(tmp_path: Path) -> None:
    """Two files and a filter: the packets of each process in time order, and none that is not wanted."""
    first, second = tmp_path / "a.pcapng", tmp_path / "b.pcapng"
    traffic.write(first, count=500)
    traffic.write(second, first=500, count=509)
    parts = tmp_path / "parts"
    parts.mkdir()
    code, _, said = run("split", second, first, "--by", "process", "-d", parts, "--direction", "in", "tcp")
    display = "frame.packet_flags_direction == 1 && (ip.proto == 6 || ipv6.nxt == 6) && !vlan"
    expected = [rows(file, "frame.time_epoch", "frame.comment", where=display) for file in (first, second)]
    both = expected[0] + expected[1]
    names = {
        "b.process-curl.pcapng": "comm=curl ",
        "b.process-nginx.pcapng": "comm=nginx ",
        "b.process-dig.pcapng": "process=dig",
        "b.process-curlew.pcapng": "comm=curlew ",
        "b.no-process.pcapng": "via=kernel",
    }
    assert (code, said) == (0, f"skbcapd: {len(both)} packets in 5 files: {parts}/b.*process*.pcapng\n")
    assert {file.name for file in parts.iterdir()} == names.keys()
    for name, word in names.items():
        assert rows(parts / name, "frame.time_epoch", "frame.comment") == [row for row in both if word in row[1]]


def test_split_by_interface_and_link_type(path: Path, tmp_path: Path) -> None:
    """Interfaces of one name in two namespaces have a file each; each file of a link type can be read by tcpdump."""
    traffic.write(path)
    assert run("split", path, "--by", "interface", "-d", tmp_path)[0] == 0
    for name, display in (
        ("eth0", "frame.interface_id == 0"),
        ("eth0@web", "frame.interface_id == 1"),
        ("wg0", "frame.interface_id == 2"),
    ):
        assert len(written(tmp_path / f"a.interface-{name}.pcapng")) == len(rows(path, "frame.number", where=display))
    assert run("split", path, "--by", "link-type", "-d", tmp_path)[0] == 0
    for name, display in (("ethernet", "frame.interface_id != 2"), ("raw", "frame.interface_id == 2")):
        file = tmp_path / f"a.link-type-{name}.pcapng"
        done = subprocess.run(["tcpdump", "--count", "-r", file], capture_output=True, text=True, check=True)
        count = len(rows(path, "frame.number", where=display))
        assert (done.stdout, len(written(file))) == (f"{count} packets\n", count)


def test_a_pcap_can_be_split_by_link_type_only(tmp_path: Path) -> None:
    """A pcap file says no process; what it says is its link type."""
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap([b"frame"] * 3))
    code, _, said = run("split", path, "--by", "tgid", "-d", tmp_path)
    assert (code, said.splitlines()) == (
        1,
        [
            f"skbcapd: {path}: a pcap file, which has no processes; expected pcapng",
            "  (hint) pcap files can be split by link-type",
        ],
    )
    assert run("split", path, "--by", "link-type", "-d", tmp_path)[0] == 0
    assert ("Number of packets", "3") in facts(tmp_path / "a.link-type-ethernet.pcapng")


def test_top_takes_selectors(path: Path) -> None:
    """The sums are those of the wanted packets; a directory stands for its captures."""
    traffic.write(path)
    display = 'frame.packet_flags_direction == 2 && ipv6.dst == fd00:0:0:1::2 && frame.comment matches "comm=curl "'
    sizes = [int(size) for (size,) in rows(path, "frame.len", where=display)]
    words = ["--csv", "--direction", "out", "--peer", "fd00::/16", "--process", "curl"]
    code, stdout, said = run("top", path.parent, *words)
    assert (code, said) == (0, "")
    lines = stdout.decode().splitlines()
    assert lines[1].split(",")[:7] == ["7", '"curl"', '"curl"', '""', '"ssh.service"', str(len(sizes)), str(sum(sizes))]
    assert len(lines) == 2


@pytest.mark.parametrize("command", ["top", "extract"])
def test_standard_input(command: str, path: Path) -> None:
    """- is standard input: a pipe, or a file, which may be compressed."""
    traffic.write(path, count=101)
    words = ["-", "--json"] if command == "top" else ["-", "-w", "-"]
    code, stdout, said = run(command, *words, stdin=path.read_bytes())
    assert (code, said) == (0, "")
    if command == "extract":
        path.with_name("b.pcapng").write_bytes(stdout)
        assert written(path.with_name("b.pcapng")) == written(path)
    else:
        assert stdout == run("top", path, "--json")[1]
    subprocess.run(["zstd", "-q", str(path)], check=True)
    compressed = path.with_name(path.name + ".zst")
    with compressed.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-m", "skbcapd", command, *words], cwd=ROOT, stdin=file, capture_output=True, check=True
        )
    assert done.stdout == stdout
    code, _, said = run(command, *words, stdin=compressed.read_bytes())
    begins = compressed.read_bytes()[:8].hex(" ")
    assert (code, said.splitlines()) == (
        1,
        [
            f"skbcapd: standard input: begins with {begins}; expected pcapng or pcap",
            "  (hint) zstd -dc FILE | skbcapd ...",
        ],
    )
