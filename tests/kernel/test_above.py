"""Frames that arrive on an interface above another one, on both interfaces: compared with AF_PACKET sockets."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, Daemon, Ended, read
from tests.kernel.namespace import Namespace, Wire, wire
from tests.kernel.reference import Reference
from tests.kernel.scene import is_makeable
from tests.support.blocks import Packet
from tests.support.deadline import DEADLINE_S, until

COUNT, STREAM_BYTES, SIZE = 7, 300_007, 1009
LAST = b"the last datagram of all"
UPPER, LOWER = "above0", "far0"
IPV4, IPV6 = ("10.9.0.1", "10.9.0.2"), ("fd00:9::1", "fd00:9::2")  # at the near end, and on the interface above
MAC = "02:5c:00:00:09:02"
SENDS = f"""
import os, sys
for number in range({COUNT}):
    for receiver in map(int, sys.argv[1:]):
        os.write(receiver, bytes([number]) * {SIZE})
for receiver in map(int, sys.argv[1:]):
    os.write(receiver, {LAST!r})
"""


@dataclass(frozen=True)
class Kind:
    """How to make an interface above the far end, and what must be at the near end.

    Args:
        far: commands for `ip`.
        needs: as for is_makeable.
        near: as `far`.
        speaks: interface of the near end that has the address.
        mac: link-layer address of the interface above, if it is not that of the far end.
        answers: whether it also sends; a team does not without its daemon.
    """

    far: tuple[str, ...]
    needs: str
    near: tuple[str, ...] = ()
    speaks: str = "near0"
    mac: str = ""
    answers: bool = True


def _vlan(protocol: str) -> Kind:
    kind = f"type vlan id 7 protocol {protocol}"
    near = (f"link add link near0 name speaks0 {kind}",)
    return Kind((f"link add link {LOWER} name {UPPER} {kind}",), f"link lower0 name upper0 {kind}", near, "speaks0")


def _enslaved(kind: str, *, answers: bool = True) -> Kind:
    far = (
        f"link add {UPPER} type {kind}",
        f"address flush dev {LOWER}",
        f"link set {LOWER} down",
        f"link set {LOWER} master {UPPER}",
        f"link set {LOWER} addrgenmode none up",
    )
    return Kind(far, f"upper0 type {kind}", answers=answers)


def _beside(kind: str, mac: str = "") -> Kind:
    address = f"address {mac}" if mac else ""
    return Kind(
        (f"address flush dev {LOWER}", f"link add link {LOWER} name {UPPER} {address} type {kind}"),
        f"link lower0 name upper0 type {kind}",
        mac=mac,
    )


KINDS = {
    "VLAN": _vlan("802.1Q"),
    "service VLAN": _vlan("802.1ad"),
    "bond": _enslaved("bond mode active-backup"),
    "team": _enslaved("team", answers=False),
    "macvlan": _beside("macvlan mode bridge", MAC),
    "ipvlan": _beside("ipvlan mode l2"),
}
EVERY = [pytest.param(name, marks=(pytest.mark.vm, pytest.mark.devices(kind.needs))) for name, kind in KINDS.items()]


@dataclass
class Recorded:
    """What arrived at one wire, by interface of its far end: as AF_PACKET sockets and as a capture have it. Only TCP
    and UDP, which the kernel does not send by itself.
    """

    theirs: dict[str, list[bytes]] = field(default_factory=dict)
    ours: dict[str, list[Packet]] = field(default_factory=dict)


def make(ends: Wire, kind: Kind) -> None:
    """An interface above the far end. Each end knows the address of the other."""
    near, far = ends.near.namespace, ends.far.namespace
    for namespace, commands, interface in ((far, kind.far, UPPER), (near, kind.near, kind.speaks)):
        namespace.ip(*commands, f"link set {interface} addrgenmode none up")
    both = ((near, kind.speaks, kind.mac or ends.far.mac), (far, UPPER, ends.near.mac))
    for number, (namespace, place, mac) in enumerate(both):
        namespace.ip(
            f"address add {IPV4[number]}/24 dev {place}",
            f"address add {IPV6[number]}/64 dev {place} nodad",
            f"neighbour add {IPV4[1 - number]} lladdr {mac} nud permanent dev {place}",
            f"neighbour add {IPV6[1 - number]} lladdr {mac} nud permanent dev {place}",
        )


def send(stack: ExitStack, wires: dict[str, Wire]) -> None:
    """A stream and datagrams to each interface above. The datagrams are of a child, so that its name is not that of
    the receiver; the last ones say that all have arrived.
    """
    senders = []
    for name, ends in wires.items():
        if KINDS[name].answers:
            send_stream(stack, ends)
        for addresses in (IPV4, IPV6):
            receiver, sender = sockets(stack, ends, addresses, socket.SOCK_DGRAM)
            sender.connect(receiver.getsockname())
            senders.append(sender.fileno())
    command = [sys.executable, "-S", "-c", SENDS, *map(str, senders)]
    subprocess.run(command, pass_fds=senders, check=True, timeout=DEADLINE_S)


def sockets(
    stack: ExitStack, ends: Wire, addresses: tuple[str, str], kind: socket.SocketKind
) -> tuple[socket.socket, socket.socket]:
    """A socket at the far end, on the interface above, and one at the near end."""
    family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
    both = [end.namespace.do(socket.socket, family, kind) for end in (ends.far, ends.near)]
    for each in both:
        stack.callback(each.close)
        each.settimeout(DEADLINE_S)
    both[0].bind((addresses[1], 0))
    return both[0], both[1]


def send_stream(stack: ExitStack, ends: Wire) -> None:
    """Large frames in pages, to the interface above. All are acknowledged in the end, and the connection stays open:
    nothing of it is sent later.
    """
    listener, client = sockets(stack, ends, IPV4, socket.SOCK_STREAM)
    listener.listen()
    client.connect(listener.getsockname())
    accepted = stack.enter_context(closing(listener.accept()[0]))
    accepted.settimeout(DEADLINE_S)
    source = os.memfd_create("stream")
    stack.callback(os.close, source)
    os.write(source, bytes(range(251)) * (STREAM_BYTES // 251 + 1))
    sent = got = 0
    while got < STREAM_BYTES:
        if sent < STREAM_BYTES:
            sent += os.sendfile(client.fileno(), source, sent, min(STREAM_BYTES - sent, 1 << 16))
        got += len(accepted.recv(1 << 20))
    until(lambda: fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)) == bytes(4), "all is acknowledged")


def untagged(frame: bytes) -> bytes:
    """A frame without the tag of its VLAN."""
    return frame[:12] + frame[16:] if frame[12:14] in {b"\x81\x00", b"\x88\xa8"} else frame


def is_own(frame: bytes) -> bool:
    """Whether a frame is TCP or UDP, which the kernel does not send by itself."""
    frame = untagged(frame)
    protocol = {b"\x08\x00": 23, b"\x86\xdd": 20}.get(frame[12:14])
    return protocol is not None and frame[protocol] in {socket.IPPROTO_TCP, socket.IPPROTO_UDP}


def differences(ours: Sequence[Packet], theirs: Sequence[bytes]) -> dict[str, list[str]]:
    """What only one of them has: the first bytes of each frame."""
    captured, judged = Counter(packet.data for packet in ours), Counter(theirs)
    found = {"capture": (captured - judged).elements(), "AF_PACKET socket": (judged - captured).elements()}
    return {who: shown for who, frames in found.items() if (shown := [frame[:80].hex() for frame in frames])}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Recorded], Ended]:
    """All kinds that this kernel has, under one capture: what arrived, and how it ended."""
    file = tmp_path_factory.mktemp("above") / "all.pcapng"
    names = [name for name in KINDS if "SKBCAPD_SLOWNESS" in os.environ or is_makeable(KINDS[name].needs)]
    recorded = {name: Recorded() for name in names}
    with ExitStack() as stack:
        wires = {name: stack.enter_context(wire()) for name in names}
        for name, ends in wires.items():
            make(ends, KINDS[name])
        far = [each.far.namespace for each in wires.values()]
        arguments = ("-i", "any", "-w", str(file))
        namespaces = ",".join(each.name for each in far)
        capture = stack.enter_context(closing(Capture(far[0], *arguments, namespaces=namespaces)))
        line = f"what arrives on {UPPER} is captured there from now on"
        until(lambda: capture.said().count(line) == len(wires) - 1, "the other namespaces have their taps")
        references = {
            (name, interface): stack.enter_context(closing(Reference(ends.far.namespace, interface)))
            for name, ends in wires.items()
            for interface in (UPPER, LOWER)
        }
        send(stack, wires)
        until(lambda: file.read_bytes().count(LAST) >= 4 * len(wires), "the last datagrams")
        ended = capture.stop()
        packets = read(file)
        for (name, interface), reference in references.items():
            reference.collect()
            place = f"network namespace {wires[name].far.namespace.name}"
            recorded[name].theirs[interface] = [
                frame.data for frame in reference.frames if not frame.outgoing and is_own(frame.data)
            ]
            recorded[name].ours[interface] = [
                packet
                for packet in packets
                if (packet.direction, packet.description, packet.interface) == ("in", place, interface)
                and is_own(packet.data)
            ]
    return recorded, ended


@pytest.mark.vm
def test_nothing_is_dropped(played: tuple[dict[str, Recorded], Ended]) -> None:
    """Nothing is dropped, and each packet that the program has seen has an outcome."""
    _, ended = played
    assert (ended.exit_code, ended.lost) == (0, 0)


@pytest.mark.parametrize("name", EVERY)
def test_both_interfaces_have_the_frames(name: str, played: tuple[dict[str, Recorded], Ended]) -> None:
    """What arrives is captured on the interface above and on the one below, each as an AF_PACKET socket there gets it,
    once.
    """
    recorded = played[0][name]
    for interface, theirs in recorded.theirs.items():
        assert len(theirs) >= 2 * (COUNT + 1)
        assert differences(recorded.ours[interface], theirs) == {}, interface


@pytest.mark.parametrize("name", EVERY)
def test_both_have_the_identifier(name: str, played: tuple[dict[str, Recorded], Ended]) -> None:
    """A packet has the same identifier on both interfaces, which no other packet has."""
    recorded = played[0][name]
    above, below = (
        {packet.packet_id: untagged(packet.data) for packet in recorded.ours[place]} for place in (UPPER, LOWER)
    )
    assert None not in above.keys() | below.keys()
    assert [len(above), len(below)] == [len(recorded.theirs[place]) for place in (UPPER, LOWER)]
    assert above == below


@pytest.mark.parametrize("name", EVERY)
def test_names_above_are_right(name: str, played: tuple[dict[str, Recorded], Ended]) -> None:
    """On the interface above, a packet has the process that gets it, or none; each datagram to a socket has it."""
    packets = played[0][name].ours[UPPER]
    assert {packet.label.tgid for packet in packets if packet.label} == {os.getpid()}
    datagrams = [packet for packet in packets if packet.data[-SIZE:] == packet.data[-1:] * SIZE]
    assert len(datagrams) == 2 * COUNT
    assert all(packet.label for packet in datagrams)


@pytest.fixture
def other() -> Iterator[Wire]:
    """Two namespaces of one test."""
    with wire() as ends:
        yield ends


@pytest.mark.devices(KINDS["macvlan"].needs)
@pytest.mark.parametrize(
    "is_here",
    [pytest.param(True, id="own namespace"), pytest.param(False, id="another namespace", marks=pytest.mark.faults)],
)
def test_made_later_and_removed(is_here: bool, other: Wire, tmp_path: Path) -> None:  # noqa: FBT001
    """An interface that is made while a capture runs gets its tap, in another network namespace than that of the
    capture once it has sent something; and it can be removed. Broadcasts, which the kernel gives to it as to any
    other interface, are captured once; so is what it sends.
    """
    file, far, kind = tmp_path / "later.pcapng", other.far.namespace, KINDS["macvlan"]
    here = far if is_here else other.near.namespace
    with ExitStack() as stack:
        capture = stack.enter_context(closing(Capture(here, "-i", "any", "-w", str(file), namespaces=far.name)))
        make(other, kind)
        if not is_here:
            sockets(stack, other, IPV4, socket.SOCK_DGRAM)[0].sendto(b"first", (IPV4[0], 9))
        until(lambda: f"what arrives on {UPPER} is captured there" in capture.said(), "it has its tap")
        judge = stack.enter_context(closing(Reference(far, UPPER)))
        receiver, sender = sockets(stack, other, IPV4, socket.SOCK_DGRAM)
        everybody = far.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        stack.callback(everybody.close)
        everybody.settimeout(DEADLINE_S)
        everybody.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, UPPER.encode())
        everybody.bind(("10.9.0.255", 0))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for number in range(COUNT):
            sender.sendto(b"%d" % number, receiver.getsockname())
            sender.sendto(b"to all %d" % number, everybody.getsockname())
            receiver.sendto(b"back %d" % number, (IPV4[0], 9))
            receiver.recv(SIZE)
            everybody.recv(SIZE)
        until(lambda: file.read_bytes().count(b"to all 6") == 2, "the last broadcast, on both interfaces")
        judge.collect()
        far.ip(f"link del {UPPER}")
        ended = capture.stop()
    assert (ended.exit_code, ended.lost) == (0, 0)
    packets = [packet for packet in read(file) if packet.interface == UPPER and is_own(packet.data)]
    ours = [packet for packet in packets if not packet.data.endswith(b"first")]
    theirs = [frame for frame in judge.frames if is_own(frame.data)]
    assert len(theirs) == 3 * COUNT
    assert Counter((packet.direction, packet.data) for packet in ours) == Counter(
        ("out" if frame.outgoing else "in", frame.data) for frame in theirs
    )


@pytest.mark.faults
@pytest.mark.devices(KINDS["macvlan"].needs)
def test_a_namespace_ends(other: Wire, tmp_path: Path) -> None:
    """A tap does not keep a network namespace alive: its interfaces go when it is removed."""
    near, there = other.near.namespace, Namespace()
    with ExitStack() as stack:
        removed = stack.enter_context(ExitStack())
        removed.callback(there.close)
        near.ip(f"link add gone0 type veth peer name {LOWER} netns {there.name}")
        there.ip(f"link set {LOWER} up", *KINDS["macvlan"].far[1:], f"link set {UPPER} up")
        arguments = ("-i", "any", "-w", str(tmp_path / "ends.pcapng"))
        capture = stack.enter_context(closing(Capture(near, *arguments, namespaces=there.name)))
        until(lambda: f"what arrives on {UPPER} is captured there" in capture.said(), "it has its tap")
        removed.close()
        until(lambda: "gone0" not in dict(near.do(socket.if_nameindex)).values(), "its interfaces are gone")
        assert capture.stop().exit_code == 0


@pytest.mark.faults
@pytest.mark.devices(KINDS["macvlan"].needs)
def test_a_reload_changes_its_filter(other: Wire, tmp_path: Path) -> None:
    """After a reload, the new filter decides on the interface above as on the one below."""
    config, directory = tmp_path / "skbcapd.yaml", tmp_path / "captures"
    directory.mkdir()
    make(other, KINDS["macvlan"])
    with ExitStack() as stack:
        pairs = [sockets(stack, other, IPV4, socket.SOCK_DGRAM) for _ in range(2)]
        first, second = (receiver.getsockname()[1] for receiver, _ in pairs)
        config.write_text("snaplen: 1000")
        interfaces = f"{UPPER},{LOWER}"
        daemon = stack.enter_context(closing(Daemon(other.far, directory, (), config, interfaces=interfaces)))
        for number, text in enumerate((f"filter: udp port {first}", f"filter: udp port {second}", "snaplen: 500")):
            config.write_text(text)
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda: daemon.said().count("settings reloaded") == number + 1, text)  # noqa: B023
            for receiver, sender in pairs:
                for _ in range(COUNT):
                    sender.sendto(b"reload %d" % number, receiver.getsockname())
                    receiver.recv(SIZE)
        assert daemon.stop().exit_code == 0
    [file] = (entry for entry in directory.glob("*.pcapng") if not entry.is_symlink())
    found = Counter(
        (packet.interface, packet.data[-1:], int.from_bytes(packet.data[36:38], "big"))
        for packet in read(file)
        if packet.data[-8:-1] == b"reload "
    )
    expected = ((b"0", first), (b"1", second), (b"2", first), (b"2", second))
    assert found == {(interface, *each): COUNT for interface in (UPPER, LOWER) for each in expected}
