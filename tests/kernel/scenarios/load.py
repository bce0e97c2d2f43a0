"""Many senders at once, many one after another, and ids that are used again."""

from __future__ import annotations

from tests.kernel.scenarios.tcp import FEW_BYTES
from tests.kernel.sink import DISCARD_PORT, TCP_PORT
from tests.kernel.stage import Scenario, Stage, scaled
from tests.kernel.verdict import Frame, Judge, Right, by_signature
from tests.support.amount import tries
from tests.support.blocks import Label

ROUNDS, SHORT_LIVED = scaled(tries(10, 2), 1), scaled(1009, 101)
SAME_PID = 101
MIXED = 23
RSS_MAX_KIB = 32 << 10


def short_lived(stage: Stage) -> Judge:
    """Each process sends one datagram; the memory of the capture does not grow."""
    before = stage.capture_memory_kib()
    for _ in range(ROUNDS):
        to = stage.wire.far.ipv4
        stage.play("udp", "processes", "--to", to, "--port", DISCARD_PORT, "--count", SHORT_LIVED)
    grown = stage.capture_memory_kib() - before
    assert grown < RSS_MAX_KIB, f"the capture has grown by {grown} KiB"
    return by_signature()


def same_pid(stage: Stage) -> Judge:
    """One id, a hundred names: the last packets of one connection arrive when the next one has
    begun.
    """
    to = ("--to", stage.wire.far.ipv4, "--port", DISCARD_PORT, "--tcp-port", TCP_PORT)
    users = stage.play("crowd", "same_pid", *to, "--count", scaled(SAME_PID, 7))
    assert len({user.tgid for user in users}) < len(users) / 2, "the ids were not used again"
    return by_connection(users)


def mixed(stage: Stage) -> Judge:
    """All kinds of senders at once."""
    to = ("--to", stage.wire.far.ipv4)
    tcp = (*to, "--port", TCP_PORT, "--count")
    udp = (*to, "--port", DISCARD_PORT, "--count")
    players = [
        *(stage.start("tcp", "uploads", *tcp, FEW_BYTES) for _ in range(3)),
        stage.start("tcp", "connects", *tcp, MIXED),
        stage.start("udp", "processes", *udp, MIXED),
        stage.start("udp", "thread", *udp, MIXED),
        stage.start("sharing", "passed", *to, "--tcp-port", TCP_PORT, "--count", MIXED),
        stage.start("sharing", "executed", *to, "--tcp-port", TCP_PORT, "--count", MIXED),
    ]
    return by_connection([user for player in players for user in player.end()])


def by_connection(users: list[Label]) -> Judge:
    """Packets without a signature must belong to one of the users of TCP."""

    def right(frame: Frame) -> Right:
        if frame.is_housekeeping:
            return None
        return [frame.signature] if frame.signature and frame.is_sent else users

    return right


SCENARIOS = [
    Scenario("thousands of short-lived processes", short_lived, ROUNDS * SHORT_LIVED, many=True),
    Scenario("one process id used again and again", same_pid, 7 * 6, vm=True),
    Scenario("all kinds of senders at once", mixed, 101),
]
