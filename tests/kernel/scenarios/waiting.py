"""Packets that had to wait, and leave on another's back: for a verdict of the firewall's, for a
neighbour, in a device.

Whoever lets them go (a program that gives verdicts, one that makes a neighbour known, one that
writes to a tun device) may do it while the sender is at work on the same socket, on another
processor. Whose a packet without data is, is told by its port: a SYN that leaves begins a new
connection, of the next process.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.kernel.payloads import ETHERNET_BYTES, TCP
from tests.kernel.scenarios import udp
from tests.kernel.sink import DISCARD_PORT, TCP_PORT
from tests.kernel.stage import FEW_TRACEPOINTS, Scenario, Stage, scaled
from tests.kernel.verdict import Frame, Judge, Right, by_signature
from tests.support.blocks import Label
from tests.support.deadline import DEADLINE_S, until

QUEUE = 67
PROCESSES, FATES = 7, 14
UPLOAD_BYTES, CONNECTIONS, SENDS, CHANGES = 3_000_017, 23, 101, 211
AGAIN_PORT, ECHO_ID = 40_163, 40_169
SYN, ACK = 0x02, 0x10


def hold(stage: Stage, command: str) -> None:
    """Add (-A) or delete (-D) the firewall rules that delay the packets of the near end."""
    for protocol in ("tcp", "udp", "icmp"):
        rule = f"iptables-legacy -w -t mangle {command} OUTPUT -p {protocol} -j NFQUEUE --queue-num {QUEUE}"
        command_line = ["ip", "netns", "exec", stage.near.name, *rule.split()]
        subprocess.run(command_line, check=True, capture_output=True, timeout=DEADLINE_S)


def is_empty(stage: Stage) -> bool:
    """Whether no packet waits for its verdict."""
    rows = stage.near.do(Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text).splitlines()
    return all(row.split()[2] == "0" for row in rows)


@contextlib.contextmanager
def held(stage: Stage, way: str) -> Iterator[None]:
    """Run a program that gives a verdict on each packet that the near end sends."""
    player = stage.start("verdicts", way, "--queue", QUEUE)
    player.says()
    hold(stage, "-A")
    try:
        yield
        until(lambda: not stage.moving(), "connections have ended")
        until(lambda: is_empty(stage), "no packet waits for its verdict")
    finally:
        hold(stage, "-D")
        player.go()
        player.end()


Play = Callable[[Stage], Judge]


# If the user of a socket is not recorded, the user is unknown once it is closed.
CLOSED = {FEW_TRACEPOINTS: SENDS}


def queued(
    name: str, play: Play, packets: int, way: str = "plain", unknown_by: Mapping[str, int] | None = None
) -> Scenario:
    """A scenario under a program that gives verdicts."""

    def under(stage: Stage) -> Judge:
        with held(stage, way):
            return play(stage)

    return Scenario(f"{name}, through NFQUEUE", under, packets, unknown_by=unknown_by or {})


def upload(stage: Stage) -> Judge:
    """The sender uses the socket again, on another processor, while its data are sent."""
    words = ("--to", stage.wire.far.ipv4, "--port", TCP_PORT, "--count", scaled(UPLOAD_BYTES, 100_003))
    users = stage.play("tcp", "writes", *words)
    return by_signature(users, users)


def connections(stage: Stage) -> Judge:
    """Connections, one after the other."""
    words = ("--to", stage.wire.far.ipv4, "--port", TCP_PORT, "--count", CONNECTIONS)
    users = stage.play("tcp", "connects", *words)
    return by_signature(users, users)


def datagrams(stage: Stage) -> Judge:
    """Datagrams of many processes, each of one."""
    words = ("--to", stage.wire.far.ipv4, "--port", DISCARD_PORT, "--count", SENDS)
    with stage.watch() as wait_for:
        stage.play("udp", "processes", *words)
        wait_for(lambda frame: frame.signature is not None, SENDS)
    return by_signature()


def by_turns(users: Sequence[Label]) -> Judge:
    """Check connections that users have made one after the other, each by its first SYN."""
    of_port: dict[int, tuple[bytes, Label]] = {}
    turns = iter(users)

    def right(frame: Frame) -> Right:
        if frame.is_housekeeping or frame.protocol != TCP:
            return None
        port = frame.ports[0] if frame.is_sent else frame.ports[1]
        if frame.is_sent and frame.tcp_flags & (SYN | ACK) == SYN:
            number = frame.data[ETHERNET_BYTES + 24 : ETHERNET_BYTES + 28]
            if port not in of_port or of_port[port][0] != number:
                of_port[port] = number, next(turns)
        return [of_port[port][1]] if port in of_port else []

    return right


def again(way: str, *, waits: bool = False, count: int = PROCESSES) -> Play:
    """Processes that use one port, one after the other."""

    def play(stage: Stage) -> Judge:
        near, far = stage.wire.near, stage.wire.far
        flush = ("--flush", near.device) if waits else ()
        port = {"tcp": TCP_PORT, "fates": TCP_PORT}.get(way, DISCARD_PORT)
        source = {"tcp": AGAIN_PORT, "udp": AGAIN_PORT, "echo": ECHO_ID}.get(way, 0)
        words = ("--to", far.ipv4, "--source-port", source, *flush, "--count", count)
        try:
            if way == "udp":
                return udp.echoed(stage, count, lambda port: stage.play("again", way, *words, "--port", port))
            users = stage.play("again", way, *words, "--port", port)
        finally:
            stage.near.ip(f"neighbour replace {far.ipv4} lladdr {far.mac} nud permanent dev {near.device}")
        return by_turns(users) if port == TCP_PORT else by_signature(echoed=True)

    return play


def changing_neighbour(stage: Stage) -> Judge:
    """An upload whose neighbor entry is deleted and added again and again, by another process each
    time.
    """
    near, far = stage.wire.near, stage.wire.far
    words = ("--to", far.ipv4, "--port", TCP_PORT, "--count", scaled(UPLOAD_BYTES * 3, 100_003))
    player = stage.start("tcp", "writes", *words)
    for _ in range(CHANGES // 10):
        stage.near.ip(
            *(
                f"neighbour {change} {far.ipv4} lladdr {far.mac} nud {state} dev {near.device}"
                for change, state in (("replace", "incomplete"), ("replace", "permanent")) * 10
            )
        )
    users = player.end()
    return by_signature(users, users)


SCENARIOS = [
    queued("TCP upload", upload, 23),
    queued("TCP connections", connections, CONNECTIONS * 6),
    queued("UDP one-packet processes", datagrams, SENDS, unknown_by=CLOSED),
    queued("TCP port used again", again("tcp"), PROCESSES * 5),
    queued("UDP port used again", again("udp"), PROCESSES * 2),
    queued("echo identifier used again", again("echo"), PROCESSES * 2),
    queued("TCP connections that end in many ways", again("fates", count=FATES), FATES * 6),
    queued("TCP upload, verdicts by io_uring", upload, 23, "uring"),
    queued("UDP one-packet processes, verdicts by io_uring", datagrams, SENDS, "uring", CLOSED),
    Scenario("TCP connections that end in many ways", again("fates", count=FATES), FATES * 6),
    Scenario("TCP port used again", again("tcp"), PROCESSES * 5),
    Scenario("echo identifier used again", again("echo"), PROCESSES * 2),
    Scenario("TCP port used again, waits for its neighbour", again("tcp", waits=True), PROCESSES * 5),
    Scenario("UDP port used again, waits for its neighbour", again("udp", waits=True), PROCESSES * 2),
    Scenario("echo identifier used again, waits for its neighbour", again("echo", waits=True), PROCESSES * 2),
    Scenario("TCP upload whose neighbour changes", changing_neighbour, 23),
]
