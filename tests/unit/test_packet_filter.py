"""Expressions and their translation; their results are compared in
tests/kernel/test_packet_filter.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.filter import packet_filter
from skbcapd.filter.netmask import netmask_of
from skbcapd.filter.packet_filter import (
    FilterError,
    compile_all,
    compile_each,
    compile_expression,
    reach,
    source,
    window,
)
from skbcapd.pcapng.link_type import ETHERNET, LINK_TYPES, RAW

CAPTURE_MAX = 1 << 18


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("tcp prot 443", "can't parse filter expression: syntax error"),
        ("host 10.0.0.256", "invalid"),
        ("port 65536", "illegal port number 65536 > 65535"),
        ("ether[0:3] = 1", "data size must be 1, 2, or 4"),
        ("len / 0 = 1", "division by zero"),
        ("1 = 0", "expression rejects all packets"),
        ("udp\x00", "a character that is not printable"),
        ("udp\n", "a character that is not printable"),
        ("inbound", "are not supported; use the setting directions"),
        ("(" * 4097, "4097 characters, expected at most 4096"),
    ],
)
def test_invalid_expressions_are_reported(expression: str, message: str) -> None:
    """A wrong expression gives the message of libpcap, or ours for our own limits."""
    with pytest.raises(FilterError, match=re.escape(message)):
        compile_all(expression)


def test_a_link_type_may_have_no_such_packet() -> None:
    """An expression that needs an Ethernet header is compiled for Ethernet only."""
    assert compile_all("ether host 02:00:00:00:00:01").keys() & {ETHERNET, RAW} == {ETHERNET}
    assert compile_all("udp").keys() >= {ETHERNET, RAW}


@pytest.mark.parametrize(
    ("expression", "furthest"),
    [
        ("", 0),
        ("ip", 14),
        ("host 10.0.0.1", 42),  # target address of ARP
        ("udp port 53", 14 + 60 + 4),  # after the longest IPv4 header
        ("ether[200:4] = 0", 204),
        ("tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0", 14 + 60 + 60 + 4),
        ("ether[len - 1] = 0", 1 << 32),
        ("ip protochain 6", 1 << 32),
    ],
)
def test_the_window_of_a_filter(expression: str, furthest: int) -> None:
    """The window has as many bytes as the filter can read with the longest headers, rounded up to a
    power of two.
    """
    program = compile_expression(expression, ETHERNET)
    assert reach(program) >= furthest
    assert reach(program) == furthest or furthest == 1 << 32
    size = window([program], CAPTURE_MAX)
    assert size.bit_count() == 1
    assert (
        size == 2 * CAPTURE_MAX if furthest == 1 << 32 else size >= 64 and furthest + 4 <= size <= 2 * (furthest + 64)
    )


def test_filters_are_known_by_number() -> None:
    """Each filter has a function per link type in the text, and the window of the one that reads
    furthest.
    """
    found = source(compile_each({0: "udp", 7: "ether[200] = 1"}), CAPTURE_MAX)
    functions = re.findall(r"^static inline u32 (\w+)\(", found.text, re.MULTILINE)
    rare = [f"_{link}" for link in LINK_TYPES if link not in {ETHERNET, RAW}]
    assert [name for name in functions if not name.endswith(tuple(rare))] == [
        "filter_0_1",
        "filter_0_101",
        "filter_0",
        "filter_7_1",
        "filter_7_101",
        "filter_7",
        "packet_filter",
    ]
    assert found.window == 256


WORDS = (
    *("host", "port", "net", "ether", "ip", "ip6", "tcp", "udp", "src", "dst", "and", "or", "not", "(", ")"),
    *("[", "]", ":", "=", "&", "+", "len", "vlan", "mpls", "10.0.0.1", "::1", "53", "0xffffffff"),
)


@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=12).map(" ".join))
def test_no_text_is_too_much(text: str) -> None:
    """Any text gives C text, or a FilterError of one line."""
    try:
        found = source(compile_each({0: text}), CAPTURE_MAX)
    except FilterError as error:
        message, found = str(error), None
    if found is None:
        assert message.isprintable()
    else:
        assert found.text.count("{") == found.text.count("}")
        assert packet_filter.WINDOW_MIN <= found.window <= 2 * CAPTURE_MAX


@pytest.mark.parametrize(("expression", "is_taken"), [("tcp", False), ("tcp or (ip6 proto 0 and ip6[40] = 6)", True)])
def test_a_jumbo_frame(expression: str, is_taken: bool) -> None:  # noqa: FBT001
    """`tcp` does not match IPv6 with a jumbo payload option (BIG TCP), as in tcpdump; the filter of
    docs/limitations.md does.
    """
    jumbo = bytes([6, 0, 0xC2, 4]) + (100_000).to_bytes(4, "big")  # RFC 2675
    frame = bytes(12) + b"\x86\xdd\x60" + bytes(5) + bytes([0, 64]) + bytes(32) + jumbo + bytes(20)
    matcher = packet_filter.Matcher(compile_each({1: expression}))
    assert matcher.takes(1, ETHERNET, frame, len(frame)) == is_taken
    assert f"`{expression}`" in (Path(packet_filter.__file__).parents[2] / "docs/limitations.md").read_text()


def test_ip_broadcast_has_a_netmask() -> None:
    """`ip broadcast` compares the bits outside of the netmask; loopback has a netmask of 8 bits."""
    assert netmask_of(["lo"]) == 0xFF000000
    assert netmask_of(["lo", "nosuch0"]) == netmask_of(["any"]) == netmask_of(["lo"], ["blue"]) == 0
    known = packet_filter.compile_each({0: "ip broadcast"}, 0xFFFFF000)[0][ETHERNET]
    assert 0xFFF in {step.k for step in known}
    unknown = packet_filter.compile_each({0: "ip broadcast"})[0][ETHERNET]
    assert 0xFFFFFFFF in {step.k for step in unknown}
