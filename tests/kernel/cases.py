"""The traffic of the comparison, case by case.

A case is one run of one sender; what it says of the frames is checked against the sender's own
report and against an AF_PACKET socket. Counts are prime, so that a loss, a double or a neighbour's
frame cannot hide in a round number. Cases with `vm` set are those that an emulated machine gets
through in reasonable time, and touch every kind of memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.namespace import Wire
from tests.kernel.payloads import ICMP, TCP, UDP, UDP_HEADER_BYTES
from tests.kernel.sink import NTP_PORT, TCP_PORT
from tests.support.frames import NTP_FRAME

DATAGRAMS = "tests.kernel.send.datagrams"
STREAM = "tests.kernel.send.stream"

NTP_SOURCE_PORT = 51207
NTP_PAYLOAD = NTP_FRAME[14 + 20 + UDP_HEADER_BYTES :]
MTU = 1500
IP_FRAGMENT_BYTES = 1480  # of a 1500-byte packet, after its 20-byte header
# A process can choose a name that looks like two fields.
FORGER = 'x" tgid=1 "\n\xff'


@dataclass(frozen=True)
class Case:
    """One sender's run and what it must show.

    Args:
        name: for the table.
        way: of which sender (tests/kernel/send): a way of datagrams, or one of streams.
        comm: the sender's name; its threads add a number.
        count: sends per thread.
        size: bytes per send, or of a whole stream.
        frames: how many frames leave the device; None where only the kernel knows.
        protocol: whose payloads in the frames must be the sender's; 0 for none.
        hex: what to send; empty for the sender's own payload.
        threads: that send; 0 for the main thread alone.
        ipv6: whether the far end's IPv6 address is meant.
        more: further arguments of the sender.
        vm: also for emulated machines.
    """

    name: str
    way: str
    comm: str
    count: int = 0
    size: int = 0
    frames: int | None = None
    protocol: int = 0
    hex: str = ""
    threads: int = 0
    ipv6: bool = False
    more: tuple[str, ...] = ()
    vm: bool = False

    @property
    def streams(self) -> bool:
        """Whether it sends over TCP."""
        return self.protocol == TCP

    def command(self, wire: Wire, file: Path) -> list[str]:
        """Give the sender's module and all its arguments.

        Args:
            wire: where it sends, from the near end to the far one.
            file: what a stream sends.
        """
        near, far = wire.near, wire.far
        to = far.ipv6 if self.ipv6 else far.ipv4
        if self.streams:
            return [STREAM, self.way, "--comm", self.comm, "--to", to, "--port", str(TCP_PORT), "--file", str(file)]
        said = {
            "--comm": self.comm,
            "--count": self.count,
            "--size": self.size,
            "--hex": self.hex,
            "--threads": self.threads,
            "--device": near.device,
            "--source": near.ipv6 if self.ipv6 else near.ipv4,
            "--to": to,
        }
        return [DATAGRAMS, self.way, *(str(word) for option in said.items() for word in option), *self.more]


def _udp(
    name: str, size: int, count: int, *more: str, comm: str = "", threads: int = 0, ipv6: bool = False, vm: bool = False
) -> Case:
    frames = count * (threads or 1)
    if size > MTU and not more:
        frames *= -(-(size + UDP_HEADER_BYTES) // IP_FRAGMENT_BYTES)
    return Case(name, "udp", comm or name, count, size, frames, UDP, threads=threads, ipv6=ipv6, more=more, vm=vm)


def _frame(name: str, comm: str, frame: bytes, count: int, *, vm: bool = False) -> Case:
    return Case(name, "frame", comm, count, frames=count, hex=frame.hex(), vm=vm)


def _stream(way: str, size: int, name: str = "", *, ipv6: bool = False, vm: bool = False) -> Case:
    return Case(name or f"tcp-{way}", way, name or f"tcp-{way}", size=size, protocol=TCP, ipv6=ipv6, vm=vm)


def _icmp(way: str, count: int) -> Case:
    return Case(f"icmp-{way}", way, f"icmp-{way}", count, 56, count, ICMP)


def _arp_request() -> bytes:
    """Give who-has 192.168.178.77, to all, as long as Ethernet's shortest frame."""
    near, ours, asked = NTP_FRAME[6:12], bytes([192, 168, 178, 24]), bytes([192, 168, 178, 77])
    asks = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, near, ours, b"", asked)
    return (b"\xff" * 6 + near + b"\x08\x06" + asks).ljust(60, b"\0")


_NTP_PORTS = ("--source-port", str(NTP_SOURCE_PORT), "--port", str(NTP_PORT))

CASES = [
    _frame("seed-raw", "chronyd", NTP_FRAME, 23, vm=True),
    Case("seed-udp", "udp", "chronyd", 23, frames=23, protocol=UDP, hex=NTP_PAYLOAD.hex(), more=_NTP_PORTS, vm=True),
    _udp("udp-0", 0, 101),
    _udp("udp-1", 1, 23),
    _udp("udp-17", 17, 1009),
    _udp("udp-1400", 1400, 101, vm=True),
    _udp("udp-65507", 65507, 7),
    _udp("udp-zerocopy", 1400, 23, "--zerocopy"),
    _udp("udp-gso", 17 * 1400, 23, "--segment", "1400", vm=True),
    _udp("udp-threads", 100, 101, comm="worker", threads=3, vm=True),
    _udp("udp-forger", 100, 23, comm=FORGER, vm=True),
    _udp("udp6-0", 0, 23, ipv6=True),
    _udp("udp6-1400", 1400, 101, ipv6=True),
    _stream("send", 3_000_017),
    _stream("send", 1_000_003, "tcp6-send", ipv6=True),
    _stream("send", 100_003, "tcp-short", vm=True),
    _stream("sendfile", 1_000_003, vm=True),
    _stream("splice", 1_000_003),
    _stream("zerocopy", 1_000_003),
    _frame("arp", "arping", _arp_request(), 23),
    _icmp("icmp", 23),
    _icmp("ping", 23),
]


def selected(session: pytest.Session) -> list[Case]:
    """The cases that the tests of this run need; all of them by default."""
    calls = (getattr(item, "callspec", None) for item in session.items)
    chosen = [call.params.get("case") for call in calls if call]
    return [case for case in CASES if case in chosen] or CASES
