"""The viewers of a capture: they get what is delivered, and nothing waits for them."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterator

import pytest

from skbcapd.analysis.live import Intervals
from skbcapd.daemon import viewers as module
from skbcapd.daemon.viewers import VIEWERS_MAX, Viewers
from skbcapd.output.pcapng_output import PcapngOutput
from skbcapd.pcapng import live
from skbcapd.pcapng.blocks import IF_NAME
from skbcapd.pcapng.live import Mark
from skbcapd.pcapng.reader import Reader
from tests.support.deadline import DEADLINE_S, until
from tests.support.rig import Rig, stamped
from tests.support.writer import upcall

FRAME = bytes.fromhex("3431c4b06a8b3c7c3f2023bd0800") + bytes(47)


class Scene:
    """A capture, its viewers and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.rig = Rig(PcapngOutput(io.BytesIO()), exclude=("eth7",))
        self.viewers = Viewers(self.rig.capture, lambda: self.now)
        self._connected: list[socket.socket] = []

    def close(self) -> None:
        """End all connections."""
        self.viewers.close()
        for ours in self._connected:
            ours.close()

    def connect(self, *, is_first: bool = True) -> socket.socket:
        """A new viewer, after the first tick."""
        ours, theirs = socket.socketpair()
        self._connected.append(ours)
        self.viewers.add(theirs)
        ours.settimeout(DEADLINE_S)
        assert ours.recv(len(live.ACCEPTED)) == live.ACCEPTED
        if is_first:
            self.tick()
        return ours

    def tick(self, seconds: float = 1.0) -> None:
        """Some time later, an interval ends."""
        self.now += seconds
        self.viewers.serve()
        self.viewers.tick()

    @property
    def is_watched(self) -> bool:
        """Whether the capture passes packets to the viewers."""
        return self.rig.capture._delivery.viewers is not None


@pytest.fixture
def scene() -> Iterator[Scene]:
    """One of them, closed at the end."""
    made = Scene()
    yield made
    made.close()


Seen = tuple[bytes, int | None, int, int, bytes]
"""Name of the interface, tgid, direction, original length, frame."""


def packets(intervals: Intervals) -> tuple[list[Seen], Mark]:
    """The packets of the next interval, as the reader of files reads them, and its mark."""
    interval = intervals.next(DEADLINE_S)
    assert interval is not None
    with interval.file:
        if interval.is_empty:
            return [], interval.mark
        with Reader(interval.path) as reader:
            return [
                (dict(interface.options())[IF_NAME], stamp.tgid, stamp.direction, wire_len, bytes(frame))
                for interface, stamp, _, wire_len, frame, _ in reader.packets()
            ], interval.mark


def test_a_viewer_gets_what_is_delivered(scene: Scene) -> None:
    """Blocks and packets that Python has written arrive once, in order, each interval with the interfaces it needs;
    packets of excluded interfaces do not.
    """
    with Intervals(scene.connect(), "the test") as intervals:
        scene.rig.drain(
            upcall(FRAME, original_len=1514),
            stamped(1061, size=60),
            upcall(FRAME, device=b"eth7", ifindex=7),
            upcall(FRAME[:-3], device=b"eth1", ifindex=3, tgid=1063, tid=1063, direction=1, flags=1),
        )
        scene.tick(1.5)
        found, mark = packets(intervals)
        assert found == [
            (b"eth0", 1058, 2, 1514, FRAME),
            (b"eth0", 1061, 2, 60, bytes(60)),
            (b"eth1", 1063, 1, len(FRAME) - 3, FRAME[:-3]),
        ]
        assert (mark.duration_ns, mark.left_out) == (1_500_000_000, 0)
        assert mark.passed > 0
        scene.rig.drain(stamped(1061, size=60))
        scene.tick()
        assert packets(intervals)[0] == [(b"eth0", 1061, 2, 60, bytes(60))]
        scene.tick()
        assert packets(intervals) == ([], Mark(10**9, 0, 0))


def test_new_numbers_begin_a_section(scene: Scene) -> None:
    """After a renumbering within an interval, packets have the interfaces of their new numbers."""
    with Intervals(scene.connect(), "the test") as intervals:
        scene.rig.drain(upcall(FRAME), upcall(FRAME, device=b"eth1", ifindex=3))
        scene.rig.capture.interfaces.forget_numbers()
        scene.rig.output = PcapngOutput(io.BytesIO())
        scene.rig.capture.interfaces._output = scene.rig.output
        scene.rig.drain(upcall(FRAME, device=b"eth1", ifindex=3), upcall(FRAME))
        scene.tick()
        assert [name for name, *_ in packets(intervals)[0]] == [b"eth0", b"eth1", b"eth1", b"eth0"]


def test_packets_from_before_the_first_tick_are_left_out(scene: Scene) -> None:
    """They were captured while nobody watched, so they would make the first rate too high."""
    ours = scene.connect(is_first=False)
    scene.rig.drain(upcall(FRAME))
    scene.tick()
    scene.rig.drain(upcall(FRAME, tgid=1061, tid=1061))
    scene.tick()
    with Intervals(ours, "the test") as intervals:
        assert [tgid for _, tgid, *_ in packets(intervals)[0]] == [1061]


def test_a_slow_viewer_is_not_waited_for(scene: Scene) -> None:
    """What does not fit is left out, counted in bytes, and what arrives is complete. Another viewer gets everything."""
    slow = scene.connect()
    with Intervals(scene.connect(), "the test") as fast:
        scene.rig.drain(upcall(FRAME))
        large = stamped(1058, size=40_000)
        written = 0
        for _ in range(431):  # more than a socket takes, whatever net.core.wmem_max is
            scene.rig.drain(large)
            written += 1
            until(lambda: scene.viewers.serve() or not list(scene.viewers._viewers.values())[1]._rest, "it has read")
        scene.tick()
        found, mark = packets(fast)
        assert len(found) == 1 + written
        assert mark.left_out == 0
    scene.viewers.serve()  # the other one has ended
    with Intervals(slow, "the test") as intervals:
        until(lambda: scene.viewers.serve() or not next(iter(scene.viewers._viewers.values()))._rest, "it has read")
        scene.tick()
        assert packets(intervals) == ([], Mark(10**9, 0, 0))  # before the other one had connected
        found, mark = packets(intervals)
    assert 1 < len(found) < 1 + written
    assert mark.left_out == (1 + written - len(found)) * len(large)
    assert mark.passed > len(large) * (len(found) - 1)
    assert mark.duration_ns == 2_000_000_000


def test_an_interval_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than INTERVAL_MAX are left out, until the next interval."""
    large = stamped(1058, size=4000)
    monkeypatch.setattr(module, "INTERVAL_MAX", 3 * len(large))
    with Intervals(scene.connect(), "the test") as intervals:
        scene.rig.drain(upcall(FRAME))
        scene.tick()
        packets(intervals)
        for _ in range(2):
            for _ in range(5):
                scene.rig.drain(large)
            scene.tick()
            found, mark = packets(intervals)
            assert (len(found), mark.left_out) == (3, 2 * len(large))


def test_nothing_is_called_without_viewers(scene: Scene) -> None:
    """The capture knows the viewers only while there is one, and only then it drains early."""
    calm = scene.rig.capture.latency_s
    scene.rig.capture.output.latency_s = 1.0
    assert not scene.is_watched
    assert scene.rig.capture.latency_s == 1.0
    ours = scene.connect()
    assert scene.is_watched
    assert scene.rig.capture.latency_s == calm < 1.0
    ours.close()
    scene.viewers.serve()
    assert not scene.is_watched
    scene.rig.drain(upcall(FRAME))


def test_a_viewer_that_has_ended_disturbs_nobody(scene: Scene) -> None:
    """Its connection ends with the next packet, at the latest, in the middle of a drain."""
    scene.connect().close()
    with Intervals(scene.connect(), "the test") as intervals:
        scene.rig.drain(upcall(FRAME), stamped(1061))
        scene.tick()
        assert len(packets(intervals)[0]) == 2
    assert len(scene.viewers._viewers) == 1


def test_a_viewer_that_talks_is_dropped(scene: Scene) -> None:
    """Nothing is expected from a viewer; its bytes are not kept."""
    ours = scene.connect()
    ours.sendall(b"status\n")
    scene.viewers.serve()
    assert not scene.is_watched


@pytest.mark.parametrize(("user", "is_accepted"), [(0, True), (os.geteuid(), True), (os.geteuid() + 1, False)])
def test_who_may_watch(user: int, is_accepted: bool, scene: Scene) -> None:  # noqa: FBT001  a parameter
    """Root and the user of the daemon may; a member of its group may not."""
    refusal = scene.viewers.refusal(user)
    assert (refusal is None) == (is_accepted or user == 0)


def test_viewers_are_few(scene: Scene) -> None:
    """VIEWERS_MAX are connected at the same time; a further one is refused, until one ends."""
    connected = [scene.connect() for _ in range(VIEWERS_MAX)]
    refusal = scene.viewers.refusal(0)
    assert refusal is not None
    assert "4 viewers" in refusal["error"]
    connected[2].close()
    scene.viewers.serve()
    assert scene.viewers.refusal(0) is None
