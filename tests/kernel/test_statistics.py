"""A running daemon: status, metrics and file have the same numbers."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kernel.capture import Daemon, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Namespace, Wire
from tests.support.deadline import DEADLINE_S, until

SENT = 4703


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end (this process)."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


def status(path: Path) -> dict[str, Any]:
    """The answer of the daemon at its control socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(str(path))
        client.sendall(b"status\n")
        data = b""
        while more := client.recv(1 << 16):
            data += more
    found: dict[str, Any] = json.loads(data)
    return found


def scrape(namespace: Namespace) -> dict[str, float]:
    """The metrics for Prometheus: the numbers of packets by outcome or cause."""

    def get() -> str:
        connection = http.client.HTTPConnection("127.0.0.1", 9479, timeout=DEADLINE_S)
        with closing(connection):
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            assert response.status == 200
            return response.read().decode()

    text = namespace.do(get)
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("skbcapd_packets_") and sample.name != "skbcapd_packets_missed_total":
                found[next(iter(sample.labels.values()), sample.name)] = sample.value
    return found


def test_status_equals_the_file(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """Status and metrics include all packets while they run, and at the end equal the file."""
    control = tmp_path / "run" / "control"
    settings = {"control__socket": str(control), "metrics__listen": "127.0.0.1:9479"}
    with closing(Daemon(wire.near, tmp_path / "files", **settings)) as daemon:
        before: dict[str, int] = {}
        for number in range(SENT):
            marker.send()
            if number % 601 == 0:
                said = status(control)
                packets, dropped = said["packets"], said["dropped"]
                seen = packets.pop("seen")
                assert seen == sum(packets.values()) + sum(dropped.values())
                assert all(packets[name] >= count for name, count in before.items() if name != "pending")
                before = packets
        until(lambda: status(control)["packets"]["written"] >= SENT, "all are written")
        told = status(control)
        seen, scraped = told["packets"]["seen"], scrape(wire.near.namespace)
        parts = {name: value for name, value in scraped.items() if name != "skbcapd_packets_seen_total"}
        assert scraped["skbcapd_packets_seen_total"] == sum(parts.values()) >= seen
        ended = daemon.stop()

    assert ended.exit_code == 0
    assert not control.exists()
    (file,) = (path for path in (tmp_path / "files").glob("*.pcapng") if not path.is_symlink())
    found = read(file)
    assert ended.totals["captured"] == len(found) >= told["packets"]["written"]
    assert [packet.data for packet in found if packet.direction == "out"][: len(marker.sent)] == marker.sent
    (count,) = (one for one in told["by_interface"] if one["name"] == wire.near.device)
    mine = [packet for packet in found if packet.interface == wire.near.device][: count["packets"]]
    assert count["packets"] >= SENT
    assert count["bytes"] == sum(packet.original_len for packet in mine)
    assert count["dropped"] == 0
    assert told["wire_bytes"] >= count["bytes"]
    assert 0 < told["buffer_peak"] <= told["buffer_size"]
    assert told["upcalls"] > 0
    assert told["dropped"] == dict.fromkeys(("full", "contended", "start", "output"), 0)


def test_a_second_daemon_captures_without_a_socket(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """If another daemon listens already, it is logged, and the capture continues."""
    control = str(tmp_path / "control")
    with closing(Daemon(wire.near, tmp_path / "one", control__socket=control)) as first:
        with closing(Daemon(wire.near, tmp_path / "two", control__socket=control)) as second:
            assert "another process listens there" in second.said()
            marker.send()
            ended = second.stop()
        assert ended.totals["captured"] >= 1
        assert status(Path(control))["pid"] == first.process.pid
        first.stop()
