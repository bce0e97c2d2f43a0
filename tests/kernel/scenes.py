"""The scenes: every kind of device and of sk_buff that a frame may come through, each with the frames it must give.

A scene is a function that plays on a Stage (tests/kernel/scene.py); its docstring says what it shows. Counts are prime.
A scene whose devices this kernel cannot make is left out by name (conftest says so); on Debian's kernels, in the
virtual machines, none is.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tests.kernel.capture import ATTACH
from tests.kernel.namespace import Namespace
from tests.kernel.scene import COUNT, PORT, UNKNOWN, Host, Play, Stage, carries, ethtool, meet, settle
from tests.kernel.send.identity import pattern
from tests.kernel.send.zerocopy import MSG_ZEROCOPY, SO_ZEROCOPY, wait_for_completions
from tests.support.deadline import DEADLINE_S, until

EXPERIMENT = b"\x88\xb5"  # an EtherType for local experiments: nobody else sends it
BROADCAST, MULTICAST, SOMEBODY = b"\xff" * 6, b"\x01\x00\x5e\x7f\x00\x01", b"\x02\x5c\x99\x99\x99\x99"
Q, AD = b"\x81\x00", b"\x88\xa8"  # EtherTypes of 802.1Q and 802.1ad

SOL_UDP, UDP_SEGMENT = 17, 103
IP_MTU_DISCOVER, IP_PMTUDISC_INTERFACE = 10, 4
MADV_HUGEPAGE = 14
HUGE_PAGE = 2 << 20
IFB_KIND = "upper0 type ifb"


def plain(stage: Stage) -> None:
    """UDP over a veth pair."""
    near, far = stage.wire(stage.namespace(), stage.namespace())
    stage.listen(far.namespace)
    stage.watch(near.namespace, near.device, out=COUNT, into=0)
    stage.watch(far.namespace, far.device, out=0, into=COUNT)
    stage.send(near.namespace, far.ipv4)


def reception(stage: Stage) -> None:
    """Frames to the device, to all, to a group and to somebody else, which a promiscuous device takes as well."""
    near, far = stage.wire(stage.namespace(), stage.namespace())
    far.namespace.ip(f"link set {far.device} promisc on")
    to = (far.mac_bytes, BROADCAST, MULTICAST, SOMEBODY)
    stage.watch(near.namespace, near.device, out=COUNT * len(to), into=0)
    stage.watch(far.namespace, far.device, out=0, into=COUNT * len(to))
    stage.frames(near, *(mac + near.mac_bytes + EXPERIMENT + pattern(50) for mac in to))


def tagged(stage: Stage) -> None:
    """Frames with tags of 802.1Q, 802.1ad and both in their bytes: the receiving side takes the outer one out."""
    near, far = stage.wire(stage.namespace(), stage.namespace())
    tags = (Q + b"\x60\x07", AD + b"\x00\x05", AD + b"\x00\x05" + Q + b"\x00\x07", Q + b"\x00\x00")
    stage.watch(near.namespace, near.device, out=COUNT * len(tags), into=0)
    stage.watch(far.namespace, far.device, out=0, into=COUNT * len(tags))
    stage.frames(near, *(far.mac_bytes + near.mac_bytes + tag + EXPERIMENT + pattern(50) for tag in tags))


def routed(stage: Stage) -> None:
    """Packets forwarded by a router: their mac_header is the receiving side's until the kernel sets it anew."""
    left, router, right = _routed(stage)
    stage.listen(right.namespace)
    stage.watch(router[0].namespace, router[0].device, out=0, into=COUNT)
    stage.watch(router[1].namespace, router[1].device, out=COUNT, into=0)
    stage.watch(right.namespace, right.device, out=0, into=COUNT)
    stage.send(left.namespace, right.ipv4)


def bridged(stage: Stage) -> None:
    """Frames forwarded by a bridge, and those that the bridge's own host sends and gets."""
    left, right, (first, second), bridge = _bridged(stage)
    stage.listen(right.namespace)
    stage.listen(bridge.namespace)
    stage.watch(first.namespace, first.device, out=COUNT, into=2 * COUNT)  # flooded: the bridge learns nothing
    stage.watch(second.namespace, second.device, out=2 * COUNT, into=0)
    stage.watch(bridge.namespace, bridge.device, out=COUNT, into=COUNT)
    stage.watch(right.namespace, right.device, out=0, into=2 * COUNT)
    stage.send(left.namespace, right.ipv4)
    stage.send(left.namespace, bridge.ipv4)
    stage.send(bridge.namespace, right.ipv4)


def vlan(stage: Stage) -> None:
    """VLAN devices of 802.1Q, 802.1ad and one on the other: the tag travels beside the frame."""
    _vlan(stage)


def vlan_in_software(stage: Stage) -> None:
    """The same on devices that cannot insert tags: the kernel puts them into the bytes on the way to the driver."""
    _vlan(stage, "tx-vlan-offload off", "tx-vlan-stag-hw-insert off")


def macvlan(stage: Stage) -> None:
    """A macvlan device: its frames leave by it, and by the device below."""
    near, far = stage.wire(stage.namespace(), stage.namespace())
    above = _above(near, "mac0", 41)
    near.namespace.ip(f"link add link {near.device} name {above.device} address {above.mac} type macvlan mode bridge")
    settle(above)
    meet(above, peer := _peer(far, 42))
    far.namespace.ip(f"address add {peer.ipv4}/24 dev {far.device}")
    meet(peer, above)
    stage.listen(far.namespace)
    stage.listen(near.namespace)
    stage.watch(near.namespace, above.device, out=COUNT)
    stage.watch(near.namespace, near.device, out=COUNT, into=COUNT)
    stage.watch(far.namespace, far.device, out=COUNT, into=COUNT)
    stage.send(near.namespace, peer.ipv4)
    stage.send(far.namespace, above.ipv4)


def bond(stage: Stage) -> None:
    """A bond with one slave: its frames leave by it, and by the slave."""
    near, far = stage.wire(stage.namespace(), stage.namespace())
    above = _above(near, "bond7", 43)
    near.namespace.ip(
        f"link add {above.device} address {above.mac} type bond mode active-backup miimon 10",
        f"link set {near.device} down",
        f"link set {near.device} master {above.device}",
        f"link set {near.device} up",
    )
    settle(above)
    meet(above, peer := _peer(far, 44))
    far.namespace.ip(f"address add {peer.ipv4}/24 dev {far.device}")
    until(lambda: carries(above) and carries(near), "the bond has its slave")
    stage.listen(far.namespace)
    stage.watch(near.namespace, above.device, out=COUNT)
    stage.watch(near.namespace, near.device, out=COUNT)
    stage.watch(far.namespace, far.device, into=COUNT)
    stage.send(near.namespace, peer.ipv4)


def through_ifb(stage: Stage) -> None:
    """What an interface receives and sends passes an ifb, as for a shaper, and comes back to the interface: a
    filter at its ingress and one at its egress. A kprobe is before the one at its egress, too: what is sent would be
    there twice (docs/limitations.md).
    """
    near, far = stage.wire(stage.namespace(), stage.namespace())
    there = near.namespace
    tc = [f"qdisc add dev {near.device} clsact", f"qdisc add dev {near.device} root handle 1: htb"]
    ways = {"ingress": "ifb7"} if ATTACH == "kprobe" else {"ingress": "ifb7", "egress": "ifb8"}
    for at, ifb in ways.items():
        there.ip(f"link add {ifb} type ifb", f"link set {ifb} addrgenmode none up")
        action = f"action mirred egress redirect dev {ifb}"
        tc.append(f"filter add dev {near.device} {at} protocol all u32 match u32 0 0 {action}")
    for words in tc:
        there.do(subprocess.run, ["tc", *words.split()], check=True, capture_output=True, timeout=DEADLINE_S)
    stage.listen(near.namespace)
    stage.listen(far.namespace)
    stage.watch(there, near.device, out=COUNT, into=COUNT)
    for ifb in ways.values():
        stage.watch(there, ifb, out=COUNT, into=0)
    stage.watch(far.namespace, far.device, out=COUNT, into=COUNT)
    stage.send(near.namespace, far.ipv4)
    stage.send(far.namespace, near.ipv4)


def vxlan(stage: Stage) -> None:
    """Ethernet in UDP; the large frames come out of a chain of reassembled fragments (frag_list)."""
    near, far = stage.wire(stage.namespace(), stage.namespace())
    inner = [_above(end, "vxlan7", 50 + side) for side, end in enumerate((near, far), 1)]
    for end, above, other in zip((near, far), inner, (far, near), strict=True):
        end.namespace.ip(
            f"link add {above.device} address {above.mac} "
            f"type vxlan id 7 dstport 4789 local {end.ipv4} remote {other.ipv4}",
            f"link set {above.device} mtu 9000",
        )
        settle(above)
    meet(inner[0], inner[1])
    stage.listen(far.namespace)
    stage.watch(near.namespace, inner[0].device, out=2 * COUNT, into=0)
    stage.watch(far.namespace, inner[1].device, out=0, into=2 * COUNT)
    stage.watch(far.namespace, far.device, out=0, into=UNKNOWN)
    stage.send(near.namespace, inner[1].ipv4)
    whole = (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_INTERFACE)  # only the outer packets are fragmented
    stage.send(near.namespace, inner[1].ipv4, size=8500, options=(whole,))


def tunnel(kind: str, *, ipv6: bool = False) -> Play:
    """A tunnel device of a kind of `ip link`, which has no header of its own."""

    def play(stage: Stage) -> None:
        near, far = stage.wire(stage.namespace(), stage.namespace())
        inner = [_above(end, "tunnel7", 60 + side) for side, end in enumerate((near, far), 1)]
        for end, above, other in zip((near, far), inner, (far, near), strict=True):
            local, remote = (end.ipv6, other.ipv6) if ipv6 else (end.ipv4, other.ipv4)
            end.namespace.ip(f"link add {above.device} type {kind.format(local=local, remote=remote)}")
            settle(above)
        over_ipv6 = kind.startswith("sit")
        stage.listen(far.namespace)
        stage.watch(near.namespace, inner[0].device, out=COUNT, into=0)
        stage.watch(far.namespace, inner[1].device, out=0, into=COUNT)
        stage.send(near.namespace, inner[1].ipv6 if over_ipv6 else inner[1].ipv4)

    return play


def wireguard(stage: Stage) -> None:
    """A WireGuard device: what it sends and gets is IP, before it is sealed and after."""
    near, far = stage.wire(stage.namespace(), stage.namespace())
    inner = [_above(end, "wg7", 65 + side) for side, end in enumerate((near, far), 1)]
    secrets = [_wg(near.namespace, "genkey") for _ in inner]
    publics = [_wg(near.namespace, "pubkey", stdin=secret) for secret in secrets]
    for side, (above, end, other) in enumerate(zip(inner, (near, far), (far, near), strict=True)):
        end.namespace.ip(f"link add {above.device} type wireguard")
        peer = ("peer", publics[1 - side], "allowed-ips", "0.0.0.0/0", "endpoint", f"{other.ipv4}:51820")
        _wg(
            end.namespace,
            *("set", above.device, "listen-port", "51820", "private-key", "/dev/stdin", *peer),
            stdin=secrets[side],
        )
        settle(above)
    stage.listen(far.namespace)
    stage.watch(near.namespace, inner[0].device, out=COUNT, into=0)
    stage.watch(far.namespace, inner[1].device, out=0, into=COUNT)
    stage.send(near.namespace, inner[1].ipv4)


def tun(stage: Stage) -> None:
    """A tun device, whose frames start with the IP header, written and read by a process."""
    _tun(stage, "tun7", IFF_TUN)


def tap(stage: Stage) -> None:
    """A tap device, whose frames are Ethernet's, written and read by a process."""
    _tun(stage, "tap7", IFF_TAP)


def loopback(stage: Stage) -> None:
    """Datagrams over loopback: an AF_PACKET socket sees each leave and arrive; ours are those that leave."""
    namespace = stage.namespace()
    stage.listen(namespace)
    stage.watch(namespace, "lo", out=COUNT)
    stage.send(namespace, "127.0.0.1")


def segments(stage: Stage) -> None:
    """TCP on a device without offloads, datagrams with UDP_SEGMENT on one with checksums: the driver gets segments."""
    near, far = stage.wire(stage.namespace(), stage.namespace())
    ethtool(near, "tso off", "gso off", "tx-udp-segmentation off", "tx off")
    stage.listen(far.namespace)
    stage.watch(near.namespace, near.device, out=UNKNOWN)
    stage.watch(far.namespace, far.device, into=UNKNOWN)
    _stream(stage, near, far)
    ethtool(near, "tx-checksum-ip-generic on")  # without it Linux 6.1 refuses UDP_SEGMENT
    stage.send(near.namespace, far.ipv4, size=17 * 1400, options=((SOL_UDP, UDP_SEGMENT, 1400),))


def tcp_merged(stage: Stage) -> None:
    """Segments merged again where they arrive (GRO): more than 17 fragments make a chain of sk_buffs (frag_list)."""
    left, router, right = _routed(stage)
    ethtool(left, "tso off", "gso off")
    ethtool(router[0], "gro on")
    stage.watch(router[0].namespace, router[0].device, out=UNKNOWN, into=UNKNOWN)
    stage.watch(router[1].namespace, router[1].device, out=UNKNOWN, into=UNKNOWN)
    stage.watch(right.namespace, right.device, out=UNKNOWN, into=UNKNOWN)
    _stream(stage, left, right)


def udp_listed(stage: Stage) -> None:
    """Datagrams of one flow that are forwarded as a chain (rx-gro-list)."""
    _udp_merged(stage, "rx-gro-list on")


def udp_merged(stage: Stage) -> None:
    """Datagrams of one flow that are forwarded as one with many fragments (rx-udp-gro-forwarding)."""
    _udp_merged(stage, "rx-udp-gro-forwarding on")


def sctp(stage: Stage) -> None:
    """SCTP: packets of one send travel as a chain of sk_buffs, and their sum (CRC32c) is left to the device."""
    near, far = stage.wire(stage.namespace(), stage.namespace())
    stage.watch(near.namespace, near.device, out=UNKNOWN, into=UNKNOWN)
    stage.watch(far.namespace, far.device, out=UNKNOWN, into=UNKNOWN)
    kind = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
    with far.namespace.do(socket.socket, *kind) as listener, near.namespace.do(socket.socket, *kind) as sender:
        for end in (listener, sender):
            end.settimeout(DEADLINE_S)
        listener.bind((far.ipv4, PORT))
        listener.listen()
        sender.connect((far.ipv4, PORT))
        connection, _ = listener.accept()
        with connection:
            left = 0
            for _ in range(COUNT):
                left += sender.send(pattern(20_011))
                while left:
                    left -= len(connection.recv(1 << 20))
            sender.close()
            connection.recv(1)  # the other side's end


def big_tcp(stage: Stage) -> None:
    """BIG TCP: frames of up to 180,000 bytes, with more than 17 fragments where the kernel has them."""
    _big_tcp(stage, 180_000)


def bigger_tcp(stage: Stage) -> None:
    """BIG TCP beyond what a frame may have here: cut at 262,144 bytes, the true length kept."""
    _big_tcp(stage, 500_000)


def huge_pages(stage: Stage) -> None:
    """A process's huge pages sent without a copy: fragments that cross the borders of small pages."""
    near, far = stage.wire(stage.namespace(), stage.namespace())
    stage.watch(near.namespace, near.device, out=UNKNOWN)
    stage.watch(far.namespace, far.device, into=UNKNOWN)
    with mmap.mmap(-1, 2 * HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(MADV_HUGEPAGE)
        memory.write(pattern(2 * HUGE_PAGE))

        def zerocopy(connection: socket.socket) -> None:
            connection.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
            whole = memoryview(memory)
            rest, sends = whole[5 : 5 + 1_000_003], 0
            while rest:
                rest = rest[connection.send(rest, MSG_ZEROCOPY) :]
                wait_for_completions(connection, sends)
                sends += 1
            rest.release()
            whole.release()

        _stream(stage, near, far, zerocopy)


@dataclass(frozen=True)
class Scene:
    """One scene.

    Args:
        name: for the table.
        play: what happens.
        kinds: of devices that the kernel must make.
        at_queue: whether a frame is the same at the queue as at the driver, where the AF_PACKET socket stands.
        vm: also for emulated machines: what not every kernel can make, and what differed from kernel to kernel.
    """

    name: str
    play: Play
    kinds: tuple[str, ...] = ()
    at_queue: bool = True
    vm: bool = False


def _tunnel(name: str, arguments: str, test: str, *, ipv6: bool = False) -> Scene:
    return Scene(name, tunnel(f"{name} {arguments} local {{local}} remote {{remote}}", ipv6=ipv6), (test,), vm=True)


SCENES = [
    Scene("plain", plain, vm=True),
    Scene("reception", reception, vm=True),
    Scene("tagged", tagged),
    Scene("routed", routed),
    Scene("bridged", bridged, vm=True),
    Scene("vlan", vlan, ("link lower0 name upper0 type vlan id 7",), vm=True),
    Scene("vlan in software", vlan_in_software, ("link lower0 name upper0 type vlan id 7",), vm=True),
    Scene("macvlan", macvlan, ("link lower0 name upper0 type macvlan",)),
    Scene("bond", bond, ("upper0 type bond",), vm=True),
    Scene("through an ifb", through_ifb, (IFB_KIND,), vm=True),
    Scene("vxlan", vxlan, ("upper0 type vxlan id 7 dstport 4789",)),
    _tunnel("ipip", "", "upper0 type ipip remote 10.0.0.1"),
    _tunnel("gre", "", "upper0 type gre remote 10.0.0.1"),
    _tunnel("sit", "", "upper0 type sit remote 10.0.0.1"),
    _tunnel("ip6tnl", "mode any", "upper0 type ip6tnl remote ::1", ipv6=True),
    _tunnel("ip6gre", "", "upper0 type ip6gre remote ::1", ipv6=True),
    Scene("wireguard", wireguard, ("upper0 type wireguard",), vm=True),
    Scene("tun", tun),
    Scene("tap", tap),
    Scene("loopback", loopback),
    Scene("segments", segments, at_queue=False, vm=True),
    Scene("tcp merged", tcp_merged),
    Scene("udp listed", udp_listed, vm=True),
    Scene("udp merged", udp_merged),
    Scene("sctp", sctp, ("sctp",), vm=True),
    Scene("big tcp", big_tcp, vm=True),
    Scene("bigger tcp", bigger_tcp),
    Scene("huge pages", huge_pages),
]

TUNSETIFF = 0x400454CA  # include/uapi/linux/if_tun.h
IFF_TUN, IFF_TAP, IFF_NO_PI = 0x0001, 0x0002, 0x1000


def open_tun(name: str, mode: int) -> int:
    """Make a tun or tap device in the caller's namespace; it lives as long as the descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH14x", name.encode(), mode | IFF_NO_PI))
    return descriptor


def _routed(stage: Stage) -> tuple[Host, tuple[Host, Host], Host]:
    """Two namespaces with a router between them."""
    middle = stage.namespace(ipv4__ip_forward="1", ipv6__conf__all__forwarding="1")
    left, first = stage.wire(stage.namespace(), middle, ("left0", "first0"))
    second, right = stage.wire(middle, stage.namespace(), ("second0", "right0"))
    left.namespace.ip(f"route add default via {first.ipv4}", f"route add default via {first.ipv6}")
    right.namespace.ip(f"route add default via {second.ipv4}", f"route add default via {second.ipv6}")
    return left, (first, second), right


def _bridged(stage: Stage) -> tuple[Host, Host, tuple[Host, Host], Host]:
    """Two namespaces with a bridge between them; all hosts in one subnet."""
    middle = stage.namespace()
    left, first = stage.wire(stage.namespace(), middle, ("left0", "first0"))
    second, right = stage.wire(middle, stage.namespace(), ("second0", "right0"))
    left, right = _peer(left, 31), _peer(right, 32)
    bridge = _above(first, "bridge7", 33)
    middle.ip(f"link add {bridge.device} address {bridge.mac} type bridge mcast_snooping 0")
    for port in (first, second):
        middle.ip(f"address flush dev {port.device}", f"link set {port.device} master {bridge.device}")
        middle.ip(f"link set {port.device} type bridge_slave learning off")
    settle(bridge)
    for host in (left, right):
        host.namespace.ip(f"address add {host.ipv4}/24 dev {host.device}")
    for host, other in ((left, right), (left, bridge), (bridge, right)):
        meet(host, other)
        meet(other, host)
    until(lambda: carries(bridge), "the bridge forwards")
    return left, right, (first, second), bridge


def _vlan(stage: Stage, *features: str) -> None:
    near, far = stage.wire(stage.namespace(), stage.namespace())
    if features:
        ethtool(near, *features)
    kinds = {"vlan7": "802.1Q", "svlan5": "802.1ad", "both7": "802.1Q"}
    uppers: list[tuple[Host, Host]] = []
    for number, (name, protocol) in enumerate(kinds.items()):
        both = []
        for side, end in enumerate((near, far)):
            above = _above(end, name, 10 + 2 * number + side, subnet=80 + number)
            below = "svlan5" if name == "both7" else end.device
            identifier = 5 if protocol == "802.1ad" else 7
            end.namespace.ip(
                f"link add link {below} name {name} address {above.mac} type vlan protocol {protocol} id {identifier}"
            )
            settle(above)
            both.append(above)
        meet(both[0], both[1])
        uppers.append((both[0], both[1]))
    stage.listen(far.namespace)
    for (above, _), frames in zip(uppers, (COUNT, 2 * COUNT, COUNT), strict=True):
        stage.watch(near.namespace, above.device, out=frames)
    stage.watch(near.namespace, near.device, out=3 * COUNT, into=0)
    stage.watch(far.namespace, far.device, out=0, into=3 * COUNT)
    for _, above in uppers:
        stage.send(near.namespace, above.ipv4)


def _wg(namespace: Namespace, *arguments: str, stdin: str = "") -> str:
    done = namespace.do(
        subprocess.run,
        ["wg", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    return done.stdout.strip()


def _udp_merged(stage: Stage, feature: str) -> None:
    left, router, right = _routed(stage)
    ethtool(left, "tx-udp-segmentation off", "gso on")
    ethtool(router[0], "gro on", feature)
    stage.listen(right.namespace)
    stage.watch(router[0].namespace, router[0].device, out=0, into=UNKNOWN)
    stage.watch(router[1].namespace, router[1].device, out=UNKNOWN, into=0)
    stage.watch(right.namespace, right.device, out=0, into=UNKNOWN)
    stage.send(left.namespace, right.ipv4, size=40 * 1000, options=((SOL_UDP, UDP_SEGMENT, 1000),))


def _big_tcp(stage: Stage, size: int) -> None:
    near, far = stage.wire(stage.namespace(), stage.namespace())
    for end in (near, far):
        end.namespace.ip(f"link set {end.device} gso_max_size {size} gro_max_size {size}")
        end.namespace.sysctl(ipv4__tcp_wmem="4096 8388608 16777216", ipv4__tcp_rmem="4096 8388608 16777216")
    stage.watch(near.namespace, near.device, out=UNKNOWN, into=UNKNOWN)
    stage.watch(far.namespace, far.device, out=UNKNOWN, into=UNKNOWN)
    _stream(stage, near, far, size=16_000_057, ipv6=True)


def _stream(
    stage: Stage,
    near: Host,
    far: Host,
    send: Callable[[socket.socket], None] | None = None,
    size: int = 1_000_003,
    *,
    ipv6: bool = False,
) -> None:
    """Send bytes over TCP, read at the other end; both sides have closed at the end."""
    listener = stage.listen(far.namespace, socket.SOCK_STREAM)
    listener.listen()

    def take() -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv(1 << 20):
                pass

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    with near.namespace.do(socket.socket, family, socket.SOCK_STREAM) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect((far.ipv6 if ipv6 else far.ipv4, PORT))
        if send:
            send(connection)
        else:
            connection.sendall(pattern(size))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # the other side's end
    taking.join(DEADLINE_S)


def _tun(stage: Stage, name: str, mode: int) -> None:
    namespace = stage.namespace()
    descriptor = namespace.do(open_tun, name, mode)
    stage.stack.callback(os.close, descriptor)
    here = Host(namespace, name, "02:5c:00:00:70:01", "10.7.77.1", "fd07:77::1")
    there = Host(namespace, name, "02:5c:00:00:70:02", "10.7.77.2", "fd07:77::2")
    if mode == IFF_TAP:
        namespace.ip(f"link set {name} address {here.mac}")
    settle(here)
    if mode == IFF_TAP:
        meet(here, there)
    stage.listen(namespace)
    stage.watch(namespace, name, out=COUNT, into=2 * COUNT)
    stage.send(namespace, there.ipv4)
    for size in (100, 1400):
        for sequence in range(COUNT):
            packet = _udp(there.ipv4, here.ipv4, pattern(size, sequence))
            os.write(descriptor, (here.mac_bytes + there.mac_bytes + b"\x08\x00" if mode == IFF_TAP else b"") + packet)


def _udp(source: str, destination: str, data: bytes) -> bytes:
    """An IPv4 packet with a datagram to PORT, both without checksums that matter here."""
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 28 + len(data), 1, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    total = sum(word for (word,) in struct.iter_unpack("!H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", total ^ 0xFFFF) + header[12:]
    return header + struct.pack("!HHHH", 4242, PORT, 8 + len(data), 0) + data


def _above(host: Host, name: str, number: int, subnet: int = 70) -> Host:
    """A device on top of a host's, with addresses of its own."""
    return Host(
        host.namespace, name, f"02:5c:01:00:00:{number:02x}", f"10.8.{subnet}.{number}", f"fd08:{subnet}::{number}"
    )


def _peer(host: Host, number: int) -> Host:
    """The same device with addresses in the subnet of `_above`."""
    return Host(host.namespace, host.device, host.mac, f"10.8.70.{number}", f"fd08:70::{number}")
