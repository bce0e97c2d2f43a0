"""How much of a frame is kept: cuts in its head, at the borders of its pieces and behind them."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from tests.kernel.capture import Capture, read
from tests.kernel.cases import CASES
from tests.kernel.comparison import Marker, difference, run_sender
from tests.kernel.namespace import Wire
from tests.kernel.reference import Reference
from tests.kernel.send.identity import pattern
from tests.kernel.sink import Sink

SENT = ("seed-udp", "udp-1400", "tcp-short", "tcp-sendfile")
# Of a TCP frame by sendfile the linear part is 66 bytes, and its first page ends where the file's first page ends.
SNAPLENS = (64, 65, 66, 67, 4161, 4162, 4163, 262_144)


def test_the_start_of_each_frame_is_kept(wire: Wire, tmp_path: Path) -> None:
    """With -s N each frame is the first N bytes of what an AF_PACKET socket sees, with its true length beside it."""
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
