"""The blocks of the kernel program and those of scapy's writer have the same bytes."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, read
from tests.kernel.cases import CASES
from tests.kernel.comparison import Marker, difference, run_sender
from tests.kernel.namespace import Wire
from tests.kernel.reference import Reference
from tests.kernel.send.identity import pattern
from tests.kernel.sink import DISCARD_PORT, NTP_PORT, Sink
from tests.support.blocks import EPB_PACKETID, PACKET, STATISTICS, blocks, options
from tests.support.deadline import until

ISB_STARTTIME, ISB_ENDTIME = 2, 3
TIMES_BYTES = 8
FIRST = b"the first datagram"


def has_both_first(file: Path) -> bool:
    """Whether the first datagrams, to two ports, are in a file."""
    return file.read_bytes().count(FIRST) == 2


@pytest.mark.parametrize("direction", ["out", "in"])
def test_kernel_and_scapy_write_the_same_file(direction: str, wire: Wire, tmp_path: Path) -> None:
    """The same traffic, captured at once with `encode: kernel` and `encode: scapy`, gives equal
    files.

    Times and packet identifiers, which are each capture's own, are left aside.

    Frames that leave one after another have one order; of frames that arrive on two CPUs each
    capture has its own. So has each the time at which it asks whose a connection is that nobody has
    accepted yet: no TCP that arrives.
    """
    near, watched = wire.near, wire.near if direction == "out" else wire.far
    files = {way: tmp_path / f"{way}.pcapng" for way in ("kernel", "scapy")}
    sent_file = tmp_path / "sent.bin"
    with ExitStack() as stack:
        stack.enter_context(closing(Sink(wire.far.namespace)))
        marker = stack.enter_context(closing(Marker(near.namespace, near.device)))
        reference = stack.enter_context(closing(Reference(watched.namespace, watched.device)))
        captures = []
        for way, file in files.items():
            arguments = ("-i", watched.device, "-w", str(file))
            capture = Capture(watched.namespace, *arguments, encode=way, directions=direction)
            captures.append(stack.enter_context(closing(capture)))
        # Who holds the sink's sockets is found out now, while this process has no child: one before
        # its exec(2) holds them, too, and for a capture that looks just then they are nobody's.
        sender = stack.enter_context(closing(near.namespace.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)))
        for port in (DISCARD_PORT, NTP_PORT):
            sender.sendto(FIRST, (wire.far.ipv4, port))
        for file in files.values():
            until(partial(has_both_first, file), "the first datagrams are in the file")
        for case in CASES:
            if not case.threads and not (case.streams and direction == "in"):
                sent_file.write_bytes(pattern(case.size))
                senders, error = run_sender(near.namespace, case.command(wire, sent_file))
                assert senders, error
        reference.read_until(marker.send())
        for capture in captures:
            ended = capture.stop()
            assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    assert len(read(files["kernel"])) == len(read(files["scapy"])) > 0
    by_kernel, by_scapy = (timeless(file.read_bytes()) for file in files.values())
    if direction == "in":
        by_kernel, by_scapy = sorted(by_kernel), sorted(by_scapy)

    parting = difference(by_kernel, by_scapy)
    assert not parting, parting


def timeless(data: bytes) -> list[bytes]:
    """The blocks of a file, with all times and packet identifiers set to zero."""
    cleared = bytearray(data)
    for block in blocks(data):
        body = block.at + 8
        if block.kind in {PACKET, STATISTICS}:
            cleared[body + 4 : body + 4 + TIMES_BYTES] = bytes(TIMES_BYTES)
        if block.kind == PACKET:
            captured = int.from_bytes(block.body[12:16], "little")
            behind = 20 + captured + -captured % 4
            for place, code, _ in options(block.body[behind:]):
                if code == EPB_PACKETID:
                    cleared[body + behind + place : body + behind + place + 8] = bytes(8)
        if block.kind == STATISTICS:
            for place, code, _ in options(block.body[12:]):
                if code in {ISB_STARTTIME, ISB_ENDTIME}:
                    cleared[body + 12 + place : body + 12 + place + TIMES_BYTES] = bytes(TIMES_BYTES)
    starts = [block.at for block in blocks(data)]
    return [bytes(cleared[start:end]) for start, end in pairwise([*starts, len(data)])]
