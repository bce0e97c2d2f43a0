"""`make bench`: skbcapd beside tcpdump, in one run, on one machine.

In: nothing. Out: a table in Markdown on stdout, and the same as JSON in build/bench.json.

Two network namespaces joined by a veth pair; one sender, as fast as it goes; the capture is on the sender's device,
only frames that leave, whole, into a file on this disk. Tools take turns in shuffled order; each figure is the median
of the rounds. CPU is user and system time of the capture process between the moment it says it is capturing and the
moment it has written all (compiling the program before that is not in it: it is paid once, at start).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
NEAR, FAR = "skbcapd-bench-a", "skbcapd-bench-b"
ADDRESS = "10.91.7.2"
DEVICE = "bench0"
READY = re.compile(r"capturing on|listening on")
TICKS = os.sysconf("SC_CLK_TCK")

TOOLS = {
    "skbcapd": [sys.executable, "-m", "skbcapd", "capture", "-i", DEVICE, "--set", "directions=out", "-w"],
    "tcpdump": ["tcpdump", "-n", "-Z", "root", "-B", "65536", "-Q", "out", "-s", "262144", "-i", DEVICE, "-w"],
}


@dataclass(frozen=True, slots=True)
class Figures:
    """One tool, one load, one round."""

    tool: str
    size: int
    sent: int
    captured: int
    dropped: int
    cpu_us_per_packet: float
    packets_per_second: float
    file_bytes_per_packet: float
    rss_mib: float
    start_s: float


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def wire() -> Iterator[None]:
    """Two namespaces and the pair of devices between them, without neighbour discovery."""
    for name in (NEAR, FAR):
        _ip("netns", "add", name)
    try:
        _ip("-n", NEAR, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", FAR)
        for name, address in ((NEAR, "10.91.7.1"), (FAR, ADDRESS)):
            _ip("netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", DEVICE)
            _ip("-n", name, "link", "set", DEVICE, "up")
        link = json.loads(subprocess.check_output(["ip", "-j", "-n", FAR, "link", "show", DEVICE]))
        _ip("-n", NEAR, "neigh", "replace", ADDRESS, "lladdr", link[0]["address"], "dev", DEVICE)
        # Nobody answers: an ICMP error per datagram would be another load.
        _ip("-n", FAR, "route", "add", "blackhole", "10.91.7.1/32")
        yield
    finally:
        for name in (NEAR, FAR):
            _ip("netns", "del", name)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _wait(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a capture tool did not get ready")
        time.sleep(0.01)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern} in {text!r}")
    return int(found[1])


def measure(tool: str, sender: Path, size: int, count: int, directory: Path) -> Figures:
    """One round of one tool.

    Raises:
        TimeoutError: the tool never said that it captures.
    """
    target, log = directory / "capture", directory / "log"
    enter = ["ip", "netns", "exec", NEAR]
    with log.open("w") as words:
        begun = time.monotonic()
        process = subprocess.Popen([*enter, *TOOLS[tool], str(target)], stderr=words, stdout=words)
        try:
            _wait(lambda: READY.search(log.read_text()))
            start_s = time.monotonic() - begun
            before = _cpu_s(process.pid)
            sent = subprocess.check_output([*enter, str(sender), ADDRESS, str(size), str(count)], text=True).split()
            written = -1
            while written != (written := target.stat().st_size):  # until the file grows no more
                time.sleep(0.3)
            cpu = _cpu_s(process.pid) - before
            rss = _number(r"VmRSS:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text()) / 1024
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    text = log.read_text()
    captured, dropped = (_number(rf"(\d+) packets? {what}", text) for what in ("captured", "dropped by kernel"))
    figures = Figures(
        tool=tool,
        size=size,
        sent=count - int(sent[0]),
        captured=captured,
        dropped=dropped,
        cpu_us_per_packet=cpu / captured * 1e6,
        packets_per_second=count / float(sent[1]),
        file_bytes_per_packet=target.stat().st_size / captured,
        rss_mib=rss,
        start_s=start_s,
    )
    target.unlink()
    return figures


def table(results: list[Figures]) -> str:
    """Medians, and the ratio to tcpdump, as Markdown."""
    lines = [
        "| load | tool | captured/sent | dropped | CPU us/packet | of tcpdump's | pps | B/packet | RSS MiB | start s |",
        "|-|-|-|-|-|-|-|-|-|-|",
    ]
    for size in sorted({row.size for row in results}):
        base = statistics.median(row.cpu_us_per_packet for row in results if (row.size, row.tool) == (size, "tcpdump"))
        for tool in TOOLS:
            rows = [row for row in results if (row.size, row.tool) == (size, tool)]
            cpu = statistics.median(row.cpu_us_per_packet for row in rows)
            captured = statistics.median(row.captured / row.sent for row in rows)
            lines.append(
                f"| UDP {size} B unpaced, {rows[0].sent} | {tool} "
                f"| {captured:.5f} | {max(row.dropped for row in rows)} "
                f"| {cpu:.3f} | {cpu / base:.2f} | {statistics.median(row.packets_per_second for row in rows):.0f} "
                f"| {statistics.median(row.file_bytes_per_packet for row in rows):.0f} "
                f"| {statistics.median(row.rss_mib for row in rows):.0f} "
                f"| {statistics.median(row.start_s for row in rows):.2f} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=1_000_000, help="datagrams of 64 bytes; a third of it of 1400")
    options = parser.parse_args()
    build = HERE.parent / "build"
    build.mkdir(exist_ok=True)
    results: list[Figures] = []
    with tempfile.TemporaryDirectory(dir=build) as name, wire():
        directory = Path(name)
        sender = directory / "send"
        subprocess.run(["cc", "-O2", "-o", str(sender), str(HERE / "send.c")], check=True)
        for number in range(options.rounds):
            turns = [(tool, size) for tool in TOOLS for size in (64, 1400)]
            random.shuffle(turns)
            for tool, size in turns:
                count = options.count if size == 64 else options.count // 3
                results.append(measure(tool, sender, size, count, directory))
                row = results[-1]
                print(f"round {number + 1}: {tool} {size} B: {row.cpu_us_per_packet:.3f} us", file=sys.stderr)
    (build / "bench.json").write_text(json.dumps([asdict(row) for row in results], indent=1))
    load = os.getloadavg()[0]
    print(f"{os.uname().release}, {os.cpu_count()} processors, load average {load:.2f}, {options.rounds} rounds\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
