"""The packets of a socket that leave or arrive inside a system call on another socket, of another process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.kernel.payloads import TCP, UDP
from tests.kernel.scenarios.stealing import run, socket_of
from tests.kernel.send.tcp import finish
from tests.kernel.sink import TCP_PORT
from tests.kernel.stage import Scenario, Stage, connect, udp_socket
from tests.kernel.verdict import Frame, Judge, Right
from tests.support import steering
from tests.support.blocks import Label

SENDS = 101
FROM, POLLED, SERVED = (40_371, 40_373), 40_379, 40_381
GRO_FLUSH_NS, DEFERRED = 20_000_000, 100  # the interface waits for who polls it


def sk_msg(stage: Stage) -> Judge:
    """What one process writes leaves on the connection of another, which is the one that the peer sees."""
    words = ("--to", stage.wire.far.ipv4, "--port", TCP_PORT, "--count", SENDS)
    writer, holder = (stage.start("tcp", "paused", *words, "--from-port", port) for port in FROM)
    owners: dict[int, list[Label]] = dict(zip(FROM, (writer.says(), holder.says()), strict=True))
    to, source = FROM[1], owners[FROM[0]][0]
    one, other = ((player.pid, socket_of(player.pid)) for player in (writer, holder))
    with steering.redirected(one, other), stage.watch() as wait_for:
        for player in (holder, writer):
            player.go()
            player.says()
        wait_for(lambda frame: frame.is_sent and frame.ports[0] == to and frame.signature == source, 1)
    for player in (writer, holder):
        player.go()
    for player in (writer, holder):
        player.end()

    def right(frame: Frame) -> Right:
        return next((owners[port] for port in frame.ports if port in FROM), None) if frame.protocol == TCP else None

    return right


def polled_packets(stage: Stage) -> int:
    """How many packets system calls have taken from the interface themselves."""
    rows = stage.near.do(Path("/proc/thread-self/net/netstat").read_text).splitlines()
    names, values = (row.split() for row in rows if row.startswith("TcpExt:"))
    return int(values[names.index("BusyPollRxPackets")])


@contextlib.contextmanager
def polling(stage: Stage) -> Iterator[None]:
    """The interface of the near end waits for who polls it."""
    near, far = stage.wire.near, stage.wire.far

    def switch(on: str, off: str, deferred: int, flush_ns: int) -> None:
        run(stage.far, "ethtool", "-K", far.device, "tso", off)
        run(stage.near, "ethtool", "-K", near.device, "gro", on)
        for name, value in (("napi_defer_hard_irqs", deferred), ("gro_flush_timeout", flush_ns)):
            run(stage.near, "sh", "-c", f"echo {value} >/sys/class/net/{near.device}/{name}")

    switch("on", "off", DEFERRED, GRO_FLUSH_NS)
    try:
        yield
    finally:
        switch("off", "on", 0, 0)


def busy_polling(stage: Stage) -> Judge:
    """A process that polls the interface receives for others, and sends their answers."""
    before = polled_packets(stage)
    with polling(stage):
        poller = stage.start("receivers", "polls", "--port", POLLED, "--count", SENDS)
        server = stage.start("tcp", "serves", "--source-port", SERVED, "--count", SENDS)
        owners = {POLLED: poller.says(), SERVED: server.says()}
        for player in (poller, server):
            player.go()
        with udp_socket(stage.far) as asking:
            for _ in range(SENDS):
                asking.sendto(b"?" * 9, (stage.wire.near.ipv4, POLLED))
                finish(connect(stage.far, stage.wire.near.ipv4, SERVED))
        for player in (poller, server):
            player.end()
        assert polled_packets(stage) > before

    def right(frame: Frame) -> Right:
        if frame.protocol not in (TCP, UDP):
            return None
        return next((found for port, found in owners.items() if port in frame.ports), None)

    return right


SCENARIOS = [
    Scenario("TCP, sent on another connection by sk_msg", sk_msg, 23),
    Scenario("TCP and UDP, received by a process that polls", busy_polling, SENDS * 7, SENDS * 3),
]
