"""`skbcapd top` without files, at a running daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.capture import ROOT, Daemon, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.support.deadline import DEADLINE_S

SENT = 1009


class Viewer:
    """A running `skbcapd top --json`."""

    def __init__(self, control: Path, *arguments: str) -> None:
        words = ["top", "--json", "--set", f"control.socket={control}", *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skbcapd", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def report(self) -> dict[str, Any]:
        """The next report."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        found: dict[str, Any] = json.loads(line)
        assert found["left_out"] == 0
        assert 0 < found["seconds"] < DEADLINE_S
        return found

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end (this process)."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


@pytest.mark.timeout(2 * DEADLINE_S)
def test_reports_have_every_packet(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """All packets while somebody watches are in exactly one report, of the right process; a second viewer with
    selectors sees its own; the capture has the same packets.
    """
    control = tmp_path / "control"
    with closing(Daemon(wire.near, tmp_path / "files", control__socket=str(control))) as daemon:
        with closing(Viewer(control)) as all_, closing(Viewer(control, "--direction", "in")) as received:
            all_.report()
            received.report()
            for _ in range(SENT):
                marker.send()
            packets = size = 0
            while packets < SENT:
                for row in all_.report()["rows"]:
                    if row["tgid"] == os.getpid():
                        assert row["received_packets"] == 0
                        packets += row["sent_packets"]
                        size += row["sent_bytes"]
            assert packets == SENT
            assert size == sum(map(len, marker.sent))
            assert os.getpid() not in [row["tgid"] for row in received.report()["rows"]]
        ended = daemon.stop()
    assert ended.exit_code == 0
    (file,) = (path for path in (tmp_path / "files").glob("*.pcapng") if not path.is_symlink())
    found = [packet.data for packet in read(file) if packet.direction == "out"]
    assert [data for data in found if data in marker.sent] == marker.sent
