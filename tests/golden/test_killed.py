"""Writers that are killed by SIGKILL, up to 200 times: no flushed packet is missing.

Each writer is a process that writes numbered packets to file after file, as the daemon does, and
stores in shared memory how many are in its file. It is killed when that number exceeds a random
one. The next writer starts in the same directory, and so repairs the files. tshark reads the files.
"""

from __future__ import annotations

import gzip
import mmap
import random
import struct
from collections import deque
from multiprocessing import get_context
from pathlib import Path

import pytest

from skbcapd.kernel.segments import Upcall, read_local
from skbcapd.output import lock
from skbcapd.output.compressor import Compressor
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.interface import Statistics
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.triggers import Limits
from skbcapd.pcapng.comment import label
from skbcapd.pcapng.interface import Interface
from tests.support import faults
from tests.support.amount import tries
from tests.support.deadline import until
from tests.support.judges import judge, rows
from tests.support.writer import packet, upcall

TRIES = tries(200, 20)
FILE_BYTES = 400_000  # each file costs an fsync
FORK_SERVER = get_context("forkserver")


def write(directory: Path, counter: Path, attempt: int, compress: str) -> None:
    """Write packets until killed, in drains of 1 to 40 packets, some of them through Python."""
    randoms = random.Random(attempt)
    compressor = Compressor(compress) if compress != "none" else None
    output = RotatingOutput(CaptureDirectory(directory), Limits(FILE_BYTES), compressor=compressor, flush_s=1)
    output.add_interface(Interface(b"near0", "", 1, 262144, None, None, None))
    number = 0

    def snapshot() -> list[Statistics]:
        return [Statistics(0, 1, number, number, 0, number)]

    stamp = label([("comm", b"writer")], 0, 1058, 1059)
    behind: deque[tuple[int, int]] = deque()  # positions in the output, and the number of packets before them
    with counter.open("r+b") as file, mmap.mmap(file.fileno(), 8) as flushed:
        while True:
            frames = [
                frame(attempt, number + index, randoms.randrange(1400)) for index in range(randoms.randint(1, 40))
            ]
            number += len(frames)
            if randoms.random() < 0.2:
                first = read_local(memoryview(upcall(frames.pop(0))), 0)
                assert isinstance(first, Upcall)
                output.write_packet(first, 0, stamp, snapshot)
            output.write_blocks(memoryview(b"".join(packet(0, one) for one in frames)), snapshot)
            output.flush(snapshot)
            behind.append((output.accepted, number))
            while behind and behind[0][0] <= output.completed:
                struct.pack_into("<Q", flushed, 0, behind.popleft()[1])
            output.tick(snapshot)


def frame(attempt: int, number: int, length: int) -> bytes:
    """A frame with its number: Ethernet, of a type for experiments."""
    return bytes(12) + b"\x88\xb5" + struct.pack(">II", attempt, number) + bytes(38 + length)


def kill_one(directory: Path, counter: Path, attempt: int, compress: str) -> int:
    """Run a writer and kill it; returns how many packets it had flushed."""
    counter.write_bytes(bytes(8))
    aim = random.Random(-attempt - 1).randrange(1, 2000)
    process = FORK_SERVER.Process(target=write, args=(directory, counter, attempt, compress))
    process.start()

    def flushed() -> int:
        assert process.is_alive()
        return int(struct.unpack("<Q", counter.read_bytes())[0])

    until(lambda: flushed() >= aim, "the writer has flushed enough")
    process.kill()
    process.join()
    return int(struct.unpack("<Q", counter.read_bytes())[0])


@pytest.mark.many
@pytest.mark.parametrize("compress", ["none", "gzip"])
def test_what_was_flushed_is_there(compress: str, tmp_path: Path) -> None:
    """Of all killed writers, each flushed packet is in a renamed file, once, and no file is
    incomplete.
    """
    FORK_SERVER.set_forkserver_preload(["skbcapd.output.rotation", "tests.support.writer"])
    directory, counter = tmp_path / "captures", tmp_path / "flushed"
    flushed = [kill_one(directory, counter, attempt, compress) for attempt in range(TRIES // 2)]
    CaptureDirectory(directory).close()  # the next start

    files = sorted(entry for entry in directory.iterdir() if not entry.is_symlink() and entry.name != lock.NAME)
    assert all(entry.name.endswith((".pcapng", ".pcapng.gz")) for entry in files)
    assert len(files) > TRIES // 2
    judge(files[-1], "capinfos", *map(str, files[:-1]))
    found: list[list[int]] = [[] for _ in flushed]
    whole = tmp_path / "whole.pcapng"
    whole.write_bytes(b"".join(map(contents, files)))  # concatenated sections are a file
    for (data,) in rows(whole, "data.data"):
        attempt, number = struct.unpack(">II", bytes.fromhex(data.replace(":", ""))[:8])
        found[attempt].append(number)

    lost = sum(len(set(range(count)) - set(numbers)) for count, numbers in zip(flushed, found, strict=True))
    faults.add(f"SIGKILL, compress: {compress}", TRIES // 2, sum(flushed), sum(map(len, found)), lost)
    assert lost == 0
    assert all(numbers == list(range(len(numbers))) for numbers in found)


def contents(path: Path) -> bytes:
    """The bytes of a file, decompressed."""
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
