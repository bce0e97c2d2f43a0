"""A packet through a host with containers has one identifier, and with `dedup: first` is in the
file once.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, Ended, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.kernel.reference import Reference
from tests.kernel.relay import relayed_wire
from tests.kernel.scenarios.passing import DEVICES, PORTS, echoing, make_host
from tests.kernel.send.identity import SIGNATURE, SIGNED_MAGIC, signature
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.kernel.stage import Stage, udp_socket
from tests.kernel.verdict import ETHERNET, Frame
from tests.support import faults
from tests.support.blocks import Label, Packet
from tests.support.deadline import DEADLINE_S

SENDS = 101
GROUP = "239.67.0.9"
DUPLICATES = "seen before on another interface"


def datagrams(packets: list[Packet], port: int) -> list[tuple[bytes, bool, Packet]]:
    """Signed datagrams of a capture: the number, whether it is the answer from the port of the far
    end, the packet.
    """
    return [
        (
            packet.data[packet.data.index(SIGNED_MAGIC) :][: SIGNATURE.size],
            Frame(packet.data, ETHERNET, is_sent=True).ports[0] == port,
            packet,
        )
        for packet in packets
        if SIGNED_MAGIC in packet.data
    ]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A host with containers."""
    with ExitStack() as stack, relayed_wire() as wire:
        stage = Stage(wire, tmp_path_factory.mktemp("once"), stack)
        make_host(stage)
        yield stage
        stack.close()


def ask(host: Stage, **settings: str) -> tuple[list[tuple[bytes, bool, Packet]], list[Label], Ended]:
    """Send from a container to the far end; returns the datagrams on the interfaces of the host,
    the sender, and the end of the capture.
    """
    file = host.directory / "once.pcapng"
    arguments = [word for device in ("near0", *DEVICES) for word in ("-i", device)]
    with closing(Capture(host.near, *arguments, "-w", str(file), **settings)) as capture, echoing(host, SENDS) as port:
        words = ("--to", host.wire.far.ipv4, "--port", port, "--count", SENDS)
        labels = host.play("udp", "asks", *words, at=host.others[PORTS[0]])
        ended = capture.stop()
    return datagrams(read(file), port), labels, ended


def test_the_identifier_survives_nat(host: Stage) -> None:
    """A masqueraded datagram and its answer have one identifier each on all three interfaces."""
    seen, _, _ = ask(host)
    identifiers: dict[tuple[bytes, bool], list[int | None]] = {}
    for which, is_answer, packet in seen:
        identifiers.setdefault((which, is_answer), []).append(packet.packet_id)

    assert Counter(len(ids) for ids in identifiers.values()) == {3: 2 * SENDS}
    assert all(len(set(ids)) == 1 and ids[0] for ids in identifiers.values())
    assert len({ids[0] for ids in identifiers.values()}) == 2 * SENDS


def test_first_does_not_cost_the_name(host: Stage) -> None:
    """With `dedup: first` each datagram and answer is in the file once, with its process; the
    others are counted.
    """
    seen, labels, ended = ask(host, dedup="first")

    assert Counter((which, is_answer) for which, is_answer, _ in seen) == Counter(
        {(which, is_answer): 1 for which, is_answer, _ in seen}
    )
    assert len(seen) == 2 * SENDS
    assert [packet.label for _, _, packet in seen] == 2 * SENDS * labels
    assert ended.totals[DUPLICATES] >= 2 * 2 * SENDS


def held_against(file: Path, ended: Ended, namespace: str) -> int:
    """The number of signed packets of a namespace in the file, which must have as many packets as
    the capture reports.
    """
    packets = read(file)
    assert len(packets) == ended.totals["captured"]
    there = [packet for packet in packets if packet.description == f"network namespace {namespace}"]
    return len([packet for packet in there if SIGNED_MAGIC in packet.data])


@pytest.mark.parametrize(
    "settings",
    [{"namespaces": "{far}"}, {"rules": '[{"direction": "out", "action": "drop"}]', "namespaces": "{near},{far}"}],
    ids=["interfaces", "rules"],
)
def test_only_captured_packets_are_the_first(wire: Wire, tmp_path: Path, settings: dict[str, str]) -> None:
    """A packet that an interface or a rule excludes is not the first: the received one is in the
    file.
    """
    file, near, far = tmp_path / "first.pcapng", wire.near, wire.far
    chosen = {
        name: value.replace("{near}", near.namespace.name).replace("{far}", far.namespace.name)
        for name, value in settings.items()
    }
    with (
        closing(Sink(far.namespace)),
        closing(Capture(far.namespace, "-w", str(file), dedup="first", **chosen)) as capture,
        udp_socket(near.namespace) as sender,
    ):
        for number in range(SENDS):
            sender.sendto(signature(number), (far.ipv4, DISCARD_PORT))
        ended = capture.stop()

    assert held_against(file, ended, far.namespace.name) == SENDS
    assert ended.totals["dropped by kernel"] == 0


@pytest.mark.parametrize("to", [GROUP, "192.168.178.255"], ids=["multicast", "broadcast"])
def test_packets_looped_back_are_captured_once(wire: Wire, tmp_path: Path, to: str) -> None:
    """A datagram that its own host also receives is in the file as an AF_PACKET socket sees it:
    once, as sent.
    """
    file, near = tmp_path / "looped.pcapng", wire.near
    with (
        udp_socket(near.namespace, "", DISCARD_PORT) as member,
        closing(Reference(near.namespace, near.device)) as reference,
        closing(Marker(near.namespace, near.device)) as marker,
        closing(Capture(near.namespace, "-i", near.device, "-w", str(file))) as capture,
    ):
        member.settimeout(DEADLINE_S)
        member.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        request = socket.inet_aton(GROUP) + socket.inet_aton(near.ipv4)
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        member.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(near.ipv4))
        for number in range(SENDS):
            member.sendto(signature(number), (to, DISCARD_PORT))
            assert member.recv(2048) == signature(number)
        frames = reference.read_until(marker.send())
        capture.stop()
    theirs = [(frame.data, frame.outgoing) for frame in frames if SIGNED_MAGIC in frame.data]
    ours = [(packet.data, packet.direction == "out") for packet in read(file) if SIGNED_MAGIC in packet.data]

    extra = len(ours) - len(theirs)
    faults.compare("multicast looped back to its host", 1, f"{extra} extra frames, {len(theirs)} that AF_PACKET saw")
    assert ours == theirs
    assert len(ours) == SENDS
