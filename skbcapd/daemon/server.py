"""The listeners of a running capture: the control socket and the metrics port. One request, one
answer, then closed.

In: connections. Out: the result of `answer` for each request.

The rules not to break: clients are not trusted. Each listener has at most CLIENTS_MAX clients; one
more disconnects the oldest. At most REQUEST_MAX bytes of a request are read, in READS_MAX reads,
within PATIENCE_S. At most ACCEPTS_MAX connections are accepted per second. The drain loop calls
`serve` when the descriptor is readable: it never waits, and its work is limited. Unknown requests
are rejected. The only request that changes something is `dump`; it and `watch`, which gets packets, are
only for root and the user of the daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from skbcapd.daemon.dumps import Dumps
from skbcapd.daemon.viewers import Viewers
from skbcapd.errors import FileError
from skbcapd.pcapng import live
from skbcapd.worker import Worker

CLIENTS_MAX = 16  # per listener
REQUEST_MAX = 4096  # bytes
READS_MAX = 32  # reads per request
ACCEPTS_MAX = 32  # per second and listener
PATIENCE_S = 5.0  # from the connection to the end of the answer
SOCKET_MODE = 0o660
_EVENTS_MAX = 32  # per call


class Streams(Protocol):
    """Takes connections whose client gets more than one answer."""

    def add(self, sock: socket.socket, /) -> None:
        """Take a connection, and close it some time."""


Answer = Callable[[bytes, int], bytes | Streams | None]
"""Returns the answer to the bytes received so far, from a client of this user (-1: not known); None: the
request is not complete. Streams take over the connection."""
_CREDENTIALS = struct.Struct("=iII")  # struct ucred


@dataclass(eq=False, slots=True)
class _Client:
    """One connection."""

    listener: _Listener
    socket: socket.socket
    until: float
    request: bytes = b""
    reads: int = 0
    answer: memoryview = field(default_factory=lambda: memoryview(b""))


@dataclass(eq=False, slots=True)
class _Listener:
    """A listening socket and its clients, the oldest first."""

    socket: socket.socket
    answer: Answer
    clients: dict[int, _Client] = field(default_factory=dict)
    accepts_left: int = ACCEPTS_MAX


class Server:
    """Answers requests at several listeners.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoll = select.epoll()
        self._listeners: dict[int, _Listener] = {}
        self._paths: list[tuple[str, int]] = []  # UNIX sockets and their inode numbers
        self._viewers: Viewers | None = None

    def fileno(self) -> int:
        """Readable if `serve` must be called."""
        return self._epoll.fileno()

    def serve_also(self, viewers: Viewers) -> None:
        """Serve viewers, too; they are closed elsewhere."""
        self._viewers = viewers
        self._epoll.register(viewers, select.EPOLLIN)

    def listen_unix(self, path: str, answer: Answer) -> None:
        """Listen on a UNIX socket, for its owner and group. The socket of a process that has ended
        is replaced.

        Raises:
            FileError: it cannot be created, or another process listens there.
        """
        sock = socket.socket(socket.AF_UNIX)
        try:
            Path(path).parent.mkdir(mode=0o750, exist_ok=True)
            _remove_dead(path)
            before = os.umask(0o777 & ~SOCKET_MODE)
            try:
                sock.bind(path)
            finally:
                os.umask(before)
            self._paths.append((path, Path(path).stat().st_ino))
            self._open(sock, answer)
        except OSError as error:
            sock.close()
            raise FileError(f"{path}: {error.strerror}; expected to create the control socket") from None
        except FileError:
            sock.close()
            raise

    def listen_tcp(self, address: tuple[str, int], answer: Answer) -> None:
        """Listen on an IP address and port.

        Raises:
            FileError: it cannot be opened.
        """
        sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            self._open(sock, answer)
        except OSError as error:
            sock.close()
            raise FileError(
                f"{address[0]} port {address[1]}: {error.strerror}; expected a local address and a free port"
            ) from None

    def serve(self) -> None:
        """Serve all descriptors that are ready, with limits."""
        for descriptor, events in self._epoll.poll(0, _EVENTS_MAX):
            listener = self._listeners.get(descriptor)
            if listener is not None:
                self._accept(listener)
                continue
            if self._viewers is not None and descriptor == self._viewers.fileno():
                self._viewers.serve()
                continue
            client = next(
                (
                    listener.clients[descriptor]
                    for listener in self._listeners.values()
                    if descriptor in listener.clients
                ),
                None,
            )
            if client is not None:  # otherwise it was disconnected a moment ago
                self._go_on(client, events)

    def tick(self) -> bool:
        """Called each second while it returns that there was a client: disconnect clients that take too long, and
        accept new ones.
        """
        now, had_clients = self._clock(), False
        for listener in self._listeners.values():
            had_clients = had_clients or bool(listener.clients) or listener.accepts_left < ACCEPTS_MAX
            for client in [client for client in listener.clients.values() if now >= client.until]:
                self._drop(client)
            if not listener.accepts_left:
                self._epoll.register(listener.socket, select.EPOLLIN)
            listener.accepts_left = ACCEPTS_MAX
        return had_clients

    def close(self) -> None:
        """Close all listeners."""
        for listener in self._listeners.values():
            for client in list(listener.clients.values()):
                self._drop(client)
            listener.socket.close()
        worker = Worker("sockets")
        worker.do(self._delete_sockets)
        worker.wait(1.0)
        self._epoll.close()

    def _delete_sockets(self) -> None:
        """Delete the sockets in the file system, which may not respond."""
        for path, inode in self._paths:
            with contextlib.suppress(OSError):
                if Path(path).stat().st_ino == inode:
                    Path(path).unlink()

    def _open(self, sock: socket.socket, answer: Answer) -> None:
        sock.setblocking(False)  # noqa: FBT003  the name of the method says what is false
        sock.listen(CLIENTS_MAX)
        self._listeners[sock.fileno()] = _Listener(sock, answer)
        self._epoll.register(sock, select.EPOLLIN)

    def _accept(self, listener: _Listener) -> None:
        try:
            sock, _ = listener.socket.accept()
        except OSError:  # the client has disconnected, or there is no free descriptor
            sock = None
        listener.accepts_left -= 1
        if not listener.accepts_left:
            self._epoll.unregister(listener.socket)
        if sock is None:
            return
        if len(listener.clients) >= CLIENTS_MAX:
            self._drop(next(iter(listener.clients.values())))
        sock.setblocking(False)  # noqa: FBT003
        client = listener.clients[sock.fileno()] = _Client(listener, sock, self._clock() + PATIENCE_S)
        self._epoll.register(sock, select.EPOLLIN)
        self._go_on(client, select.EPOLLIN)

    def _go_on(self, client: _Client, events: int) -> None:
        """Read more of a request, or send more of an answer."""
        try:
            if not client.answer and events & ~select.EPOLLOUT:
                self._read(client)
            if client.answer:
                client.answer = client.answer[client.socket.send(client.answer) :]
                if not client.answer:
                    self._drop(client)
                else:
                    self._epoll.modify(client.socket, select.EPOLLOUT)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)

    def _read(self, client: _Client) -> None:
        more = client.socket.recv(REQUEST_MAX - len(client.request))
        client.request += more
        client.reads += 1
        answer = client.listener.answer(client.request, _user_of(client.socket))
        if isinstance(answer, bytes):
            client.answer = memoryview(answer)
        elif answer is not None:
            del client.listener.clients[client.socket.fileno()]
            self._epoll.unregister(client.socket)
            answer.add(client.socket)
        elif not more or client.reads >= READS_MAX or len(client.request) >= REQUEST_MAX:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if client.listener.clients.pop(client.socket.fileno(), None) is None:
            return
        # `close` alone is not enough while a child that compiles filters has the descriptor, too.
        self._epoll.unregister(client.socket)
        with contextlib.suppress(OSError):  # the client has disconnected
            client.socket.shutdown(socket.SHUT_RDWR)
        client.socket.close()


def _user_of(sock: socket.socket) -> int:
    """The user id of the process that has connected to a UNIX socket; -1 for other sockets.

    Source: SO_PEERCRED in unix(7).
    """
    if sock.family != socket.AF_UNIX:
        return -1
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(found)[1])


def _remove_dead(path: str) -> None:
    """Delete a socket if no process listens on it.

    Raises:
        FileError: a process listens on it, or it is not a socket.
    """
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise FileError(
            f"{path}: not a socket; expected no file", "set another path as control.socket, or delete the file"
        )
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # noqa: FBT003
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except BlockingIOError:
            pass  # its queue is full, so a process listens
    raise FileError(f"{path}: another process listens there; expected none", "each daemon needs its own control.socket")


def control(snapshot: Callable[[], Mapping[str, Any]], dumps: Dumps, viewers: Viewers) -> Answer:
    """The control socket: the answer to a line (`status`, `dump`, `dumped`) is one line of JSON, to `watch` a
    stream, to any other line an error.

    Args:
        snapshot: returns the statistics.
        dumps: answers requests for dumps.
        viewers: take the clients that watch.
    """

    def answer(request: bytes, user: int) -> bytes | Viewers | None:
        line, end, _ = request.partition(b"\n")
        if not end:
            return None
        if line == live.REQUEST.encode("ascii"):
            reply: Mapping[str, Any] | None = viewers.refusal(user)
            if reply is None:
                return viewers
        else:
            reply = snapshot() if line == b"status" else dumps.answer(line, user)
        if reply is None:
            reply = {"error": "unknown request; expected: status, dump, dumped or watch"}
        return json.dumps(reply).encode("ascii") + b"\n"

    return answer


def http(path: str, content_type: str, text: Callable[[], bytes]) -> Answer:
    """An HTTP server with one read-only page.

    Args:
        path: path of the page.
        content_type: its content type.
        text: returns the page.

    Source: RFC 9112; HTTP/1.0 and 1.1, with `Connection: close`.
    """

    def reply(status: str, body: bytes, *headers: str, is_head: bool = False) -> bytes:
        lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode("ascii") + (b"" if is_head else body)

    def answer(request: bytes, _user: int) -> bytes | None:
        head, end, _ = request.partition(b"\r\n\r\n")
        if not end:
            return None
        words = head.split(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return reply("400 Bad Request", b"expected HTTP/1.1\n")
        if words[0] not in {b"GET", b"HEAD"}:
            return reply("405 Method Not Allowed", b"expected GET\n", "Allow: GET, HEAD")
        if words[1].split(b"?")[0] != path.encode("ascii"):
            return reply("404 Not Found", f"expected {path}\n".encode("ascii"))
        return reply("200 OK", text(), f"Content-Type: {content_type}", is_head=words[0] == b"HEAD")

    return answer
