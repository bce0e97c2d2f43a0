"""A capture whose reader stops reading: `capture -w -`, lines of text, and the FIFO of Wireshark."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Capture
from tests.kernel.namespace import Wire
from tests.kernel.test_disk import send
from tests.kernel.test_reload_faults import SLOWNESS
from tests.support import faults
from tests.support.deadline import DEADLINE_S, until

pytestmark = pytest.mark.faults

ENDS_WITHIN_S = 2.0 * SLOWNESS  # about one second, and the end of the process
COUNT = 5003
PACKET = 6  # Enhanced Packet Block


def is_full(descriptor: int) -> bool:
    """Whether a pipe holds so much that whoever writes to it waits."""
    held = bytearray(4)
    fcntl.ioctl(descriptor, 0x541B, held)  # FIONREAD
    return int.from_bytes(held, "little") > (1 << 16) - 4096


def blocks_of(stream: bytes) -> list[int]:
    """Where the complete packet blocks of a stream are, whose last block may be cut."""
    found, at = [], 0
    while at + 8 <= len(stream):
        kind, size = struct.unpack_from("<II", stream, at)
        if kind == PACKET and at + size <= len(stream):
            found.append(at)
        at += size
    return found


@pytest.mark.parametrize("to", [["-w", "-"], []])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_obeyed(number: signal.Signals, to: list[str], wire: Wire) -> None:
    """Ctrl-C and SIGTERM end a capture whose reader has stalled in about a second; what it did not take is counted."""
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, *to)) as capture:
        stdout = capture.process.stdout
        assert stdout is not None
        send(wire, COUNT)
        until(lambda: is_full(stdout.fileno()), "the pipe is full")
        begun = time.monotonic()
        capture.process.send_signal(number)
        exit_code = capture.process.wait(DEADLINE_S)
        took = time.monotonic() - begun
        ended = capture.wait()
    dropped = ended.totals["dropped by the output"]
    now = f"{' '.join(to) or 'lines'}, {number.name}: ended after {took:.1f} s, {dropped} dropped"
    faults.compare("a reader that stalls", 1, now)
    assert exit_code == 0, ended.stderr
    assert took < ENDS_WITHIN_S
    assert ended.totals["captured"] + dropped + ended.totals["dropped by kernel"] >= COUNT
    whole = ended.stdout.count(b"\n") if not to else len(blocks_of(ended.stdout))
    assert ended.totals["captured"] == whole


def test_wiresharks_fifo(wire: Wire, tmp_path: Path) -> None:
    """A Wireshark that hangs does not keep its capture from ending."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    words = [
        "extcap",
        "--capture",
        "--extcap-interface",
        "skbcapd",
        "--fifo",
        str(path),
        "--interfaces",
        wire.near.device,
    ]
    process = wire.near.namespace.do(
        subprocess.Popen, [sys.executable, "-m", "skbcapd", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:

        def is_stalled() -> bool:
            send(wire, 101)
            return is_full(reader)

        until(is_stalled, "the FIFO is full")
        begun = time.monotonic()
        process.terminate()
        _, said = process.communicate(timeout=DEADLINE_S)
        took = time.monotonic() - begun
    finally:
        process.kill()
        process.communicate()
        os.close(reader)
    faults.compare("a reader that stalls", 1, f"extcap: ended after {took:.1f} s")
    assert process.returncode == 0, said
    assert took < ENDS_WITHIN_S
