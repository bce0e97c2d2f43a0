"""Process rules in the kernel program: which packets are kept, and how many bytes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, Daemon, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.kernel.sink import DISCARD_PORT, NTP_PORT, Sink
from tests.support.deadline import until

COUNT = 23
HEADERS = 14 + 20 + 8
SENDER = """
import socket, sys
from pathlib import Path
Path("/proc/self/comm").write_text(sys.argv[1])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for number in range(int(sys.argv[3])):
        for port in sys.argv[4:]:
            sender.sendto(b"x" * (200 + number), (sys.argv[2], int(port)))
print("sent", flush=True)
sys.stdin.read()
"""


@contextmanager
def sender(wire: Wire, comm: str) -> Iterator[None]:
    """Run a process with that name that sends COUNT datagrams to each of two ports, and continues."""
    words = [comm, wire.far.ipv4, str(COUNT), str(DISCARD_PORT), str(NTP_PORT)]
    command = [sys.executable, "-E", "-s", "-S", "-c", SENDER, *words]
    with wire.near.namespace.do(subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"sent\n"
        yield


def port(frame: bytes) -> int:
    """The destination port of a UDP datagram."""
    return int.from_bytes(frame[36:38], "big")


@pytest.mark.vm
def test_rules_choose_by_process(wire: Wire, tmp_path: Path) -> None:
    """Packets are kept, cut, filtered or dropped by the first matching rule of their process, and
    all are counted.
    """
    file = tmp_path / "rules.pcapng"
    rules = (
        f"[{{comm: whole}}, {{comm: cut, snaplen: 96}}, {{comm: cho*, filter: udp port {NTP_PORT}}}, {{action: drop}}]"
    )
    arguments = ("-i", wire.near.device, "-w", str(file))
    with (
        closing(Sink(wire.far.namespace)),
        closing(Capture(wire.near.namespace, *arguments, directions="out", rules=rules)) as capture,
    ):
        for comm in ("whole", "cut", "chosen", "dropped"):
            with sender(wire, comm):
                pass
        ended = capture.stop()
    packets = read(file)

    assert ended.exit_code == 0, ended.stderr
    assert ended.lost == 0
    assert Counter((packet.label.comm, port(packet.data)) for packet in packets if packet.label) == {
        ("whole", DISCARD_PORT): COUNT,
        ("whole", NTP_PORT): COUNT,
        ("cut", DISCARD_PORT): COUNT,
        ("cut", NTP_PORT): COUNT,
        ("chosen", NTP_PORT): COUNT,
    }
    assert all(packet.label for packet in packets)
    assert {len(packet.data) for packet in packets if packet.label and packet.label.comm == "cut"} == {96}
    assert all(
        len(packet.data) == packet.original_len for packet in packets if packet.label and packet.label.comm != "cut"
    )
    assert ended.totals["filtered"] >= 3 * COUNT
    assert ended.totals["captured"] == 5 * COUNT


@pytest.mark.vm
def test_a_rule_has_the_memory_written(wire: Wire, tmp_path: Path) -> None:
    """The first packet of a rule with `dump` writes the earlier packets to a file, and with `dump_after`
    also those of the next second; later packets are not dropped.
    """

    def files() -> list[Path]:
        return sorted(file for file in tmp_path.glob("skbcapd-*.pcapng") if not file.is_symlink())

    rules = f"[{{comm: cho*, filter: udp port {NTP_PORT}, action: dump, dump_after: 1s}}]"
    settings = {"directions": "out", "files__mode": "ring", "rules": rules}
    with (
        closing(Sink(wire.far.namespace)),
        closing(Marker(wire.near.namespace, wire.near.device)) as marker,
        closing(Daemon(wire.near, tmp_path, **settings)) as daemon,
    ):
        for _ in range(COUNT):
            marker.send()
        with sender(wire, "other"):
            assert not files()
        with sender(wire, "chosen"):
            until(lambda: bool(files()), "a dump is made")
        ended = daemon.stop()
    first, *later = map(read, files())

    assert "(trigger: rules[1])" in ended.stderr
    assert [packet.data for packet in first if packet.data in marker.sent] == marker.sent
    before = Counter(
        (packet.label.comm, port(packet.data)) for packet in first if packet.label and packet.label.comm == "other"
    )
    assert before == {("other", DISCARD_PORT): COUNT, ("other", NTP_PORT): COUNT}
    found = [packet for file in (first, *later) for packet in file if packet.label and packet.label.comm == "chosen"]
    assert {port(packet.data) for packet in found} == {NTP_PORT}
    assert len(found) == COUNT
    missed = [packet.time_ns for file in later for packet in file]
    assert all(each > found[0].time_ns + 10**9 for each in missed)
    assert ended.totals["captured"] == sum(map(len, (first, *later)))
    assert ended.lost == 0


def test_rules_use_proc_and_ancestors(wire: Wire, tmp_path: Path) -> None:
    """Rules on the program, and on the program of an ancestor, apply to packets of processes that
    have just started.
    """
    file, program = tmp_path / "rules.pcapng", Path(sys.executable).resolve()
    rules = (
        f"[{{comm: other, action: drop}}, {{exe: {program}, comm: program}}, "
        f"{{tgid: {os.getpid()}, children: true}}, {{action: drop}}]"
    )
    arguments = ("-i", wire.near.device, "-w", str(file))
    with (
        closing(Sink(wire.far.namespace)),
        closing(Capture(wire.near.namespace, *arguments, directions="out", rules=rules)) as capture,
        sender(wire, "program"),
        sender(wire, "child"),
        sender(wire, "other"),
    ):
        ended = capture.stop()
    assert ended.exit_code == 0, ended.stderr
    found = Counter(packet.label.comm for packet in read(file) if packet.label)
    assert found == {"program": 2 * COUNT, "child": 2 * COUNT}
