"""Packets as lines: their content, and that no packet or process can break a line."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.kernel.segments import read_local
from skbcapd.output.pipe import PipeSink, count_lines
from skbcapd.output.text import TextOutput
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface
from skbcapd.pcapng.link_type import ETHERNET, RAW
from tests.support.frames import NTP_FRAME
from tests.support.writer import cut, upcall

STAMP = Label(b"", 0)
ICMPV6 = bytes.fromhex("6000000000083aff" + "fe80" + "00" * 14 + "ff02" + "00" * 13 + "02" + "8500000000000000")
TIME_NS = 1_622_469_600_000_456_789


class Lines(PipeSink):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__(1, count_lines)
        self.written: list[bytes] = []

    def write(self, data: bytes | memoryview) -> None:
        """Keep it."""
        self.written.append(bytes(data))


def line(frame: bytes, link_type: int = ETHERNET, **fields: Any) -> str:
    """The line of a packet."""
    sink = Lines()
    output = TextOutput(sink)
    number = output.add_interface(Interface(b"eth0", "", link_type, 262144, None, None, None))
    packet = read_local(memoryview(upcall(frame, **({"time_ns": TIME_NS} | fields))), 0)
    output.write_packet(packet, number, STAMP, tuple)
    output.flush(tuple)
    return b"".join(sink.written).decode("ascii")


CLOCK = time.strftime("%H:%M:%S", time.localtime(TIME_NS // 10**9)) + ".000456789"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("chronyd[1058] eth0 out Ether / IP / UDP 192.168.178.24:51207 > 192.168.178.1:", {"frame": NTP_FRAME}),
        ("? eth0 in Ether / IP / ", {"frame": NTP_FRAME, "tgid": 0, "direction": 1}),
        ("chronyd[1058] wg0 out IP / UDP 192.168", {"frame": NTP_FRAME[14:], "link_type": RAW, "device": b"wg0"}),
        (
            "chronyd[1058] wg0 out fe80:: > ff02::2 (58) / ICMPv6ND_RS, length 48\n",
            {"frame": ICMPV6, "link_type": RAW, "device": b"wg0"},
        ),
        ("chronyd[1058] eth0 out ", {"frame": b""}),
        ("chronyd[1058] wg0 out ", {"frame": b"", "link_type": RAW, "device": b"wg0"}),
        ("\\x1b[2J\\x0a\\xff[1058] eth0 out ", {"frame": NTP_FRAME, "process": b"\x1b[2J\n\xff"}),
        ("init[1]\\x20lo\\x20in[1058] eth0 out ", {"frame": NTP_FRAME, "process": b"init[1] lo in"}),
        ("dig[1058] eth0 out Ether", {"frame": NTP_FRAME, "comm": b"isc-net-0000", "process": b"dig"}),
        ("chronyd[1058] e\\x07h out ", {"frame": NTP_FRAME, "device": b"e\x07h"}),
    ],
)
def test_a_line(text: str, arguments: dict[str, Any]) -> None:
    """A line has time, process, interface, direction and a summary; names are one word each,
    printable ASCII.
    """
    assert line(**arguments).startswith(f"{CLOCK} {text}")


@pytest.mark.fuzz
@given(
    frame=st.binary(max_size=400) | st.binary(max_size=200).map(lambda tail: NTP_FRAME[: len(tail)] + tail),
    comm=st.binary(max_size=16),
    device=st.binary(max_size=16),
    link_type=st.sampled_from([ETHERNET, RAW]),
    time_ns=st.integers(0, 2**64 - 1),
)
def test_any_packet_is_one_printable_line(
    frame: bytes, comm: bytes, device: bytes, link_type: int, time_ns: int
) -> None:
    """For any frame, process name and interface name, it is one line of printable ASCII with the
    length.
    """
    text = line(frame, link_type, comm=comm, device=device, time_ns=time_ns)
    assert re.fullmatch(rf"[0-9:.]{{18}} [!-~]*\[1058\] [!-~]* out [ -~]*, length {len(frame)}\n", text)


def test_deep_frames() -> None:
    """A frame with endless nested headers is a line like any other."""
    assert line(NTP_FRAME[:12] + bytes.fromhex("81000001") * 9000).endswith(", length 36012\n")


def test_text_output_rejects_labels_and_blocks() -> None:
    """Text output accepts no labels and no complete blocks: both are errors of the caller."""
    output = TextOutput(Lines())
    assert not output.labels
    with pytest.raises(TypeError, match="label"):
        output.write_packet(read_local(memoryview(cut(0, b"", 0, 0)), 0), 0, STAMP, tuple)
    with pytest.raises(AssertionError, match="32 bytes of complete blocks"):
        output.write_blocks(memoryview(bytes(32)), tuple)
