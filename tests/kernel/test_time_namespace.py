"""A capture in a time namespace, whose clocks differ by days from those of the kernel."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Capture, read
from tests.kernel.namespace import Wire
from tests.support import faults
from tests.support.deadline import DEADLINE_S

SENT = 7
SHIFTS = [("1000000", "1000000"), ("1000000", "0"), ("0", "86400")]
needs_time_namespaces = pytest.mark.skipif(
    not Path("/proc/self/ns/time").exists(), reason="this kernel has no time namespaces (CONFIG_TIME_NS)"
)


@needs_time_namespaces
@pytest.mark.parametrize(("monotonic", "boottime"), SHIFTS)
def test_time_stamps_and_names_are_right(monotonic: str, boottime: str, wire: Wire, tmp_path: Path) -> None:
    """Time stamps are those of the wall clock, and processes are found in /proc, whatever the
    offsets.
    """
    file = tmp_path / "a.pcapng"
    through = ("unshare", "--time", "--fork", "--monotonic", monotonic, "--boottime", boottime, "--")
    words = ("-i", wire.near.device, "-w", str(file), "-c", str(2 * SENT), "icmp")
    with closing(Capture(wire.near.namespace, *words, through=through, comment="comm,pid,tgid,ppid,exe")) as capture:
        before = time.time_ns()
        ping = ["ping", "-c", str(SENT), "-i", "0.1", wire.far.ipv4]
        wire.near.namespace.do(subprocess.run, ping, check=True, stdout=subprocess.DEVNULL, timeout=DEADLINE_S)
        after = time.time_ns()
        ended = capture.wait()
    assert ended.exit_code == 0, ended.stderr

    found = read(file)
    assert len(found) == 2 * SENT
    wrong = max(max(before - packet.time_ns, packet.time_ns - after, 0) for packet in found)
    faults.compare("a time namespace", 1, f"time stamps wrong by {wrong} ns")
    assert wrong == 0
    sent = [packet.comment for packet in found if packet.direction == "out"]
    assert len(sent) == SENT
    for comment in sent:
        assert comment.startswith("comm=ping ")
        assert "/ping" in comment.partition(" exe=")[2]


@needs_time_namespaces
def test_doctor_tells_the_offsets() -> None:
    """The report has the offsets, and that time stamps are corrected."""
    command = ["unshare", "--time", "--fork", "--monotonic", "1000", "--boottime", "2000", "--"]
    command += [sys.executable, "-c", "from skbcapd.kernel.requirements import findings; print(*findings(), sep='\\n')"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=True)
    assert "monotonic +1000 s, boottime +2000 s; time stamps are corrected" in done.stdout
