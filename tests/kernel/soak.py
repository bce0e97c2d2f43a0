"""`make soak`: a daemon with very many processes, interfaces, reloads and files. Memory does not
grow, no packet is missing.

Not part of `make test-all`: it takes SKBCAPD_SOAK_S seconds (default 600) and a machine with time
for it.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.kernel import table
from tests.kernel.capture import Daemon
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Namespace, Wire
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.support.blocks import packets
from tests.support.judges import facts

SECONDS = float(os.environ.get("SKBCAPD_SOAK_S", "600"))
SAMPLES = 60
GROWTH_MAX_KIB = 8 << 10  # from the median of the second third of the time to that of the last third
PROCESSES = 20
COMMAND = """
import os, socket, sys
for number in range(int(sys.argv[3])):
    if not os.fork():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"soak", (sys.argv[1], int(sys.argv[2])))
        os._exit(0)
for number in range(int(sys.argv[3])):
    os.wait()
"""
# One after the other; each keeps all packets completely.
CONFIGS = (
    "rules: [{comm: nobody, action: drop}]",
    "comment: [comm, tgid, unit, exe]",
    "filter: udp or not udp",
    "process_blocks: true",
    "rules: [{comm: python*, filter: greater 1}, {action: keep}]",
)


def resident_kib(pid: int) -> int:
    """Private memory of a process, without files and memory shared with the kernel."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


@contextmanager
def again_and_again(act: Callable[[], object], pause_s: float) -> Iterator[None]:
    """Repeat something until the end, in a thread."""
    over, failures = threading.Event(), []

    def run() -> None:
        try:
            while not over.wait(pause_s):
                act()
        except Exception as error:  # noqa: BLE001  raised below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failures, failures


@pytest.mark.timeout(0)
def test_a_long_storm(wire: Wire, tmp_path: Path) -> None:
    """Processes, interfaces, reloads, new files: memory does not grow, each packet is written or
    counted.
    """
    config, directory, near = tmp_path / "skbcapd.yaml", tmp_path / "captures", wire.near
    config.write_text("{}")
    reloads, sizes = 0, []

    def churn_processes() -> None:
        words = [sys.executable, "-E", "-s", "-S", "-c", COMMAND, wire.far.ipv4, str(DISCARD_PORT), str(PROCESSES)]
        near.namespace.do(subprocess.run, words, check=True)

    def churn_devices() -> None:
        busy.ip(
            *(f"link add a{number} group 7 type veth peer name b{number}" for number in range(7)),
            *(f"link set {end}{number} up" for number in range(7) for end in "ab"),
            "link delete group 7",
        )

    def reload() -> None:
        nonlocal reloads
        config.write_text(CONFIGS[reloads % len(CONFIGS)])
        daemon.process.send_signal(signal.SIGHUP)
        reloads += 1

    with ExitStack() as stack:
        busy = stack.enter_context(closing(Namespace()))
        stack.enter_context(closing(Sink(wire.far.namespace)))
        marker = stack.enter_context(closing(Marker(near.namespace, near.device)))
        theirs = {"interfaces": "any", "namespaces": f"{busy.name},{near.namespace.name},{wire.far.namespace.name}"}
        settings = theirs | {"files__every": "20s", "files__size": "10MiB", "directions": "out"}
        daemon = stack.enter_context(closing(Daemon(near, directory, config=config, **settings)))
        with ExitStack() as storms:
            for act, pause_s in ((churn_processes, 0.1), (churn_devices, 0.2), (reload, 5.0), (marker.send, 0.001)):
                storms.enter_context(again_and_again(act, pause_s))
            for _ in range(SAMPLES):
                time.sleep(SECONDS / SAMPLES)
                sizes.append(resident_kib(daemon.process.pid))
                daemon.said()
        ended = daemon.stop(signal.SIGTERM)

    files = sorted(file for file in directory.glob("skbcapd-*.pcapng") if not file.is_symlink())
    seen = [
        packet.data
        for file in files
        for packet in packets(file.read_bytes())
        if packet.interface == near.device and packet.data[12:14] == marker.sent[0][12:14]
    ]
    written = sum(int(next(value for name, value in facts(file) if name == "Number of packets")) for file in files)
    thirds = [statistics.median(sizes[at : at + SAMPLES // 3]) for at in range(0, SAMPLES, SAMPLES // 3)]
    table.add_soak(SECONDS, reloads, len(files), written, ended.lost, *thirds)

    assert ended.exit_code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "not reloaded" not in ended.stderr
    assert ended.lost == 0
    assert ended.totals["captured"] == written
    assert seen == marker.sent
    assert thirds[2] - thirds[1] < GROWTH_MAX_KIB
