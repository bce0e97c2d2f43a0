"""Much traffic: the disk reads the shared memory itself, and every byte is right, also where a file
ends and the next one begins.
"""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, Daemon, read
from tests.kernel.namespace import Wire
from tests.kernel.sink import DISCARD_PORT
from tests.kernel.test_faults import finished

COUNT, WORDS = 12_000, 350  # 17 MB: eight segments
HEADERS = 14 + 20 + 8
DISCARD = DISCARD_PORT.to_bytes(2, "big")
SEND = f"""
import socket, sys
sender = socket.socket(type=socket.SOCK_DGRAM)
for number in range({COUNT}):
    sender.sendto(number.to_bytes(4, "little") * {WORDS}, (sys.argv[1], {DISCARD_PORT}))
"""


def send(wire: Wire) -> None:
    """Send numbered datagrams to the far end, as fast as possible."""
    wire.near.namespace.do(subprocess.run, ["python3", "-E", "-s", "-S", "-c", SEND, wire.far.ipv4], check=True)


def numbers(files: list[Path]) -> list[int]:
    """The numbers of the datagrams in the files; each has all its bytes, and its process."""
    found = [packet for path in files for packet in read(path) if packet.data[HEADERS - 6 : HEADERS - 4] == DISCARD]
    assert all(packet.data[HEADERS:] == packet.data[HEADERS : HEADERS + 4] * WORDS for packet in found)
    assert {packet.label and packet.label.comm for packet in found} == {"python3"}
    return [int.from_bytes(packet.data[HEADERS : HEADERS + 4], "little") for packet in found]


def test_one_file(wire: Wire, tmp_path: Path) -> None:
    """Much traffic into one file."""
    file = tmp_path / "a.pcapng"
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, "-w", str(file), directions="out")) as capture:
        send(wire)
        ended = capture.stop()
    assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    assert numbers([file]) == list(range(COUNT))


@pytest.mark.parametrize("buffer", ["8MiB", "64MiB"])
def test_many_files(buffer: str, wire: Wire, tmp_path: Path) -> None:
    """Much traffic into files of 3 MiB, also if half of it is all the memory that there is; then some can be
    dropped, and the others are right.
    """
    settings = {"files__size": "3MiB", "buffer__size": buffer, "directions": "out"}
    with closing(Daemon(wire.near, tmp_path, **settings)) as daemon:
        send(wire)
        ended = daemon.stop()
    files = finished(tmp_path)
    found = numbers(files)
    assert len(files) >= 3
    assert found == sorted(set(found))
    assert len(found) + ended.lost >= COUNT
    assert ended.exit_code == 0, ended.stderr
    assert buffer == "8MiB" or found == list(range(COUNT)), ended.stderr
