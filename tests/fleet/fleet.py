"""A small fleet for tests: captures, their indexes as they arrive, and the truth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from skbcapd.fleet import index_file
from skbcapd.fleet.intake import RAW
from tools import synthetic_fleet
from tools.synthetic_fleet import Seen

ROOT = Path(__file__).parents[2]
FILES = 3


def ship(base: Path, capture: Path) -> Path:
    """Index a capture, and put the index where a host sends it."""
    place = capture.parent.relative_to(base / "captures")
    host = place.parts[0].removeprefix("host=")
    index_file.write(capture, host)
    written = index_file.path_of(capture)
    target = base / RAW / place / written.name
    target.parent.mkdir(parents=True, exist_ok=True)
    return written.replace(target)


def make(base: Path, hosts: int = 15, packets: int = 401) -> list[Seen]:
    """A fleet whose indexes have arrived."""
    truth = synthetic_fleet.make(base, hosts, FILES, packets)
    for capture in sorted((base / "captures").rglob("*.pcapng")):
        ship(base, capture)
    return truth


def run(*words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `skbcapd fleet`."""
    command = [sys.executable, "-m", "skbcapd", "fleet", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def judged(path: Path) -> list[tuple[int, str, str, int]]:
    """Time, host, process and tgid of all packets of a file, as tshark reads them."""
    fields = ["frame.time_epoch", "frame.interface_name", "frame.comment"]
    command = ["tshark", "-r", str(path), "-T", "fields", *(word for field in fields for word in ("-e", field))]
    found = []
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        time, interface, comment = line.split("\t")
        seconds, fraction = time.split(".")
        name = comment.partition("comm=")[2].partition(" pid=")[0].strip('"')
        tgid = comment.partition("tgid=")[2].partition(" ")[0]
        found.append((int(seconds) * 10**9 + int(fraction), interface.partition(": ")[0], name, int(tgid)))
    return found
