"""TLS that tshark decrypts with nothing but the capture file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Capture, Daemon
from tests.kernel.namespace import End, Namespace
from tests.support.deadline import DEADLINE_S, until
from tests.support.judges import judge, rows
from tests.support.key_logs import found as secrets_in

VERSIONS = {"TLSv1_2": 40_812, "TLSv1_3": 40_813}


@pytest.fixture(scope="module")
def lo() -> Iterator[End]:
    """The loopback interface of a namespace."""
    with closing(Namespace()) as namespace:
        namespace.ip("link set lo up")
        yield End(namespace, "lo", "", "127.0.0.1", "::1")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the certificate."""
    return tmp_path_factory.mktemp("pair")


def ask(lo: End, version: str, path: str, keys: Path, pair: Path) -> None:
    """One HTTP request over TLS, by a process that writes its key log."""
    words = ["--port", str(VERSIONS[version]), "--path", path, "--keys", str(keys), "--pair", str(pair)]
    done = lo.namespace.do(
        subprocess.run,
        [sys.executable, "-m", "tests.kernel.send.tls", version, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def send() -> None:
    """A datagram that nobody receives."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"later", ("127.0.0.1", 9))


def requests(file: Path) -> list[str]:
    """What tshark decrypts of the requests in a file: it has no other key than those in the file."""
    found = [uri for port in VERSIONS.values() for (uri,) in decrypted(file, port)]
    return sorted(found)


def decrypted(file: Path, port: int) -> list[list[str]]:
    """The requests to one port."""
    return rows(file, "http.request.uri", where=f"http.request and tcp.port == {port}", decode=f"tcp.port=={port},tls")


def finished(directory: Path, ending: str = "") -> list[Path]:
    """The finished files, oldest first."""
    return sorted(path for path in directory.glob(f"skbcapd-*.pcapng{ending}") if not path.is_symlink())


def test_rotated_files_open_decrypted(lo: End, pair: Path, tmp_path: Path) -> None:
    """Each file has its TLS 1.2 and 1.3 decrypted: one that was rotated and compressed, and the last one."""
    keys, directory = tmp_path / "keys.log", tmp_path / "captures"
    with closing(Daemon(lo, directory, secrets=str(keys), files__compress="gzip")) as daemon:
        for version in VERSIONS:
            ask(lo, version, f"/first/{version}", keys, pair)
        daemon.process.send_signal(signal.SIGUSR1)
        until(lambda: bool(finished(directory, ".gz")), "the first file is compressed")
        for version in VERSIONS:
            ask(lo, version, f"/second/{version}", keys, pair)
        ended = daemon.stop()
    assert ended.exit_code == 0
    first, second = finished(directory, ".gz") + finished(directory)
    assert requests(first) == ["/first/TLSv1_2", "/first/TLSv1_3"]
    assert requests(second) == ["/second/TLSv1_2", "/second/TLSv1_3"]


def test_without_the_setting_nothing_is_decrypted(lo: End, pair: Path, tmp_path: Path) -> None:
    """By default no file has secrets, and tshark decrypts nothing."""
    keys, file = tmp_path / "keys.log", tmp_path / "a.pcapng"
    with closing(Capture(lo.namespace, "-i", "lo", "-w", str(file))) as capture:
        for version in VERSIONS:
            ask(lo, version, "/", keys, pair)
        capture.stop()
    assert requests(file) == []
    assert not any(line.split()[2] in file.read_bytes() for line in keys.read_bytes().splitlines()[1:])


def test_a_live_reader_gets_the_secrets(lo: End, pair: Path, tmp_path: Path) -> None:
    """The stream of `skbcapd capture -w -` has all lines of the key log, before packets that follow much later."""
    keys, file = tmp_path / "keys.log", tmp_path / "a.pcapng"
    keys.touch()
    with closing(Capture(lo.namespace, "-i", "lo", "-w", "-", secrets=str(keys))) as capture:
        for version in VERSIONS:
            ask(lo, version, "/live", keys, pair)
        lines = [line + b"\n" for line in keys.read_bytes().splitlines() if not line.startswith(b"#")]
        stream = bytearray()
        assert capture.process.stdout is not None
        output = capture.process.stdout.fileno()
        os.set_blocking(output, False)

        def has_all() -> bool:
            lo.namespace.do(send)
            with suppress(BlockingIOError):
                stream.extend(os.read(output, 1 << 20))
            return all(line in stream for line in lines)

        until(has_all, "the lines are in the stream")
        os.set_blocking(output, True)
        ended = capture.stop()
    stream += ended.stdout
    file.write_bytes(stream)
    judge(file, "capinfos")
    blocks = secrets_in(bytes(stream))
    assert [line for _, found in blocks for line in found] == lines
    assert blocks[0][0] < ended.totals["captured"]
