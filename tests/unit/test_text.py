"""Packets as lines: their content, and that no packet or process can break a line."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.capture import labeler
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import Record
from skbcapd.frames.line import Lines
from skbcapd.frames.summary import Form
from skbcapd.kernel.segments import Upcall, read_local
from skbcapd.output.pipe import PipeSink, count_lines
from skbcapd.output.text import TextOutput
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface
from skbcapd.pcapng.link_type import ETHERNET, RAW
from skbcapd.pcapng.reader import Stamp
from tests.support.frames import NTP_FRAME
from tests.support.writer import cut, upcall

STAMP = Label(b"", 0)
ICMPV6 = bytes.fromhex("6000000000083aff" + "fe80" + "00" * 14 + "ff02" + "00" * 13 + "02" + "8500000000000000")
TIME_NS = 1_622_469_600_000_456_789


class Sink(PipeSink):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__(1, count_lines)
        self.written: list[bytes] = []

    def write(self, data: bytes | memoryview) -> None:
        """Keep it."""
        self.written.append(bytes(data))


def line(frame: bytes, link_type: int = ETHERNET, *, has_comment: bool = True, **fields: Any) -> str:
    """The line of a packet."""
    sink = Sink()
    output = TextOutput(sink, Lines(Form(digits=9)))
    number = output.add_interface(Interface(b"eth0", "", link_type, 262144, None, None, None))
    packet = read_local(memoryview(upcall(frame, **({"time_ns": TIME_NS} | fields))), 0)
    if not isinstance(packet, Upcall):
        raise TypeError(packet)
    plan = Plan() if has_comment else Plan(comment=("none",))
    output.write_packet(packet, number, labeler._stamp(Record(packet), plan), tuple)
    output.flush(tuple)
    return b"".join(sink.written).decode("ascii")


CLOCK = time.strftime("%H:%M:%S", time.localtime(TIME_NS // 10**9)) + ".000456789"


NTP = "IP 192.168.178.24.51207 > 192.168.178.1.123: NTPv4, Client, length 48\n"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (f"chronyd[1058] eth0 out {NTP}", {"frame": NTP_FRAME}),
        (f"chronyd[1058]/flow eth0 in {NTP}", {"frame": NTP_FRAME, "via": 2, "direction": 1}),
        (f"?/forwarded eth0 in {NTP}", {"frame": NTP_FRAME, "tgid": 0, "direction": 1, "via": 6}),
        (f"? eth0 in {NTP}", {"frame": NTP_FRAME, "tgid": 0, "direction": 1}),
        (f"chronyd[1058] wg0 out {NTP}", {"frame": NTP_FRAME[14:], "link_type": RAW, "device": b"wg0"}),
        (
            "chronyd[1058] wg0 out IP6 fe80:: > ff02::2: ICMP6, router solicitation, length 8\n",
            {"frame": ICMPV6, "link_type": RAW, "device": b"wg0"},
        ),
        ("chronyd[1058] eth0 out [|ether], length 0\n", {"frame": b""}),
        ("chronyd[1058] wg0 out raw, length 0\n", {"frame": b"", "link_type": RAW, "device": b"wg0"}),
        ("\\x1b[2J\\x0a\\xff[1058] eth0 out ", {"frame": NTP_FRAME, "process": b"\x1b[2J\n\xff"}),
        ("init[1]\\x20lo\\x20in[1058] eth0 out ", {"frame": NTP_FRAME, "process": b"init[1] lo in"}),
        ("dig[1058] eth0 out IP ", {"frame": NTP_FRAME, "comm": b"isc-net-0000", "process": b"dig"}),
        ("chronyd[1058] e\\x07h out ", {"frame": NTP_FRAME, "device": b"e\x07h"}),
    ],
)
@pytest.mark.parametrize("has_comment", [True, False])
def test_a_line(text: str, arguments: dict[str, Any], *, has_comment: bool) -> None:
    """A line has time, process, how it was found, interface, direction and a summary; names are one word each,
    printable ASCII. Without a comment, only how the process was found is missing.
    """
    expected = text if has_comment else re.sub("^([^ ]*)/[a-z]+ ", r"\1 ", text)
    assert line(**arguments, has_comment=has_comment).startswith(f"{CLOCK} {expected}")


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
    """For any frame, process name and interface name, it is one line of printable ASCII."""
    text = line(frame, link_type, comm=comm, device=device, time_ns=time_ns)
    assert re.fullmatch(r"[0-9:.]{18} [!-~]*\[1058\] [!-~]+ out [ -~]+\n", text)


@pytest.mark.fuzz
@given(
    frame=st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: NTP_FRAME[: len(tail)] + tail),
    name=st.binary(min_size=1, max_size=16),
    link_type=st.sampled_from([ETHERNET, RAW, 0, 113, 276, 65535]),
    time_ns=st.integers(-(2**80), 2**80),
    form=st.builds(
        Form,
        clock=st.integers(0, 5),
        link=st.booleans(),
        quiet=st.booleans(),
        verbose=st.booleans(),
        dump=st.sampled_from(["", "hex", "both", "text"]),
        dump_link=st.booleans(),
    ),
)
def test_any_packet_of_a_file_in_any_form(frame: bytes, name: bytes, link_type: int, time_ns: int, form: Form) -> None:
    """Whatever a file says, a packet is one line of printable ASCII; the lines of its bytes begin with a tab."""
    said = Stamp(7, name, name, name, 1, name, (("user", name),))
    for stamp in (said, Stamp()):
        text = Lines(form).line(time_ns, stamp, name, frame, link_type, len(frame)).decode("ascii")
        assert re.fullmatch(r"[ -~]+\n(\t[ -~]*\n)*", text)


def test_deep_frames() -> None:
    """A frame with endless nested headers is a line like any other."""
    assert line(NTP_FRAME[:12] + bytes.fromhex("81000001") * 9000).endswith("(0x8100), length 36012\n")
    header = b"\x45\0\xea\x60" + bytes(5) + b"\4" + bytes(10)
    assert re.search(r"out (IP 0\.0\.0\.0 > 0\.0\.0\.0: ){5}ipip, length \d+\n", line(header * 3000, RAW))


def test_text_output_rejects_labels_and_blocks() -> None:
    """Text output accepts no labels and no complete blocks: both are errors of the caller."""
    output = TextOutput(Sink(), Lines(Form()))
    assert not output.labels
    with pytest.raises(TypeError, match="label"):
        output.write_packet(read_local(memoryview(cut(0, b"", 0, 0)), 0), 0, STAMP, tuple)
    with pytest.raises(AssertionError, match="32 bytes of complete blocks"):
        output.write_blocks(memoryview(bytes(32)), tuple)
