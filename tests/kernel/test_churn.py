"""Interfaces that appear, are renamed and disappear while packets are sent: none is dropped, none
has a wrong interface.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Namespace, Wire
from tests.support.amount import tries

PAIRS = tries(1_000, 100)
AT_ONCE = 50
HEADER = b"\x02skb02\x02skb03\x88\xb5"
END = b"|"


def send_from(namespace: Namespace, devices: list[str], sent: Counter[tuple[str, bytes]]) -> None:
    """Send a frame that holds its device's name from each device."""
    for device in devices:
        with namespace.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind((device, 0))
            frame = (HEADER + device.encode() + END).ljust(60, b"\0")
            sender.send(frame)
            sent[device, frame] += 1


def churn(namespace: Namespace, sent: Counter[tuple[str, bytes]]) -> None:
    """Make PAIRS veth pairs, send from both ends of each, rename the one end, send again, remove
    them.
    """
    for start in range(0, PAIRS, AT_ONCE):
        numbers = range(start, start + AT_ONCE)
        namespace.ip(
            *(f"link add a{number % 77} group 7 type veth peer name b{number % 77}" for number in numbers),
            *(f"link set {end}{number % 77} up" for number in numbers for end in "ab"),
        )
        send_from(namespace, [f"{end}{number % 77}" for number in numbers for end in "ab"], sent)
        namespace.ip(
            *(f"link set a{number % 77} down" for number in numbers),
            *(f"link set a{number % 77} name c{number % 77}" for number in numbers),
            *(f"link set c{number % 77} up" for number in numbers),
        )
        send_from(namespace, [f"c{number % 77}" for number in numbers], sent)
        namespace.ip("link delete group 7")


@pytest.mark.many
def test_interfaces_can_appear_and_disappear(wire: Wire, tmp_path: Path) -> None:
    """While veth pairs are made, renamed and removed, each frame is captured once, with the name of
    its interface.
    """
    file, busy = tmp_path / "churn.pcapng", Namespace()
    near = wire.near
    settings = {"buffer.size": "256MiB", "namespaces": f"{busy.name},{near.namespace.name}"}
    sent: Counter[tuple[str, bytes]] = Counter()
    stop = threading.Event()
    with (
        closing(busy),
        closing(Marker(near.namespace, near.device)) as marker,
        closing(Capture(busy, "-i", "any", "-w", str(file), **settings)) as capture,
    ):

        def flow() -> None:
            while not stop.wait(0.001):
                marker.send()

        flowing = threading.Thread(target=flow)
        flowing.start()
        busy.sysctl(ipv6__conf__all__disable_ipv6="1", ipv6__conf__default__disable_ipv6="1")
        try:
            churn(busy, sent)
        finally:
            stop.set()
            flowing.join()
        ended = capture.stop()
    packets = [packet for packet in read(file) if packet.direction == "out"]

    assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    there = f"network namespace {busy.name}"
    assert Counter((one.interface, one.data) for one in packets if one.description == there) == sent
    assert sent.total() == 3 * PAIRS
    here = f"network namespace {near.namespace.name}"
    assert [one.data for one in packets if (one.interface, one.description) == (near.device, here)] == marker.sent
    assert len(marker.sent) > PAIRS
