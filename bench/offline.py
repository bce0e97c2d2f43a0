"""Figures that need no traffic: reading captures, start, what is left by a crash, and the disk.

In: a directory on the disk of the captures. Out: one `Offline` for each round.

The capture is made here: frames of 64 bytes of many processes in random order, each block as skbcapd writes it. A
reading rate is that of a complete command, with its start, per second of CPU time. It is compared with a walk over the
lengths of the blocks in Python, which reads nothing else.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from bench.measure import wait_for
from skbcapd.output.aligned import BUFFER_SIZE, Buffers
from skbcapd.pcapng.blocks import DIRECTION_OUT, PACKET
from skbcapd.pcapng.comment import label
from skbcapd.pcapng.interface import Interface
from skbcapd.pcapng.link_type import ETHERNET
from skbcapd.pcapng.writer import PcapngWriter

_PROCESSES, _CHUNK_PACKETS, _FRAME_LEN = 800, 50_000, 64
_READ_BYTES, _CRASHED_BYTES, _WRITTEN_BYTES = 300 << 20, 1 << 30, 600 << 20
_WRITERS = (1, 2, 4)
_PYTHON = ["env", "-u", "PYTHONDONTWRITEBYTECODE", sys.executable, "-m", "skbcapd"]
_HEAD = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Offline:
    """One round. Rates in MB per second, of CPU time for reading; times in s.

    Args:
        walk: the lengths of the blocks, in Python.
        top, count, extract: `top --json`, `extract --count` and `extract -w` with all packets.
        start_kept, start_new: time until packets are captured, with and without a compiled program in the cache.
        crashed: what 1 GiB of a file that a crash has left adds to the start.
        disk: the best of several numbers of threads that write directly to the disk.
    """

    walk: float
    top: float
    count: float
    extract: float
    start_kept: float
    start_new: float
    crashed: float
    disk: float


class Captures:
    """The files that are read: one to analyze, and one that a crash has left.

    Args:
        directory: gets them.
        scale: amount of data; 1 is 300 MiB, and 1 GiB.
    """

    def __init__(self, directory: Path, scale: float) -> None:
        self.path, self.crashed = directory / "read.pcapng", directory / "crashed"
        self.crashed.mkdir()
        head, packets = _section(), _packets(random.Random(20))
        _write(self.path, head, packets, int(_READ_BYTES * scale))
        self.part = self.crashed / "bench-20260101T000000.000Z-000001.pcapng.part"
        _write(self.part, head, packets, int(_CRASHED_BYTES * scale))

    def restore(self) -> None:
        """Make the finished file a crashed one again, and delete the others."""
        for found in self.crashed.iterdir():
            if found.name == self.part.name.removesuffix(".part"):
                found.rename(self.part)
            elif found != self.part:
                found.unlink()


def _section() -> bytes:
    file = BytesIO()
    writer = PcapngWriter(file)
    writer.write_section("x86_64", "Linux", "bench")
    writer.write_interface(Interface(b"eth0", "", ETHERNET, _FRAME_LEN, None, None, None))
    return file.getvalue()


def _packets(rng: random.Random) -> bytes:
    """Blocks with labels of many processes, each with one flow."""
    shapes = []
    for number in range(_PROCESSES):
        tgid = rng.randrange(2, 4_000_000)
        fields: list[tuple[str, bytes | str | int]] = [("comm", f"worker-{number}"), ("pid", tgid), ("tgid", tgid)]
        ends = bytes([10, 0, number >> 8, number & 255, 10, 1, 0, 1]) + struct.pack(">HH", 20_000 + number, 53)
        frame = bytes(12) + b"\x08\x00\x45\x00" + bytes(7) + b"\x11" + bytes(2) + ends
        shapes.append((frame.ljust(_FRAME_LEN, b"\0"), label(fields, DIRECTION_OUT, tgid, tgid, linked=True)))
    blocks = bytearray()
    for packet in range(_CHUNK_PACKETS):
        frame, stamp = rng.choice(shapes)
        size = 32 + len(frame) + len(stamp.options)
        high, low = divmod(1_700_000_000_000_000_000 + packet * 4_000, 1 << 32)
        options = bytearray(stamp.options)
        struct.pack_into("<Q", options, stamp.flags_at + 8, packet)
        blocks += struct.pack("<7I", PACKET, size, 0, high, low, len(frame), len(frame)) + frame + options
        blocks += struct.pack("<I", size)
    return bytes(blocks)


def _write(path: Path, head: bytes, packets: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(head)
        for _ in range(max(1, size // len(packets))):
            file.write(packets)


def measure(captures: Captures, directory: Path) -> Offline:
    """One round, in random order."""
    kept, new, crashed, clean = (directory / name for name in ("kept", "new", "out", "clean"))
    starts = {
        "kept": lambda: _start(["capture", "-i", "lo", "-w", str(crashed)], kept),
        "new": lambda: _start(["capture", "-i", "lo", "-w", str(crashed)], new),
        "clean": lambda: _start(_run(clean), kept),
        "crashed": lambda: _start(_run(captures.crashed), kept),
    }
    kept.mkdir(exist_ok=True)
    if not any(kept.iterdir()):
        starts["kept"]()
    found = {}
    for name in random.sample(list(starts), len(starts)):
        found[name] = starts[name]()
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(clean, ignore_errors=True)
        captures.restore()
    rates = {
        "walk": lambda: _rate(captures.path, [sys.executable, "-c", _WALK, str(captures.path)]),
        "top": lambda: _rate(captures.path, [*_PYTHON, "top", "--json", str(captures.path)]),
        "count": lambda: _rate(captures.path, [*_PYTHON, "extract", "--count", str(captures.path)]),
        "extract": lambda: _rate(captures.path, [*_PYTHON, "extract", "-w", str(crashed), str(captures.path)]),
    }
    rate = {name: rates[name]() for name in random.sample(list(rates), len(rates))}
    crashed.unlink(missing_ok=True)
    return Offline(
        **rate,
        start_kept=found["kept"],
        start_new=found["new"],
        crashed=found["crashed"] - found["clean"],
        disk=max(_disk(directory / "disk", threads) for threads in _WRITERS),
    )


_WALK = """
import struct, sys
unpack, at = struct.Struct("<II").unpack_from, 0
with open(sys.argv[1], "rb", buffering=0) as file:
    data = file.read(1 << 20)
    while len(data) >= 8:
        last = len(data) - 8
        while at <= last:
            kind, length = unpack(data, at)
            at += length
        at -= len(data)
        data = file.read(1 << 20) if at >= 0 else data[at:] + file.read(1 << 20)
        at = max(at, 0)
"""


def _rate(path: Path, command: Sequence[str]) -> float:
    """MB of a file per second of CPU time of a command that reads it."""
    before = _children_s()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return path.stat().st_size / 1e6 / (_children_s() - before)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(directory: Path) -> list[str]:
    """The daemon with its defaults and files in a directory, without a control socket."""
    own = {
        "files.directory": directory,
        "files.name": "bench-{time}-{number}.pcapng",
        "control.socket": "none",
        "interfaces": "lo",
    }
    config = directory.with_suffix(".yaml")
    config.write_text("{}\n")
    directory.mkdir(exist_ok=True)
    return ["run", "--config", str(config), *(word for key in own for word in ("--set", f"{key}={own[key]}"))]


def _start(arguments: Sequence[str], cache: Path) -> float:
    """Time in s from a command until it captures; then it is ended."""
    cache.mkdir(exist_ok=True)
    log = cache / "log"
    with log.open("w") as words:
        begun = time.monotonic()
        process = subprocess.Popen(
            [*_PYTHON, *arguments], stdout=words, stderr=words, env={**os.environ, "CACHE_DIRECTORY": str(cache)}
        )
        try:
            wait_for(lambda: "capturing on" in log.read_text() or process.poll() is not None)
            found = time.monotonic() - begun
            if process.poll() is not None:
                raise RuntimeError(f"{arguments[0]} ended before it captured: {log.read_text()[-300:]!r}")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(120)
    log.unlink()
    return found


def _disk(path: Path, threads: int) -> float:
    """MB/s of threads that write directly to one preallocated file, each piece to its own place."""
    pieces = iter(range(_WRITTEN_BYTES // BUFFER_SIZE))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC)

    def work() -> None:
        buffer = Buffers().get()
        buffer[:] = bytes(BUFFER_SIZE)
        for piece in pieces:
            os.pwrite(descriptor, buffer, piece * BUFFER_SIZE)

    try:
        os.posix_fallocate(descriptor, 0, _WRITTEN_BYTES)
        workers = [threading.Thread(target=work) for _ in range(threads)]
        begun = time.monotonic()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return _WRITTEN_BYTES / 1e6 / (time.monotonic() - begun)
    finally:
        os.close(descriptor)
        path.unlink()
