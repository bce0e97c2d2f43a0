"""Checksums that the hardware would compute: kept, or computed with `checksums: fill`; checked with
tshark.
"""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.kernel.capture import Capture, read
from tests.kernel.cases import CASES
from tests.kernel.comparison import Marker, run_sender
from tests.kernel.namespace import Wire
from tests.kernel.send.identity import pattern
from tests.kernel.sink import Sink
from tests.support.blocks import Packet
from tests.support.judges import judge

CHECKSUM_NOT_READY = 1 << 9
GOOD, BAD = "1", "0"
COUNT = 23
# The tshark field of the checksum in the frames of each case: UDP or TCP.
PROTOCOLS = MappingProxyType(
    {"udp-0": "udp", "udp-1400": "udp", "udp6-1400": "udp", "udp-gso": "udp"}
    | {"tcp-short": "tcp", "tcp6-send": "tcp", "tcp-sendfile": "tcp"}
)


def captured(wire: Wire, directory: Path) -> dict[str, Path]:
    """Send the cases under two captures."""
    files = {way: directory / f"{way}.pcapng" for way in ("keep", "fill")}
    near, sent_file = wire.near, directory / "sent.bin"
    with ExitStack() as stack:
        stack.enter_context(closing(Sink(wire.far.namespace)))
        marker = stack.enter_context(closing(Marker(near.namespace, near.device)))
        captures = [
            stack.enter_context(
                closing(Capture(near.namespace, "-i", near.device, "-w", str(file), checksums=way, directions="out"))
            )
            for way, file in files.items()
        ]
        for case in CASES:
            if case.name in PROTOCOLS:
                sent_file.write_bytes(pattern(case.size))
                senders, error = run_sender(near.namespace, case.command(wire, sent_file))
                assert senders, error
        marker.send()
        for capture in captures:
            ended = capture.stop()
            assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    return files


@pytest.fixture(scope="module")
def files(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file with checksums kept, and one with checksums filled in, of the same frames."""
    return captured(wire, tmp_path_factory.mktemp("checksums"))


def verdicts(path: Path) -> Counter[str]:
    """The result of tshark for the checksums of UDP and TCP."""
    columns = ("-T", "fields", "-e", "udp.checksum.status", "-e", "tcp.checksum.status")
    wanted = ("-o", "udp.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-Y", "udp or tcp")
    return Counter(line.strip() for line in judge(path, "tshark", "-n", *wanted, *columns).splitlines())


def unready(packets: list[Packet]) -> int:
    """The number of packets whose checksum is marked as not ready."""
    return sum(bool(packet.flags & CHECKSUM_NOT_READY) for packet in packets)


def test_kept_checksums_are_wrong_and_marked_so(files: dict[str, Path]) -> None:
    """With `checksums: keep` tshark finds most checksums wrong, and each of them is marked as not
    ready.
    """
    found = verdicts(files["keep"])

    assert found[BAD] > 100
    assert found[BAD] <= unready(read(files["keep"]))


def test_filled_checksums_are_right(files: dict[str, Path]) -> None:
    """With `checksums: fill` tshark finds all checksums of UDP and TCP right, with IPv4 and IPv6,
    also in large frames.
    """
    kept, filled = read(files["keep"]), read(files["fill"])

    assert verdicts(files["fill"]) == Counter({GOOD: len(filled) - 1})  # without the marker
    assert [len(packet.data) for packet in filled] == [len(packet.data) for packet in kept]
    assert unready(filled) == 0
    assert max(packet.original_len for packet in filled) > 60_000
    assert all(
        (one.comment, one.process, one.flags | CHECKSUM_NOT_READY)
        == (other.comment, other.process, other.flags | CHECKSUM_NOT_READY)
        for one, other in zip(filled, kept, strict=True)
    )


@pytest.mark.vm
@pytest.mark.devices("link lower0 name upper0 type vlan id 7")
def test_checksums_after_a_tag_are_right(wire: Wire, tmp_path: Path) -> None:
    """The checksum of a frame whose VLAN tag is not in its bytes yet is written after the tag."""
    near, file = wire.near, tmp_path / "tagged.pcapng"
    for command in (
        f"link add link {near.device} name tagged7 type vlan id 7",
        "address add 10.99.7.1/24 dev tagged7",
        "link set tagged7 up",
        f"neigh add 10.99.7.2 lladdr {wire.far.mac} dev tagged7",
    ):
        near.namespace.ip(command)
    arguments = ("-i", near.device, "-w", str(file))
    with (
        closing(
            Capture(near.namespace, *arguments, checksums="fill", directions="out", filter="vlan 7 and udp")
        ) as capture,
        near.namespace.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for number in range(COUNT):
            sender.sendto(pattern(101 + number), ("10.99.7.2", 9))
        ended = capture.stop()
    near.namespace.ip("link delete tagged7")

    assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    packets = read(file)
    assert [packet.data[12:18] for packet in packets] == [b"\x81\x00\x00\x07\x08\x00"] * COUNT
    assert unready(packets) == 0
    assert verdicts(file) == Counter({GOOD: COUNT})
