"""TCP: all kinds of segments, in all contexts in which the kernel sends them."""

from __future__ import annotations

import ctypes
import select
import socket
import struct

from tests.kernel.send.tcp import finish, wait_until_acknowledged
from tests.kernel.sink import TCP_PORT
from tests.kernel.stage import Player, Scenario, Stage, connect, listener, scaled, udp_socket
from tests.kernel.verdict import Frame, Judge, Right, by_signature
from tests.support.blocks import Label
from tests.support.deadline import DEADLINE_S

CONNECTIONS = 23
UPLOAD_BYTES = DOWNLOAD_BYTES = 3_000_017
FEW_BYTES = 100_003
RETRANSMISSIONS = 3
UNACCEPTED = 4  # packets of a connection that can pass before it is accepted: data, their ACK, FIN, its ACK
UNNAMED = 7  # all packets until then, if the processes that can accept have nothing in common
SERVER_PORT, OLDER_PORT = 40_031, 40_037
SYN, ACK = 0x02, 0x10

# include/uapi/asm-generic/socket.h, include/uapi/linux/filter.h
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
RETURN_NOTHING = struct.pack("HBBI", 6, 0, 0, 0)  # BPF_RET | BPF_K


class Deaf:
    """A socket that drops all packets without an answer, until it is closed or accepts again."""

    def __init__(self, deaf: socket.socket) -> None:
        self._deaf = deaf
        program = ctypes.create_string_buffer(RETURN_NOTHING)
        deaf.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))

    def hear(self) -> None:
        """Drop no more."""
        self._deaf.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, b"\0" * 4)


def client(way: str, count: int, few: int) -> Scenario:
    """A client of the far end's listener, which reads to the end."""

    def play(stage: Stage) -> Judge:
        to = stage.wire.far.ipv4
        senders = stage.play("tcp", way, "--to", to, "--port", TCP_PORT, "--count", scaled(count, few))
        return by_signature(senders, senders)

    name = {"connects": "TCP SYN, FIN", "uploads": "TCP bulk upload"}[way]
    return Scenario(name, play, 11, vm=True)


def downloads(stage: Stage) -> Judge:
    """Pure acknowledgements: nothing else is sent."""
    size = scaled(DOWNLOAD_BYTES, FEW_BYTES)
    with listener(stage.far, stage.wire.far.ipv4) as listening:
        player = stage.start("tcp", "downloads", "--to", stage.wire.far.ipv4, "--port", listening.getsockname()[1])
        connection, _ = listening.accept()
        connection.sendall(bytes(size))
        finish(connection)
        senders = player.end()
    return by_signature(senders, senders)


def retransmission(stage: Stage) -> Judge:
    """The far end drops the data until they have been sent three times, then accepts them."""
    with listener(stage.far, stage.wire.far.ipv4) as listening:
        to, port = stage.wire.far.ipv4, listening.getsockname()[1]
        player = stage.start("tcp", "retransmission", "--to", to, "--port", port, "--count", RETRANSMISSIONS)
        senders = player.says()
        connection, _ = listening.accept()
        deaf = Deaf(connection)
        player.go()
        player.says()
        deaf.hear()
        player.go()
        finish(connection)
        player.end()
    return by_signature(senders, senders)


def syn_again(stage: Stage) -> Judge:
    """A SYN that is dropped and sent again; the connection is made in the end."""
    with listener(stage.far, stage.wire.far.ipv4) as listening:
        deaf = Deaf(listening)
        with stage.watch() as wait_for:
            player = stage.start("tcp", "connects", "--to", stage.wire.far.ipv4, "--port", listening.getsockname()[1])
            wait_for(lambda frame: frame.tcp_flags == SYN, 2)
        deaf.hear()
        connection, _ = listening.accept()
        finish(connection)
        senders = player.end()
    return by_signature(senders, senders)


def syn_ack_again(stage: Stage) -> Judge:
    """A SYN-ACK that the client drops and the kernel sends again; the connection is made in the
    end.
    """
    player = stage.start("tcp", "serves", "--source-port", SERVER_PORT)  # one connection
    owners = player.says()
    player.go()
    connection = stage.far.do(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
    deaf = Deaf(connection)
    with stage.watch() as wait_for:
        connection.settimeout(0)
        connection.connect_ex((stage.wire.near.ipv4, SERVER_PORT))
        wait_for(lambda frame: frame.tcp_flags == SYN | ACK, 2)
    deaf.hear()
    connection.settimeout(DEADLINE_S)
    select.select([], [connection], [], DEADLINE_S)  # writable when it is connected
    finish(connection)
    player.end()
    return by_signature(owners, owners)


def accepted_late(stage: Stage) -> Judge:
    """Connections whose data are acknowledged before they are accepted."""
    player = stage.start("tcp", "accepts_late", "--source-port", SERVER_PORT, "--count", CONNECTIONS)
    for _ in range(CONNECTIONS):
        owners = player.says()
        connection = connect(stage.far, stage.wire.near.ipv4, SERVER_PORT)
        connection.sendall(bytes(997))
        wait_until_acknowledged(connection)
        player.go()
        finish(connection)
    player.go()
    player.end()
    return by_signature(owners, owners)


def server(way: str, name: str, *, vm: bool = False) -> Scenario:
    """A server that connections come in to, one after the other, each with data up and a signature
    down.
    """
    workers = 2 if way == "workers_accept" else 1
    each = CONNECTIONS // workers
    unaccepted = UNACCEPTED if way == "serves" else UNNAMED

    def play(stage: Stage) -> Judge:
        player = stage.start("tcp", way, "--source-port", SERVER_PORT, "--count", each)
        owners = player.says()
        player.go()
        for _ in range(each * workers):
            connection = connect(stage.far, stage.wire.near.ipv4, SERVER_PORT)
            connection.sendall(bytes(997))
            finish(connection)
        owners += player.end()
        if way == "worker_serves":  # the worker before has the listening socket, too, and at first its parent's name
            owners.append(Label(owners[0].comm, 0, 0))

        def right(frame: Frame) -> Right:
            if frame.signature:
                return [frame.signature]
            # Between its signatures a connection is used by one of the server's processes.
            return None if frame.is_housekeeping else owners

        return right

    return Scenario(name, play, each * workers * 6, each * workers * unaccepted, vm=vm)


def exits(stage: Stage) -> Judge:
    """A process fills the pipe and exits; only then does the far end read."""
    with listener(stage.far, stage.wire.far.ipv4) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        player = stage.start("tcp", "exits", "--to", stage.wire.far.ipv4, "--port", listening.getsockname()[1])
        connection, _ = listening.accept()
        senders = player.end()
        finish(connection)
    return by_signature(senders, senders)


def start_older(stage: Stage) -> tuple[Player, list[socket.socket]]:
    """Connect both ways before the capture, and bind a UDP port."""
    to = stage.wire.far.ipv4
    with listener(stage.far, to) as listening:
        port = listening.getsockname()[1]
        count = ("--source-port", OLDER_PORT, "--count", CONNECTIONS)
        player = stage.start("tcp", "older", "--to", to, "--port", port, *count)
        player.says()
        player.go()
        connections = [listening.accept()[0], connect(stage.far, stage.wire.near.ipv4, OLDER_PORT)]
        player.says()
    return player, connections


def older(stage: Stage) -> Judge:
    """At first, the sockets only receive."""
    player, connections = stage.early[OLDER]
    for connection in connections:
        connection.sendall(bytes(997))
    with udp_socket(stage.far) as asking:
        for _ in range(CONNECTIONS):
            asking.sendto(b"?", (stage.wire.near.ipv4, OLDER_PORT))
    player.go()
    for connection in connections:
        finish(connection)
    senders = player.end()
    return by_signature(senders, senders)


OLDER = "TCP and UDP sockets older than the capture"
SCENARIOS = [
    client("connects", CONNECTIONS, 7),
    server("serves", "TCP SYN-ACK, an accepted connection", vm=True),
    Scenario("TCP accepted late", accepted_late, CONNECTIONS * 6, CONNECTIONS * UNACCEPTED),
    client("uploads", UPLOAD_BYTES, FEW_BYTES),
    Scenario("TCP pure ACKs of a download", downloads, 17),
    Scenario("TCP data sent again", retransmission, 7),
    Scenario("TCP SYN sent again", syn_again, 7),
    Scenario("TCP SYN-ACK sent again", syn_ack_again, 7, UNACCEPTED),
    Scenario("TCP data of a process that has exited", exits, 17),
    server("worker_serves", "TCP accepted, served by a forked worker"),
    server("workers_accept", "TCP accepted by forked workers"),
    Scenario(OLDER, older, CONNECTIONS * 2, 3, early=start_older, vm=True, searched=True),
]
