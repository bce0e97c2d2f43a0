"""Senders without ordinary sockets, and two ends on one machine."""

from __future__ import annotations

import subprocess

from tests.kernel.payloads import ICMP, TCP
from tests.kernel.scenarios.tcp import FEW_BYTES, UNACCEPTED
from tests.kernel.send.identity import pattern
from tests.kernel.sink import DISCARD_PORT, TCP_PORT
from tests.kernel.stage import FEW_TRACEPOINTS, Player, Scenario, Stage
from tests.kernel.verdict import Frame, Judge, Right, by_signature
from tests.support.blocks import Label
from tests.support.deadline import DEADLINE_S

SENDS = 23
TUN_DEVICE = "tun0"
TUN_HERE, TUN_THERE = "10.67.0.1", "10.67.0.2"
QUEUES_DEVICE, QUEUES_HERE, QUEUES_THERE, CLIENTS = "tunq0", "10.68.0.1", "10.68.0.2", 3
QUEUE_DEVICE, QUEUED = "queue0", 211
QUEUE_HERE, QUEUE_THERE = "10.83.0.1", "10.83.0.2"
TUN_PORT, TWO_ENDS_PORT, LOOPBACK_PORT = 40_087, 40_093, 40_099


def make_tun(stage: Stage) -> None:
    """Make the tun interface for a program at the near end, and enable forwarding."""
    stage.near.ip(
        f"tuntap add dev {TUN_DEVICE} mode tun",
        f"address add {TUN_HERE}/24 dev {TUN_DEVICE}",
        f"link set {TUN_DEVICE} addrgenmode none up",
    )
    stage.near.sysctl(ipv4__ip_forward="1")


def reported(way: str, name: str, *more: str | int) -> Scenario:
    """A sender of tests/kernel/send/datagrams.py: its payload has its ids, its report has its name."""

    def play(stage: Stage) -> Judge:
        to, source = stage.wire.far.ipv4, stage.wire.near.ipv4
        words: tuple[str | int, ...] = (
            "--comm",
            way,
            "--count",
            SENDS,
            "--size",
            56,
            "--to",
            to,
            "--source",
            source,
            *more,
        )
        [sender] = stage.play("datagrams", way, *words)

        def right(frame: Frame) -> Right:
            if frame.is_housekeeping or not frame.is_sent:
                return None
            return [sender] if frame.ids == (sender.tgid, sender.tid) else []

        return right

    return Scenario(name, play, SENDS)


def pages(way: str, *, vm: bool = False) -> Scenario:
    """Pages of a file that are sent over TCP; the reporting process is the sender."""

    def play(stage: Stage) -> Judge:
        file = stage.directory / "pages"
        file.write_bytes(pattern(FEW_BYTES))
        words = ("--comm", way, "--to", stage.wire.far.ipv4, "--port", TCP_PORT, "--file", str(file))
        senders = stage.play("stream", way, *words)
        return by_signature(senders, senders)

    return Scenario(f"{way} over TCP", play, 7, vm=vm)


def packet(stage: Stage) -> Judge:
    """Frames of an AF_PACKET socket."""
    stage.play("links", "packet", "--device", stage.wire.near.device, "--count", SENDS)
    return by_signature()


def uring(way: str, name: str) -> Scenario:
    """Datagrams sent through io_uring. A thread that the kernel creates has its own id: any is
    right.
    """

    def play(stage: Stage) -> Judge:
        to = stage.wire.far.ipv4
        stage.play("links", way, "--to", to, "--port", DISCARD_PORT, "--count", SENDS)
        return by_signature() if way == "uring" else any_thread

    return Scenario(name, play, SENDS)


def called(way: str, name: str, port: int = DISCARD_PORT) -> Scenario:
    """Sends by other system calls; over TCP if the port is one of TCP."""

    def play(stage: Stage) -> Judge:
        stream = ("--stream",) if port == TCP_PORT else ()
        words = ("--to", stage.wire.far.ipv4, "--port", port, "--count", SENDS, *stream)
        users = stage.play("links", way, *words)
        own = by_signature(users, users) if stream else by_signature()

        def right(frame: Frame) -> Right:
            found = own(frame)
            return AnyThread(users[0]) if found is not None and "worker" in way else found

        return right

    return Scenario(name, play, SENDS if port == DISCARD_PORT else 6)


def any_thread(frame: Frame) -> Right:
    """Compare process and name only."""
    return AnyThread(frame.signature) if frame.signature else None


class AnyThread(list[Label]):
    """All threads of a process, with the name of the process."""

    def __init__(self, who: Label) -> None:
        super().__init__([who])
        self._who = who

    def __contains__(self, label: object) -> bool:
        return isinstance(label, Label) and label._replace(tid=0) == self._who._replace(tid=0)


def tun_forwards(stage: Stage) -> Judge:
    """Forwarded packets name no process, although the system call of the writer forwards them."""
    to, source = stage.wire.far.ipv4, TUN_THERE
    stage.play("links", "tun_forwards", "--device", TUN_DEVICE, "--source", source, "--to", to, "--count", SENDS)

    def right(frame: Frame) -> Right:
        if frame.signature is None:
            return None
        return "forwarded" if frame.is_sent else "unknown"

    return right


def tun_asks(stage: Stage) -> Judge:
    """SYN-ACK and data belong to the server, resets and ICMP to the kernel: none to the writer."""
    server = stage.start("tcp", "streams", "--source-port", TUN_PORT, "--count", SENDS)
    servers = server.says()
    server.go()
    words = ("--device", TUN_DEVICE, "--source", TUN_THERE, "--to", TUN_HERE, "--port", TUN_PORT)
    stage.play("links", "tun_asks", *words, "--count", SENDS)
    server.end()

    def right(frame: Frame) -> Right:
        if TUN_PORT in frame.ports:
            return servers
        return "kernel" if frame.is_sent and frame.protocol in (ICMP, TCP) else None

    return right


def two_queues(stage: Stage) -> Judge:
    """A VPN with two queues and threads answers: an answer is for the client, and comes by the other queue."""
    stage.near.ip(
        f"tuntap add dev {QUEUES_DEVICE} mode tun multi_queue",
        f"address add {QUEUES_HERE}/24 dev {QUEUES_DEVICE}",
        f"link set {QUEUES_DEVICE} addrgenmode none up",
    )
    vpn = stage.start("links", "tun_queues", "--device", QUEUES_DEVICE, "--count", SENDS * CLIENTS)
    vpn.says()
    words = ("--to", QUEUES_THERE, "--port", DISCARD_PORT, "--count", SENDS)
    clients = [stage.start("udp", "asks", *words) for _ in range(CLIENTS)]
    for client in clients:
        client.end()
    vpn.end()
    stage.near.ip(f"link del {QUEUES_DEVICE}")
    return by_signature(echoed=True)


def make_queue(stage: Stage) -> None:
    """Make a device with a slow queue on top of the wire's near end.

    It answers for its own address only. Where neighbours sent what is for the near end's address to
    its hardware address, UDP for a socket that is bound to no address would be of nobody known.
    """
    near, far = stage.wire.near, stage.wire.far
    stage.near.sysctl(ipv4__conf__all__arp_ignore="1")
    stage.near.ip(
        f"link add {QUEUE_DEVICE} link {near.device} type macvlan mode bridge",
        f"link set {QUEUE_DEVICE} addrgenmode none up",
        f"address add {QUEUE_HERE}/24 dev {QUEUE_DEVICE}",
        f"neighbour add {QUEUE_THERE} lladdr {far.mac} nud permanent dev {QUEUE_DEVICE}",
    )
    stage.far.ip(f"address add {QUEUE_THERE}/24 dev {far.device}")
    slow = "root tbf rate 1mbit burst 2000 limit 1000000"
    command = ["tc", "-n", stage.near.name, "qdisc", "add", "dev", QUEUE_DEVICE, *slow.split()]
    subprocess.run(command, check=True, timeout=DEADLINE_S)


def queued(stage: Stage) -> Judge:
    """Two processes send more than the queue lets through at once.

    A datagram leaves the device below in a softirq, or inside the other process's system call,
    whichever empties the queue. Its socket is still its sender's.
    """
    words = ("--to", QUEUE_THERE, "--port", DISCARD_PORT, "--count", QUEUED)
    with stage.watch() as wait_for:
        players = [stage.start("udp", way, *words) for way in ("connected", "unconnected")]
        wait_for(lambda frame: frame.signature is not None, 2 * QUEUED)
        for player in players:
            player.end()
    return by_signature()


def late_neighbour(stage: Stage) -> Judge:
    """Datagrams whose neighbour becomes known late: they leave inside the system call of whoever
    makes it known.

    Every second sender has gone by then, its socket with it.
    """
    near, far = stage.wire.near, stage.wire.far
    with stage.watch() as wait_for:
        for number in range(SENDS):
            to = f"192.168.178.{100 + number}"
            player = stage.start("udp", "lingers", "--to", to, "--count", 1)
            player.says()
            if number % 2:
                player.go()
                player.end()
            stage.near.ip(f"neighbour replace {to} lladdr {far.mac} nud permanent dev {near.device}")
            if not number % 2:
                player.go()
                player.end()
        wait_for(lambda frame: frame.signature is not None, SENDS)
    return by_signature()


def two_ends(stage: Stage) -> Judge:
    """A client here, a server in the other namespace: what comes in is the client's, never the
    server's.
    """
    server = Player(stage.far, "udp", "answers", "--source-port", TWO_ENDS_PORT, "--count", SENDS)
    stage.stack.callback(server.close)
    server.says()
    server.go()
    to = stage.wire.far.ipv4
    [client] = stage.play("udp", "asks", "--to", to, "--port", TWO_ENDS_PORT, "--count", SENDS)
    server.end()
    return by_signature(received=[client])


def loopback_udp(stage: Stage) -> Judge:
    """Both ends here: a packet appears once, as its sender's."""
    server = stage.start("udp", "answers", "--source-port", LOOPBACK_PORT, "--count", SENDS)
    server.says()
    server.go()
    stage.play("udp", "asks", "--to", "127.0.0.1", "--port", LOOPBACK_PORT, "--count", SENDS)
    server.end()
    return by_signature(received=[])


def loopback_tcp(stage: Stage) -> Judge:
    """Both ends here, told apart by their ports. The server may be late to accept: then its first ACKs are unknown."""
    server = stage.start("tcp", "serves", "--source-port", LOOPBACK_PORT, "--count", 1)
    servers = server.says()
    server.go()
    clients = stage.play("tcp", "uploads", "--to", "127.0.0.1", "--port", LOOPBACK_PORT, "--count", FEW_BYTES)
    server.end()

    def right(frame: Frame) -> Right:
        if frame.is_housekeeping:
            return None
        return servers if frame.ports[0] == LOOPBACK_PORT else clients

    return right


SCENARIOS = [
    reported("icmp", "raw ICMP socket"),
    reported("ping", "ping socket"),
    Scenario("AF_PACKET socket", packet, SENDS),
    uring("uring", "io_uring, in the system call"),
    uring("uring_worker", "io_uring, by a worker"),
    uring("uring_poll", "io_uring, by the polling thread"),
    called("uring", "io_uring over TCP, in the system call", TCP_PORT),
    called("uring_worker", "io_uring over TCP, by a worker", TCP_PORT),
    called("aio", "Linux AIO"),
    called("aio", "Linux AIO over TCP", TCP_PORT),
    called("compat", "32-bit system calls"),
    called("compat", "32-bit system calls over TCP", TCP_PORT),
    pages("sendfile"),
    pages("splice", vm=True),
    Scenario("tun, written by a process, forwarded", tun_forwards, 2 * SENDS, SENDS),
    Scenario("tun, written by a process, answered here", tun_asks, 6 * SENDS, vm=True),
    Scenario("tun with two queues, answers", two_queues, 2 * SENDS * CLIENTS),
    Scenario("UDP through an interface with a queue", queued, QUEUED),
    Scenario("UDP that waits for its neighbour", late_neighbour, SENDS, unknown_by={FEW_TRACEPOINTS: SENDS}),
    Scenario("two namespaces, both ends here", two_ends, 2 * SENDS),
    Scenario("loopback UDP, both ends", loopback_udp, 2 * SENDS),
    Scenario("loopback TCP, both ends", loopback_tcp, 7, UNACCEPTED),
]
