"""`skbcapd capture -r` prints the lines of tcpdump: both read the same file."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6PacketTooBig,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.ntp import NTPHeader
from scapy.packet import Packet, Raw

from skbcapd.cli.main import command
from tests.support.strangers import pcap

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
THERE, BACK = IP(src="10.0.0.1", dst="10.0.0.2"), IP(src="10.0.0.2", dst="10.0.0.1")
LOCAL = IPv6(src="fe80::1", dst="fe80::2")
LOST = IP(src="10.0.0.2", dst="10.0.0.9") / UDP(sport=5, dport=53)
OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]
NAME = "example.com"


def connection() -> list[Packet]:
    """Packets of TCP, most of one connection."""
    return [
        THERE / TCP(sport=1000, dport=2000, seq=100, flags="S", options=OPTIONS),
        BACK / TCP(sport=2000, dport=1000, seq=900, ack=101, flags="SA", options=OPTIONS),
        THERE / TCP(sport=1000, dport=2000, seq=101, ack=901, flags="PA") / Raw(b"hello"),
        BACK / TCP(sport=2000, dport=1000, seq=901, ack=106, flags="A", options=[("SAck", (4, 5, 6, 7))]),
        THERE / TCP(sport=1000, dport=2000, seq=106, ack=901, flags="FA"),
        THERE / TCP(sport=1000, dport=2000, seq=107, flags="R"),
        THERE / TCP(sport=1000, dport=2000, seq=107, flags="SPFRUEC", urgptr=5),
        THERE / TCP(sport=1000, dport=2000, seq=107, flags=""),
        BACK / TCP(sport=7000, dport=7000, seq=2**32 - 2, ack=9, flags="A") / Raw(b"later"),
        THERE / TCP(sport=7000, dport=7000, seq=9, ack=3, flags="A") / Raw(b"x"),
        LOCAL / TCP(sport=8, dport=9, seq=2**32 - 2, flags="S"),
    ]


def messages() -> list[Packet]:
    """Packets of other protocols."""
    question, answer = DNSQR(qname=NAME), DNSRR(rrname=NAME, rdata="1.2.3.4")
    error = LOCAL / ICMPv6DestUnreach(code=4) / IPv6(src="fe80::2", dst="fe80::1") / UDP(sport=5, dport=6)
    return [
        THERE / UDP(sport=5, dport=6) / Raw(b"abc"),
        THERE / UDP(sport=5, dport=53) / DNS(id=77, rd=1, qd=question),
        THERE / UDP(sport=5, dport=53) / DNS(id=78, rd=1, qd=DNSQR(qname=NAME, qtype="AAAA"), ar=DNSRROPT()),
        BACK / UDP(sport=53, dport=5) / DNS(id=77, qr=1, ra=1, ancount=1, qd=question, an=answer),
        BACK / UDP(sport=53, dport=5) / DNS(id=77, qr=1, aa=1, rcode=3, qd=question),
        BACK / UDP(sport=53, dport=5) / DNS(id=77, qr=1, qd=question, an=DNSRR(rrname=NAME, type="CNAME", rdata="b.a")),
        THERE / UDP(sport=123, dport=123) / NTPHeader(),
        THERE / ICMP(type=8, id=5, seq=6) / Raw(b"xx"),
        THERE / ICMP(type=0, id=5, seq=6),
        THERE / ICMP(type=3, code=0) / LOST,
        THERE / ICMP(type=3, code=1) / LOST,
        THERE / ICMP(type=3, code=3) / LOST,
        THERE / ICMP(type=3, code=4, nexthopmtu=1400) / LOST,
        *(THERE / ICMP(type=3, code=code) / LOST for code in (6, 7, 9, 10, 13)),
        THERE / ICMP(type=5, code=1, gw="10.0.0.7") / LOST,
        THERE / ICMP(type=11) / LOST,
        LOCAL / ICMPv6EchoReply(id=1, seq=2),
        LOCAL / ICMPv6ND_NS(tgt="fe80::2"),
        LOCAL / ICMPv6ND_NA(tgt="fe80::2"),
        LOCAL / ICMPv6ND_RS(),
        LOCAL / ICMPv6MLReport2(),
        error,
        LOCAL / ICMPv6PacketTooBig(mtu=1300) / LOCAL / UDP(),
        THERE / BACK / UDP(sport=5, dport=6) / Raw(b"xyz"),
        ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.2", hwsrc="02:00:00:00:00:01"),
        ARP(op=2, psrc="10.0.0.1", pdst="10.0.0.2", hwsrc="02:00:00:00:00:01"),
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of tcpdump's kind."""
    made = tmp_path_factory.mktemp("lines") / "a.pcap"
    made.write_bytes(pcap([bytes(ETHER / one) for one in (*connection(), *messages())]))
    return made


def theirs(path: Path, *options: str) -> list[str]:
    """The output of tcpdump: without TCP options but with -v, and without what only tcpdump has."""
    done = subprocess.run(
        ["tcpdump", "-n", *options, "-r", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    text = re.sub(r" cksum 0x[0-9a-f]+ \(.*?\),", "", done.stdout)
    return (text.replace("\n    ", " ") if "-v" in options else re.sub(r", options \[.*?\]", "", text)).splitlines()


class Ours:
    """Prints with skbcapd."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, path: Path, *options: str) -> list[str]:
        """The output of skbcapd."""
        assert command(["capture", "-r", str(path), *options]) == 0
        said = self._capsys.readouterr()
        assert said.err == ""
        assert said.out.isascii()
        return said.out.splitlines()


@pytest.fixture
def ours(capsys: pytest.CaptureFixture[str]) -> Ours:
    """Prints with skbcapd."""
    return Ours(capsys)


@pytest.mark.parametrize(
    "options",
    [
        *("", "-n", "-t", "-tt", "-ttt", "-tttt", "-ttttt", "-#", "-S", "-e", "-eS#"),
        *("-x", "-xx", "-X", "-XX", "--nano", "-tt --time-stamp-precision=nano", "-c 7", "-tc 3 -X"),
    ],
)
def test_lines_are_those_of_tcpdump(options: str, path: Path, ours: Ours) -> None:
    """Each line is that of tcpdump, without the TCP options."""
    assert ours(path, *options.split()) == theirs(path, *options.split())


@pytest.mark.parametrize("expression", ["tcp", "udp port 53", "not tcp and greater 60", "ip6", "arp"])
def test_filters_are_those_of_tcpdump(expression: str, path: Path, ours: Ours) -> None:
    """A filter takes the packets that it takes in tcpdump."""
    assert ours(path, *expression.split()) == theirs(path, *expression.split())


def test_verbose_lines_are_those_of_tcpdump(path: Path, ours: Ours) -> None:
    """With -v the lines of TCP over IPv4 are those of tcpdump, without the checksum, on one line."""
    assert ours(path, "-v", "ip and tcp") == theirs(path, "-v", "ip and tcp")


def test_quiet_lines_are_those_of_tcpdump(path: Path, ours: Ours) -> None:
    """With -q the lines are those of tcpdump."""
    assert ours(path, "-q", "tcp or udp") == theirs(path, "-q", "tcp or udp")


def test_characters_are_those_of_tcpdump(path: Path, ours: Ours) -> None:
    """With -A the characters are those of tcpdump, behind a tab."""
    mine, others = (
        ours(path, "-A", "tcp[tcpflags] & tcp-push != 0"),
        theirs(path, "-A", "tcp[tcpflags] & tcp-push != 0"),
    )
    assert [line.removeprefix("\t") for line in mine] == [line for line in others if line]
    assert any(line.startswith("\t") and line.endswith("hello") for line in mine)


def test_tags_are_shown(tmp_path: Path, ours: Ours) -> None:
    """A VLAN tag is on the line; with -e, tcpdump prints it, too."""
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap([bytes(ETHER / Dot1Q(vlan=7, prio=3) / THERE / UDP(sport=5, dport=6))]))
    assert ours(path, "-t") == ["vlan 7, IP 10.0.0.1.5 > 10.0.0.2.6: UDP, length 0"]
    assert ours(path, "-te") == theirs(path, "-te")


@pytest.mark.parametrize("captured", range(1, 100, 9))
def test_frames_that_were_cut(captured: int, tmp_path: Path, ours: Ours) -> None:
    """A line says what was captured, and that the rest is missing; nothing is read behind the end."""
    path = tmp_path / "a.pcap"
    path.write_bytes(pcap([bytes(ETHER / one)[:captured] for one in (*connection(), *messages())]))
    lines = ours(path, "-tv")
    assert len(lines) == len(connection()) + len(messages())
    if captured < 34:
        assert all("[|" in line or "length" in line for line in lines)
