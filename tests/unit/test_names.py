"""Host names in a filter: found by libpcap, looked up once, replaced by addresses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from skbcapd.filter import packet_filter
from skbcapd.filter.names import Names
from skbcapd.filter.packet_filter import FilterError, compile_all, compile_expression

ADDRESSES = {
    "db.example": ["10.0.0.1", "10.0.0.2", "fe80::1"],
    "http": ["10.0.0.3"],
    "a-b.example": ["10.0.0.4"],
    "v6.example": ["2001:db8::7"],
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """The number of lookups of each name."""
    counts: Counter[str] = Counter()

    def ask(name: str) -> list[str]:
        counts[name] += 1
        return ADDRESSES.get(name, [])

    packet_filter.forget()
    monkeypatch.setattr(packet_filter, "_names", Names(ask=ask))
    yield counts
    compile_all.cache_clear()


@pytest.mark.parametrize(
    ("named", "numeric"),
    [
        ("host db.example", "host 10.0.0.1 or host 10.0.0.2 or host fe80::1"),
        ("not host db.example", "not (host 10.0.0.1 or host 10.0.0.2 or host fe80::1)"),
        ("host not db.example", "not (host 10.0.0.1 or host 10.0.0.2 or host fe80::1)"),
        (
            "src (db.example or a-b.example)",
            "src 10.0.0.1 or src 10.0.0.2 or src fe80::1 or src 10.0.0.4",
        ),
        (
            "tcp and dst host (a-b.example or db.example) and port 80",
            "tcp and (dst 10.0.0.4 or dst 10.0.0.1 or dst 10.0.0.2 or dst fe80::1) and port 80",
        ),
        ("ip host db.example", "ip host 10.0.0.1 or ip host 10.0.0.2"),
        ("ip6 dst host db.example", "ip6 dst host fe80::1"),
        ("port http and host http", "port http and host 10.0.0.3"),
        (r"host \http", "host 10.0.0.3"),
        ("host a-b.example and not port 22", "host 10.0.0.4 and not port 22"),
    ],
)
def test_a_name_means_its_addresses(named: str, numeric: str, asked: Counter[str]) -> None:
    """An expression with names matches the same packets as one with addresses, wherever the names
    are.
    """
    assert _verdicts(named) == _verdicts(numeric)
    assert set(asked.values()) <= {1}


def _verdicts(expression: str) -> list[bool]:
    """The result of a filter for frames from and to each of some addresses, with TCP and some
    ports.
    """
    import ipaddress  # noqa: PLC0415
    import struct  # noqa: PLC0415

    matcher = packet_filter.Matcher({0: compile_all(expression)})
    found = []
    ends = [*("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.9.9.9", "127.0.0.1")], ["fe80::1", "::1", "fe80::9"]
    for addresses in ends:
        for source in addresses:
            for target in addresses:
                for port in (80, 22, 5):
                    tcp = struct.pack(">HH", 1, port) + bytes(16)
                    pair = b"".join(ipaddress.ip_address(one).packed for one in (source, target))
                    if "." in source:
                        frame = (
                            bytes(12) + b"\x08\0" + struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + pair + tcp
                        )
                    else:
                        frame = bytes(12) + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, 20, 6, 64) + pair + tcp
                    found.append(matcher.takes(0, 1, frame, len(frame)))
    assert any(found)
    assert not all(found)
    return found


def test_names_of_the_machine_are_not_looked_up(asked: Counter[str]) -> None:
    """Names in /etc/hosts are found by libpcap itself."""
    assert compile_all("host localhost")[1] == compile_expression("host localhost", 1)
    assert not asked


def test_each_name_is_looked_up_once(asked: Counter[str]) -> None:
    """Each name is looked up once for all link types and filters."""
    compile_all("host db.example or src host db.example")
    compile_all("not host db.example and host v6.example")
    assert asked == {"db.example": 1, "v6.example": 1}


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("host nosuch.example", "unknown host 'nosuch.example'"),
        ("ip6 host a-b.example", "unknown host 'a-b.example' for specified address family"),
        ("net nosuch.example", "unknown network 'nosuch.example'"),
        ("ether host db.example", "unknown ether host 'db.example'"),
        ("host db.example tcp prot", "can't parse filter expression: syntax error"),
    ],
)
def test_unknown_hosts_give_the_error_of_libpcap(expression: str, message: str, asked: Counter[str]) -> None:
    """A name without an address, or at a wrong position, gives the error of libpcap."""
    with pytest.raises(FilterError, match=message):
        compile_all(expression)
    assert set(asked.values()) <= {1}


def test_a_silent_name_server_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All names of all filters together are waited for until the deadline; the missing names are
    reported.
    """
    asked: Counter[str] = Counter()
    over = threading.Event()

    def ask(name: str) -> list[str]:
        asked[name] += 1
        over.wait(60)
        return []

    compile_all.cache_clear()
    monkeypatch.setattr(packet_filter, "_names", Names(1.0, ask))
    start = time.monotonic()
    for expression in ("host a.example or b.example", "host a.example", "dst host c.example"):
        with pytest.raises(FilterError, match=r"example'.*no name server answered in 1 s"):
            compile_all(expression)
    assert 1 <= time.monotonic() - start < 5
    assert asked == {"a.example": 1, "b.example": 1, "c.example": 1}
    over.set()
