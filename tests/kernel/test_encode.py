"""The two ways into a file, the kernel's blocks and scapy's writer, leave the same bytes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from tests.kernel.blocks import PACKET, STATISTICS, blocks, options
from tests.kernel.capture import Capture, read
from tests.kernel.cases import CASES
from tests.kernel.comparison import Marker, run_sender
from tests.kernel.namespace import Wire
from tests.kernel.reference import Reference
from tests.kernel.send.identity import pattern
from tests.kernel.sink import Sink

ISB_STARTTIME, ISB_ENDTIME = 2, 3
TIMES_BYTES = 8


def test_both_ways_write_the_same_file(wire: Wire, tmp_path: Path) -> None:
    """The same traffic, captured at once with `encode: kernel` and `encode: scapy`, gives equal files, times aside."""
    near, sent_file = wire.near, tmp_path / "sent.bin"
    files = {way: tmp_path / f"{way}.pcapng" for way in ("kernel", "scapy")}
    arguments = {way: ("-i", near.device, "-w", str(file)) for way, file in files.items()}
    with (
        closing(Sink(wire.far.namespace)),
        closing(Marker(near.namespace, near.device)) as marker,
        closing(Reference(near.namespace, near.device)) as reference,
        closing(Capture(near.namespace, *arguments["kernel"], encode="kernel")) as kernel,
        closing(Capture(near.namespace, *arguments["scapy"], encode="scapy")) as scapy,
    ):
        for case in CASES:
            sent_file.write_bytes(pattern(case.size))
            senders, error = run_sender(near.namespace, case.command(wire, sent_file))
            assert senders, error
        reference.read_until(marker.send())
        for capture in (kernel, scapy):
            ended = capture.stop()
            assert (ended.exit_code, ended.totals["dropped by kernel"]) == (0, 0), ended.stderr
    found = {way: read(file) for way, file in files.items()}
    assert len(found["kernel"]) > sum(case.frames or 0 for case in CASES)
    # First packet by packet: of two files that differ, pytest could only say that they do.
    for ours, theirs in zip(*found.values(), strict=True):
        assert (ours.comment, ours.flags, ours.process, ours.data) == (
            theirs.comment,
            theirs.flags,
            theirs.process,
            theirs.data,
        )

    assert timeless(files["kernel"].read_bytes()) == timeless(files["scapy"].read_bytes())


def timeless(data: bytes) -> bytes:
    """Give a file with every time in it zeroed: packets' and statistics'."""
    cleared = bytearray(data)
    for block in blocks(data):
        body = block.at + 8
        if block.kind in {PACKET, STATISTICS}:
            cleared[body + 4 : body + 4 + TIMES_BYTES] = bytes(TIMES_BYTES)
        if block.kind == STATISTICS:
            for place, code, _ in options(block.body[12:]):
                if code in {ISB_STARTTIME, ISB_ENDTIME}:
                    cleared[body + 12 + place : body + 12 + place + TIMES_BYTES] = bytes(TIMES_BYTES)
    return bytes(cleared)
