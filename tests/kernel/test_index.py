"""The index that a daemon writes beside its files."""

from __future__ import annotations

import gzip
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from skbcapd.fleet import rows
from tests.kernel.capture import Daemon
from tests.kernel.namespace import End, Namespace
from tests.support import judges
from tests.support.deadline import until


@pytest.fixture(scope="module")
def lo() -> Iterator[End]:
    """The loopback interface of a namespace."""
    with closing(Namespace()) as namespace:
        namespace.ip("link set lo up")
        yield End(namespace, "lo", "", "127.0.0.1", "::1")


def send() -> None:
    """Datagrams of this process that nobody receives."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for _ in range(101):
            sender.sendto(b"payload", ("127.0.0.1", 40961))


def test_a_finished_file_has_an_index(lo: End, tmp_path: Path) -> None:
    """The rows of a rotated and compressed file name the process and the port; the sums are those that tshark reads."""
    directory = tmp_path / "captures"
    with closing(Daemon(lo, directory, files__compress="gzip", files__index="true")) as daemon:
        lo.namespace.do(send)
        daemon.process.send_signal(signal.SIGUSR1)
        until(lambda: bool(list(directory.glob("*.pcapng.gz"))), "the first file is compressed")
        ended = daemon.stop()
    assert ended.exit_code == 0
    assert "index" not in ended.stderr
    (file,) = directory.glob("*.pcapng.gz")
    with gzip.open(f"{file}.index.csv.gz", "rt") as text:
        found = list(rows.read(text))
    mine = [row for row in found if row.peer_port == 40961]
    assert {(row.process_pid, row.interface, row.file) for row in mine} == {(os.getpid(), "lo", file.name)}
    assert sum(row.packets_out for row in mine) == 101
    sizes = [int(size) for (size,) in judges.rows(file, "frame.len")]
    assert sum(row.packets_out + row.packets_in + row.packets_unknown for row in found) == len(sizes)
    assert sum(row.bytes_out + row.bytes_in + row.bytes_unknown for row in found) == sum(sizes)
