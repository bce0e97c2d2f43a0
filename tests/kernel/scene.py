"""The parts of a scene: namespaces, interfaces, senders, and AF_PACKET sockets on interfaces.

A scene (tests/kernel/scenes.py) builds its devices with the Stage it is given, says which of them
are watched and how many frames must pass there, and sends. What leaves is an ObservationPoint (RFC 7011)
per watched device: what the AF_PACKET socket saw there. Nothing else moves on these devices: no IPv6 of its
own, permanent neighbours. A scene is over when every socket has seen the frames that it was told to
expect.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.kernel.namespace import Namespace
from tests.kernel.reference import Frame, Reference
from tests.kernel.send.identity import payload
from tests.support.deadline import DEADLINE_S, until

COUNT = 23
PORT = 9
NAMESPACES = 3  # maximum of one scene
SO_SNDBUFFORCE = 32
PROTOCOLS = {"sctp": socket.IPPROTO_SCTP, "mptcp": socket.IPPROTO_MPTCP}
UNKNOWN = -1  # any number of frames, but at least one

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Host:
    """An interface with its addresses, in its namespace."""

    namespace: Namespace
    device: str
    mac: str
    ipv4: str
    ipv6: str

    @property
    def mac_bytes(self) -> bytes:
        """The Ethernet address."""
        return bytes.fromhex(self.mac.replace(":", ""))


@dataclass
class ObservationPoint:
    """An interface with a socket, and how many frames must be sent and received there; None: not
    compared.
    """

    scene: str
    namespace: Namespace
    device: str
    reference: Reference
    out: int | None
    into: int | None

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.scene}, {self.device}"

    def frames(self, *, outgoing: bool) -> list[Frame]:
        """The frames of the scene that the socket saw, sent or received."""
        return [
            frame for frame in self.reference.frames if frame.outgoing == outgoing and not is_group_report(frame.data)
        ]

    def is_complete(self) -> bool:
        """Whether all expected frames have arrived."""
        self.reference.collect()
        return all(
            len(self.frames(outgoing=outgoing)) >= abs(expected)
            for outgoing, expected in ((True, self.out or 0), (False, self.into or 0))
        )


@dataclass
class Stage:
    """Where one scene plays; what it opens is closed by `stack`."""

    scene: str
    stack: ExitStack
    watched: bool = True
    """Whether there are AF_PACKET sockets: with them a router has to copy a packet before it can
    change it.
    """
    points: list[ObservationPoint] = field(default_factory=list)
    namespaces: list[Namespace] = field(default_factory=list)
    """Made with the stage, so that a capture can get their names before the scene begins."""
    used: int = 0
    sent: int = 0
    listeners: list[socket.socket] = field(default_factory=list)
    received: int = 0

    def __post_init__(self) -> None:
        """Make as many namespaces as a scene can have."""
        for _ in range(NAMESPACES):
            made = Namespace()
            self.stack.callback(made.close)
            self.namespaces.append(made)

    def namespace(self, **sysctls: str) -> Namespace:
        """The next namespace, without IPv6 traffic of its own."""
        made, self.used = self.namespaces[self.used], self.used + 1
        made.sysctl(
            ipv6__conf__all__addr_gen_mode="1",
            ipv6__conf__default__addr_gen_mode="1",
            ipv6__conf__default__accept_dad="0",
            ipv6__conf__default__mldv2_unsolicited_report_interval="1",
            **sysctls,
        )
        made.ip("link set lo up")
        return made

    def wire(self, near: Namespace, far: Namespace, names: tuple[str, str] = ("near0", "far0")) -> tuple[Host, Host]:
        """A veth pair between two namespaces; each end knows the other's addresses."""
        number = next(_numbers)
        ends = [
            Host(at, name, f"02:5c:00:00:{number:02x}:0{side}", f"10.7.{number}.{side}", f"fd07:{number:x}::{side}")
            for side, (at, name) in enumerate(zip((near, far), names, strict=True), 1)
        ]
        first, second = ends
        near.ip(
            f"link add {first.device} address {first.mac} type veth "
            f"peer {second.device} address {second.mac} netns {far.name}"
        )
        for end, other in ((first, second), (second, first)):
            settle(end)
            meet(end, other)
        for end in ends:
            until(lambda end=end: carries(end), f"{end.device} carries frames")  # type: ignore[misc]
        return first, second

    def watch(self, namespace: Namespace, device: str, out: int | None = None, into: int | None = None) -> None:
        """Open a socket on an interface; so many frames must be sent and received there (None: not
        compared).
        """
        if not self.watched:
            return
        reference = Reference(namespace, device)
        self.stack.callback(reference.close)
        self.points.append(ObservationPoint(self.scene, namespace, device, reference, out, into))

    def end(self) -> None:
        """Wait until all sockets have seen their frames; without sockets, until all datagrams have
        arrived.
        """
        for point in self.points:
            until(point.is_complete, f"{point.name}: {point.out} frames out, {point.into} in")
        if not self.watched:
            until(self._has_received, f"{self.scene}: {self.sent} datagrams")

    def _has_received(self) -> bool:
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                while listener.recv(1 << 16, socket.MSG_DONTWAIT):
                    self.received += 1
        return self.received == self.sent

    def listen(self, namespace: Namespace, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
        """A socket on PORT of all addresses, so that no datagram is rejected."""
        opened = namespace.do(socket.socket, socket.AF_INET6, kind)
        self.stack.callback(opened.close)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind(("::", PORT))
        self.listeners.append(opened)
        return opened

    def send(self, namespace: Namespace, to: str, size: int = 100, count: int = COUNT, options: Options = ()) -> None:
        """Send datagrams with the payload of this process (tests/kernel/send/identity.py)."""
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        sender = namespace.do(socket.socket, family, socket.SOCK_DGRAM)
        with sender:
            sender.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 16 << 20)
            for level, option, value in options:
                sender.setsockopt(level, option, value)
            sender.connect((to, PORT))
            number, self.sent = next(_numbers), self.sent + count
            for sequence in range(count):
                sender.send(payload(size, os.getpid(), number, sequence))

    def frames(self, host: Host, *frames: bytes, count: int = COUNT) -> None:
        """Send unchanged frames from an interface, each `count` times."""
        with host.namespace.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
            sender.bind((host.device, 0))
            for sequence, frame in itertools.product(range(count), frames):
                sender.send(frame + struct.pack("!I", sequence))


Options = tuple[tuple[int, int, int], ...]
Play = Callable[[Stage], None]


def is_group_report(frame: bytes) -> bool:
    """Whether a frame reports the groups of a new IPv6 address (MLDv2, to ff02::16): the kernel
    sends it at any time.
    """
    return b"\xff\x02" + bytes(13) + b"\x16" in frame[:160]


def settle(host: Host, more: str = "") -> None:
    """Add addresses to an interface and switch it on."""
    host.namespace.ip(
        f"link set {host.device} addrgenmode none up {more}",
        f"address add {host.ipv4}/24 dev {host.device}",
        f"address add {host.ipv6}/64 dev {host.device} nodad",
    )


def meet(host: Host, other: Host) -> None:
    """Add a permanent neighbor entry for another host."""
    host.namespace.ip(
        f"neighbour add {other.ipv4} lladdr {other.mac} nud permanent dev {host.device}",
        f"neighbour add {other.ipv6} lladdr {other.mac} nud permanent dev {host.device}",
    )


def carries(host: Host) -> bool:
    """Whether the interface has its carrier and its queue, so that no frame is dropped any more."""
    command = ["ip", "-n", host.namespace.name, "-j", "link", "show", "dev", host.device]
    shown = subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE_S)
    link = json.loads(shown.stdout)[0]
    return link["operstate"] in {"UP", "UNKNOWN"} and link["qdisc"] != "noop"


def ethtool(host: Host, *features: str) -> None:
    """Switch offloads of an interface: `tso off`."""
    words = [word for feature in features for word in feature.split()]
    host.namespace.do(
        subprocess.run, ["ethtool", "-K", host.device, *words], check=True, capture_output=True, timeout=DEADLINE_S
    )


def is_makeable(kind: str) -> bool:
    """Whether this kernel can create interfaces of a kind, such as `vlan`, in the arguments of `ip
    link add`; or has "sctp", "mptcp" or "ipvs".
    """
    if kind == "ipvs":
        return Path("/proc/net/ip_vs").exists()
    if kind in PROTOCOLS:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM, PROTOCOLS[kind]):
            return True
        return False
    namespace = Namespace()
    try:
        namespace.ip("link add lower0 type veth peer lower1")
        namespace.ip(f"link add {kind}")
    except RuntimeError:
        return False
    else:
        return True
    finally:
        namespace.close()
