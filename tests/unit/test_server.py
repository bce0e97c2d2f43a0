"""The listeners: answers, rejected requests, and clients that try to block them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.daemon import server as listeners
from skbcapd.daemon.dumps import Dumps
from skbcapd.daemon.server import Server, control
from skbcapd.daemon.server import http as page
from skbcapd.daemon.viewers import Viewers
from skbcapd.errors import FileError
from skbcapd.pcapng.live import ACCEPTED, HEAD, MARK, MARK_SIZE
from tests.support.deadline import DEADLINE_S, until
from tests.support.rig import Rig

UNKNOWN = "unknown request; expected: status, dump, dumped or watch"
FACTS = {"version": "0.1.0", "packets": {"seen": 41}}


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


class House:
    """A server with a control socket and a metrics port; the test calls `serve`."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.path = str(directory / "run" / "control")
        self.server = Server(self.clock)
        self.viewers = Viewers(Rig().capture)
        self.server.serve_also(self.viewers)
        self.server.listen_unix(self.path, control(lambda: FACTS, Dumps(None), self.viewers))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = free.getsockname()
        self.server.listen_tcp(self.address, page("/metrics", "text/plain", lambda: b"x" * self.size))
        self.size = 23

    def knock(self) -> socket.socket:
        """A client of the control socket."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(DEADLINE_S)
        client.connect(self.path)
        return client

    def say(self, *pieces: bytes) -> bytes:
        """All answers to these parts of a request, each served before the next."""
        with self.knock() as client:
            for piece in pieces:
                with contextlib.suppress(BrokenPipeError):  # the server can have closed the connection
                    client.sendall(piece)
                self.server.serve()
            client.shutdown(socket.SHUT_WR)
            self.server.serve()
            return read(client)

    def ask(self, method: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        """The answer as Python's HTTP client reads it."""
        found = []
        host, port = self.address

        def go() -> None:
            connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_S)
            connection.request(method, path)
            response = connection.getresponse()
            found.append((response.status, response.read(), dict(response.headers)))
            connection.close()

        thread = threading.Thread(target=go)
        thread.start()
        until(lambda: self.server.serve() or not thread.is_alive(), "the client has its answer")
        thread.join()
        return found[0]

    @property
    def descriptors(self) -> int:
        """The number of open descriptors of this process."""
        return len(list(Path("/proc/self/fd").iterdir()))


def read(client: socket.socket) -> bytes:
    """Everything until the other side closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := client.recv(1 << 16):
            data += more
    return data


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Both listeners."""
    made = House(tmp_path)
    yield made
    made.server.close()
    made.viewers.close()


def test_status_is_answered(house: House) -> None:
    """The answer is one line of JSON, also if the request arrives byte by byte; later bytes are not
    read.
    """
    assert json.loads(house.say(b"status\n")) == FACTS
    assert json.loads(house.say(*(bytes([byte]) for byte in b"status\n"))) == FACTS
    assert house.say(b"status\nstatus\n").count(b"\n") == 1


@pytest.mark.parametrize("request_", [b"\n", b"STATUS\n", b"status \n", b"packets\n", b"stop\n", b"\xff\x00\n"])
def test_unknown_requests_are_rejected(request_: bytes, house: House) -> None:
    """Any other line gets an error that repeats nothing of it."""
    assert json.loads(house.say(request_)) == {"error": UNKNOWN}


def test_watch_makes_a_viewer(house: House) -> None:
    """A client that may watch keeps its connection, beyond the limit for a request; others get an error."""
    answer = control(lambda: FACTS, Dumps(None), house.viewers)
    refused = answer(b"watch\n", os.geteuid() + 1)
    assert isinstance(refused, bytes)
    assert "only root and the user of the daemon" in json.loads(refused)["error"]
    with house.knock() as client:
        client.sendall(b"watch\n")
        house.server.serve()
        assert client.recv(100) == ACCEPTED
        house.clock.now += 1e6
        house.server.tick()
        house.viewers.tick()
        house.viewers.tick()
        assert HEAD.unpack(client.recv(HEAD.size)) == (MARK, MARK_SIZE)
        client.close()
        assert house.viewers.is_watched
        house.server.serve()
        assert not house.viewers.is_watched


@pytest.mark.parametrize("pieces", [[b""], [b"status"], [b"x" * 4097], [b"x"] * 33, [b"x" * 4096, b"\n"]])
def test_invalid_requests_get_no_answer(pieces: list[bytes], house: House) -> None:
    """Without an end of line, with more than 4096 bytes or more than 32 parts, the connection is
    closed without an answer.
    """
    assert house.say(*pieces) == b""


def test_the_socket_is_for_owner_and_group(house: House) -> None:
    """The mode of the socket is 660, whatever the umask, and it is deleted with the server."""
    found = Path(house.path).stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660
    house.server.close()
    assert not Path(house.path).exists()


def test_a_dead_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    """The socket of a killed daemon is replaced; a used socket is not, and neither is a file."""
    path = tmp_path / "control"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    first, second = Server(), Server()
    first.listen_unix(str(path), control(lambda: FACTS, Dumps(None), Viewers(Rig().capture)))
    with pytest.raises(FileError, match="another process listens there"):
        second.listen_unix(str(path), control(dict, Dumps(None), Viewers(Rig().capture)))
    second.close()
    assert path.exists()
    first.close()

    path.write_text("mine")
    third = Server()
    with pytest.raises(FileError, match="not a socket"):
        third.listen_unix(str(path), control(dict, Dumps(None), Viewers(Rig().capture)))
    third.close()
    assert path.read_text() == "mine"


def test_a_port_in_use_is_reported(house: House) -> None:
    """A port in use gives an error with its number."""
    second = Server()
    with pytest.raises(FileError, match=rf"127\.0\.0\.1 port {house.address[1]}: Address already in use"):
        second.listen_tcp(house.address, control(dict, Dumps(None), Viewers(Rig().capture)))
    second.close()


def test_silent_clients_are_disconnected(house: House) -> None:
    """After five seconds without a request, or with an answer that is not read, the connection is
    closed.
    """
    house.size = 64 << 20
    with house.knock() as silent, socket.create_connection(house.address) as lazy:
        lazy.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        until(lambda: house.server.serve() or bool(lazy.recv(1, socket.MSG_PEEK)), "an answer begins")
        before = house.descriptors
        house.clock.now = listeners.PATIENCE_S - 0.001
        assert house.server.tick(), "clients are connected"
        assert house.descriptors == before
        house.clock.now = listeners.PATIENCE_S
        house.server.tick()
        assert house.descriptors == before - 2
        assert not house.server.tick(), "no client is left"
        assert read(silent) == b""


def test_the_oldest_client_is_disconnected(house: House) -> None:
    """With the maximum number of clients, one more is served, and the oldest is disconnected."""
    with contextlib.ExitStack() as stack:
        silent = []
        for _ in range(listeners.CLIENTS_MAX):
            silent.append(stack.enter_context(house.knock()))
            house.server.serve()
        assert json.loads(house.say(b"status\n")) == FACTS
        assert read(silent[0]) == b""
        silent[1].sendall(b"status\n")
        house.server.serve()
        assert json.loads(read(silent[1])) == FACTS


def test_accepted_connections_per_second_are_limited(house: House) -> None:
    """At most so many clients are accepted per second; the next one waits, and the other listener
    is not affected.
    """
    for _ in range(listeners.ACCEPTS_MAX):
        assert json.loads(house.say(b"status\n")) == FACTS
    with house.knock() as late:
        late.sendall(b"status\n")
        for _ in range(7):
            house.server.serve()
        late.setblocking(False)  # noqa: FBT003
        with pytest.raises(BlockingIOError):
            late.recv(1)
        assert house.ask("GET", "/metrics")[0] == 200
        assert house.server.tick(), "a client waits"
        house.server.serve()
        late.settimeout(DEADLINE_S)
        assert json.loads(read(late)) == FACTS


def test_an_answer_is_sent_in_parts(house: House) -> None:
    """An answer larger than the socket buffer arrives completely, and no call waits for it."""
    house.size = 16 << 20
    status, body, headers = house.ask("GET", "/metrics")
    assert (status, len(body), headers["Connection"]) == (200, house.size, "close")


@pytest.mark.parametrize(
    ("method", "path", "status", "size"),
    [
        ("GET", "/metrics", 200, 23),
        ("GET", "/metrics?name[]=x", 200, 23),
        ("HEAD", "/metrics", 200, 0),
        ("GET", "/", 404, 18),
        ("GET", "/metrics/../packets", 404, 18),
        ("POST", "/metrics", 405, 13),
        ("DELETE", "/metrics", 405, 13),
    ],
)
def test_the_page_is_read_only(method: str, path: str, status: int, size: int, house: House) -> None:
    """GET and HEAD of the page are answered; other paths and methods get an HTTP error."""
    found, body, _ = house.ask(method, path)
    assert (found, len(body)) == (status, size)


def test_a_child_does_not_keep_connections_open(house: House) -> None:
    """A connection is closed and nothing waits, also while a child has its descriptor."""
    with house.knock() as client:
        house.server.serve()
        [listener] = [each for each in house.server._listeners.values() if each.clients]
        [descriptor] = listener.clients
        with contextlib.closing(socket.socket(fileno=os.dup(descriptor))):  # as after fork(2)
            client.sendall(b"status\n")
            house.server.serve()
            assert json.loads(read(client)) == FACTS
            client.close()
            assert not select.select([house.server], [], [], 0)[0]


@pytest.mark.fuzz
@given(
    st.lists(st.binary(max_size=300) | st.sampled_from([b"status\n", b"GET ", b"/metrics ", b"HTTP/1.1\r\n\r\n"])),
    st.booleans(),
)
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], at_port: bool) -> None:  # noqa: FBT001
    """For any bytes in any parts, the answer is nothing, the snapshot, an error or HTTP, and the
    server continues.
    """
    house = House(tmp_path_factory.mktemp("house"))
    try:
        before = house.descriptors
        if at_port:
            with socket.create_connection(house.address) as client:
                for piece in pieces:
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        client.sendall(piece)
                    house.server.serve()
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_WR)
                until(lambda: house.server.serve() or house.descriptors == before + 1, "it is let go")
                answer = read(client)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 4"))
        else:
            answer = house.say(*pieces)
            assert answer == b"" or json.loads(answer) in (FACTS, {"error": UNKNOWN})
        house.server.tick()
        assert json.loads(house.say(b"status\n")) == FACTS
        assert house.descriptors == before
    finally:
        house.server.close()
        os.rmdir(os.path.dirname(house.path))  # noqa: PTH106, PTH120
