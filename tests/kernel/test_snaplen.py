"""The snaplen: cuts in the headers, at the borders of fragments and after them."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, read
from tests.kernel.cases import CASES
from tests.kernel.comparison import Marker, difference, run_sender
from tests.kernel.namespace import Wire
from tests.kernel.reference import Reference
from tests.kernel.send.identity import pattern
from tests.kernel.sink import Sink

SENT = ("seed-udp", "udp-1400", "tcp-short", "tcp-sendfile")
# In a TCP frame of sendfile the linear part has 66 bytes, and its first page ends where the first
# page of the file ends.
SNAPLENS = (64, 65, 66, 67, 4161, 4162, 4163, 262_144)

EXPERIMENTAL = b"\x88\xb6"  # an EtherType that is nobody's: IEEE 802, local experimental 2


@pytest.mark.parametrize("snaplen", [65, pytest.param(262_144, marks=pytest.mark.vm)])
def test_frames_of_each_short_length(wire: Wire, tmp_path: Path, snaplen: int) -> None:
    """Frames from a bare header to twice the size that is copied without a call, without a zero
    byte: as sent, and as received.
    """
    near, far = wire.near, wire.far
    frames = [
        bytes.fromhex("02 00 00 00 00 02 02 00 00 00 00 01") + EXPERIMENTAL + bytes(n % 255 + 1 for n in range(size))
        for size in range(256)
    ]
    with ExitStack() as stack:
        captures = {
            end: stack.enter_context(
                closing(
                    Capture(
                        end.namespace,
                        *("-i", end.device, "-s", str(snaplen), "-w", str(tmp_path / direction)),
                        directions=direction,
                    )
                )
            )
            for end, direction in ((near, "out"), (far, "in"))
        }
        marker = stack.enter_context(closing(Marker(near.namespace, near.device)))
        reference = stack.enter_context(closing(Reference(far.namespace, far.device)))
        with near.namespace.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind((near.device, 0))
            for frame in frames:
                sender.send(frame)
        theirs = [frame.data for frame in reference.read_until(marker.send())]
        ended = [capture.stop() for capture in captures.values()]

    assert [frame for frame in theirs if frame[12:14] == EXPERIMENTAL] == frames
    for direction, found in zip(("out", "in"), ended, strict=True):
        assert (found.exit_code, found.lost) == (0, 0), found.stderr
        packets = [packet for packet in read(tmp_path / direction) if packet.data[12:14] == EXPERIMENTAL]
        parting = difference([frame[:snaplen] for frame in frames], [packet.data for packet in packets])
        assert not parting, f"{direction}: {parting}"
        assert [packet.original_len for packet in packets] == list(map(len, frames))


def test_the_start_of_each_frame_is_kept(wire: Wire, tmp_path: Path) -> None:
    """With -s N each frame is the first N bytes of that of an AF_PACKET socket, with its original
    length.
    """
    near, sent_file = wire.near, tmp_path / "sent.bin"
    files = {snaplen: tmp_path / f"{snaplen}.pcapng" for snaplen in SNAPLENS}
    with ExitStack() as stack:
        stack.enter_context(closing(Sink(wire.far.namespace)))
        marker = stack.enter_context(closing(Marker(near.namespace, near.device)))
        reference = stack.enter_context(closing(Reference(near.namespace, near.device)))
        captures = []
        for snaplen, file in files.items():
            arguments = ("-i", near.device, "-s", str(snaplen), "-w", str(file))
            capture = Capture(near.namespace, *arguments, **{"directions": "out", "buffer.size": "16MiB"})
            captures.append(stack.enter_context(closing(capture)))
        reference.read_until(marker.send())
        for case in CASES:
            if case.name in SENT:
                sent_file.write_bytes(pattern(case.size))
                senders, error = run_sender(near.namespace, case.command(wire, sent_file))
                assert senders, error
        theirs = [frame.data for frame in reference.read_until(marker.send()) if frame.outgoing]
        for capture in captures:
            ended = capture.stop()
            assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr

    for snaplen, file in files.items():
        packets = read(file)[1:-1]  # between the markers
        parting = difference([frame[:snaplen] for frame in theirs], [packet.data for packet in packets])
        assert not parting, f"-s {snaplen}: {parting}"
        assert [packet.original_len for packet in packets] == list(map(len, theirs))
    assert max(map(len, theirs)) > 60_000
