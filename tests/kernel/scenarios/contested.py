"""Addresses and ports of which another process has a part: it forges packets, has the same ones on another interface,
had them before, or gets what arrives. It never gets the name of the other one.

The processes do what they are told (tests/kernel/send/acting.py). The scenarios are for an ordinary host (SCENARIOS),
and for one with containers, that translates (TRANSLATED).
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

from tests.kernel.namespace import Namespace
from tests.kernel.scenarios.further import PAIR_HERE, PAIR_THERE, PAIRS, pairs
from tests.kernel.scenarios.passing import CONTAINERS, PORTS, container
from tests.kernel.scenarios.stealing import run
from tests.kernel.send.links import ACK, SYN, tcp_segment
from tests.kernel.sink import DISCARD_PORT
from tests.kernel.stage import Player, Scenario, Stage, connect, listener, udp_socket
from tests.kernel.verdict import Frame, Judge, Right
from tests.support.blocks import Label
from tests.support.deadline import DEADLINE_S

SENDS = 7
OLDER, FORGED, TWIN, PEER, AGAIN, ENCAPSULATED, MADE_AGAIN, MOVED, STOLEN = range(40_601, 40_628, 3)
OUTSIDE, INSIDE, REPEATED = 40_629, 40_631, 40_633
GROUP, ELSEWHERE = "239.67.0.7", "192.168.178.83"
GROUPS_MAX = 20  # net.ipv4.igmp_max_memberships
SO_REUSEADDR, SO_REUSEPORT = [1, 2, 1], [1, 15, 1]
NOT_ALL_GROUPS, ENCAPSULATES = [0, 49, 0], [17, 100, 2]  # IP_MULTICAST_ALL; UDP_ENCAP, UDP_ENCAP_ESPINUDP
OLDER_NAME = "TCP older than the capture, another process forges a SYN"


def actor(stage: Stage, name: str, at: Namespace | None = None) -> tuple[Player, list[Label]]:
    """A process that does what it is told, and who it is."""
    player = stage.start("acting", name, at=at)
    return player, player.says()


def received(*contents: tuple[bytes, list[Label]]) -> Judge:
    """Judge what arrives by its content; it belongs to nobody if nobody gets it."""

    def right(frame: Frame) -> Right:
        if frame.is_sent:
            return None
        return next((owners or "unknown" for content, owners in contents if content in frame.data), None)

    return right


def say(connection: socket.socket, content: bytes) -> None:
    """Send on a connection, each time in a segment of its own, unless the kernel joins some on a busy machine."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(SENDS):
        connection.sendall(content)


def forge(stage: Stage, ports: tuple[int, int], flags: int, sequence: int = 5) -> list[Label]:
    """Another process sends a segment of a connection, by an AF_PACKET socket, and ends; returns who it was."""
    near, far = stage.wire.near, stage.wire.far
    segment = tcp_segment((near.ipv4, far.ipv4), ports, (sequence, 7 if flags & ACK else 0), flags)
    ends = bytes.fromhex((far.mac + near.mac).replace(":", ""))
    forger, owners = actor(stage, "forger")
    forger.tell("frame", near.device, (ends + b"\x08\x00" + segment).hex())
    forger.end()
    return owners


def forged_twice(stage: Stage) -> Judge:
    """Two processes, one after the other, send a SYN of the same ports; the answers go to the later one, if to any."""
    contents = []
    with listener(stage.far, stage.wire.far.ipv4) as listening:
        for sequence in range(0x5A5A5A05, 0x5A5A5A05 + SENDS):
            owners = forge(stage, (REPEATED, listening.getsockname()[1]), SYN, sequence)
            contents.append((struct.pack("!I", sequence + 1), owners))
    return received(*contents)


def start_older(stage: Stage) -> tuple[Player, list[socket.socket]]:
    """Connect before the capture."""
    listening = listener(stage.far, stage.wire.far.ipv4)
    player, _ = actor(stage, "older")
    player.tell("make", "connection", "tcp", OLDER, [SO_REUSEADDR])
    player.tell("connect", "connection", *listening.getsockname())
    return player, [listening.accept()[0], listening]


def forged_older(stage: Stage) -> Judge:
    """The connection has sent nothing since the capture began."""
    player, (connection, listening) = stage.early[OLDER_NAME]
    owners = player.tell("identify")
    forge(stage, (OLDER, listening.getsockname()[1]), SYN)
    say(connection, b"to the older one")
    player.tell("close", "connection")
    connection.close()
    listening.close()
    player.end()
    return received((b"to the older one", owners))


def forged_unaccepted(flags: int) -> Callable[[Stage], Judge]:
    """Nobody has accepted the connection yet."""

    def play(stage: Stage) -> Judge:
        server, owners = actor(stage, "server")
        server.tell("make", "listener", "tcp", FORGED, [SO_REUSEADDR])
        server.tell("listen", "listener")
        with connect(stage.far, stage.wire.near.ipv4, FORGED) as connection:
            forge(stage, (FORGED, connection.getsockname()[1]), flags)
            say(connection, b"not accepted")
            server.tell("accept", "listener", "connection")
            server.tell("receive", "connection", SENDS * 12)
            server.tell("close", "connection")
        server.end()
        return received((b"not accepted", owners))

    return play


def at_pairs(*owners: list[Label]) -> Judge:
    """Judge what arrives by the interface."""
    macs = [bytes.fromhex(mac.replace(":", "")) for mac in PAIRS.values()]

    def right(frame: Frame) -> Right:
        if frame.is_sent or b"twin" not in frame.data:
            return None
        return owners[macs.index(frame.data[6:12])]

    return right


def stream_twins(*, both: bool) -> Callable[[Stage], Judge]:
    """Two connections with the same addresses and ports; without `both`, only the first is bound to its interface."""

    def play(stage: Stage) -> Judge:
        owners, accepted = [], []
        with pairs(stage) as places:
            for number, (place, device) in enumerate(zip(places, PAIRS, strict=True)):
                player, who = actor(stage, f"twin-{number}")
                is_bound = both or not number
                if not is_bound:
                    stage.near.ip(f"route replace {PAIR_THERE}/32 dev {device} src {PAIR_HERE}")
                player.tell("make", "twin", "tcp", TWIN, [SO_REUSEADDR], device if is_bound else "")
                with listener(place, PAIR_THERE, PEER) as listening:
                    player.tell("connect", "twin", PAIR_THERE, PEER)
                    accepted.append(listening.accept()[0])
                owners.append(who)
            for connection in accepted:
                say(connection, b"twin")
            for there in (stage.near, *places):
                run(there, "ss", "-K", f"( sport = :{TWIN} or dport = :{TWIN} )")
            for connection in accepted:
                connection.close()
        return at_pairs(*owners)

    return play


def datagram_twins(stage: Stage) -> Judge:
    """One port, and a socket on each of two interfaces; only the second one has sent."""
    with pairs(stage) as places, contextlib.ExitStack() as stack:
        players = [actor(stage, f"twin-{number}") for number in range(2)]
        for (player, _), device in zip(players, PAIRS, strict=True):
            player.tell("make", "twin", "udp", TWIN, [SO_REUSEADDR], device)
        senders = [stack.enter_context(udp_socket(place, PAIR_THERE, PEER)) for place in places]
        players[1][0].tell("send_to", "twin", PAIR_THERE, PEER, 1)
        for sender in senders:
            for _ in range(SENDS):
                sender.sendto(b"twin", (PAIR_HERE, TWIN))
        for player, _ in players:
            player.tell("receive", "twin", SENDS)
            player.end()
    return at_pairs(*(who for _, who in players))


def another_peer(stage: Stage) -> Judge:
    """A client connects its socket to another peer, at the same port: what the first one sends is for nobody."""
    near, far = stage.wire.near.ipv4, stage.wire.far.ipv4
    with udp_socket(stage.far, far) as first, udp_socket(stage.far, far) as second:
        client, owners = actor(stage, "client")
        client.tell("make", "socket", "udp", AGAIN, [SO_REUSEADDR])
        for peer, content in ((first, b"of the first peer"), (second, b"of the second peer")):
            client.tell("connect", "socket", *peer.getsockname())
            client.tell("send", "socket", 1)
            peer.sendto(content, (near, AGAIN))
            client.tell("receive", "socket", 1)
        with stage.watch() as wait_for:
            for _ in range(SENDS):
                first.sendto(b"for nobody", (near, AGAIN))
            wait_for(lambda frame: not frame.is_sent and b"for nobody" in frame.data, SENDS)
        client.end()
    return received((b"for nobody", []), (b" peer", owners))


def encapsulated(stage: Stage) -> Judge:
    """The kernel takes what is encrypted from the socket of the key daemon; it can be for anybody."""
    near, far = stage.wire.near.ipv4, stage.wire.far.ipv4
    with udp_socket(stage.far, far) as peer:
        daemon, _ = actor(stage, "charon")
        daemon.tell("make", "socket", "udp", ENCAPSULATED, [ENCAPSULATES])
        daemon.tell("send_to", "socket", *peer.getsockname(), 1)
        with stage.watch() as wait_for:
            for _ in range(SENDS):
                peer.sendto(b"\0\0\0\5encrypted", (near, ENCAPSULATED))
            wait_for(lambda frame: not frame.is_sent and b"encrypted" in frame.data, SENDS)
        daemon.end()
    return received((b"encrypted", []))


def not_member(options: list[list[int]], source: str) -> Callable[[Stage], Judge]:
    """The socket has the port, but does not get what another process has joined the group for."""

    def play(stage: Stage) -> Judge:
        near, far = stage.wire.near.ipv4, stage.wire.far.ipv4
        outsider, _ = actor(stage, "outsider")
        outsider.tell("make", "socket", "udp", OUTSIDE, options)
        outsider.tell("send_to", "socket", far, DISCARD_PORT, 1)  # it is known
        if source:
            outsider.tell("join", "socket", GROUP, near, source)
        member, owners = actor(stage, "member")
        member.tell("make", "socket", "udp", INSIDE, [])
        member.tell("join", "socket", GROUP, near, "")
        with udp_socket(stage.far, far) as sender:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(far))
            for _ in range(SENDS):
                sender.sendto(b"for nobody", (GROUP, OUTSIDE))
                sender.sendto(b"for the member", (GROUP, INSIDE))
        member.tell("receive", "socket", SENDS)
        member.end()
        outsider.end()
        return received((b"for nobody", []), (b"for the member", owners))

    return play


def member_of_many(stage: Stage) -> Judge:
    """The socket has joined as many groups as the kernel allows; the one of the datagrams first, so it is the last of
    its list.
    """
    near, far = stage.wire.near.ipv4, stage.wire.far.ipv4
    member, owners = actor(stage, "member")
    member.tell("make", "socket", "udp", INSIDE, [])
    member.tell("send_to", "socket", far, DISCARD_PORT, 1)  # it is known
    for number in range(GROUPS_MAX):
        member.tell("join", "socket", f"239.67.3.{number}", near, "")
    with udp_socket(stage.far, far) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(far))
        for _ in range(SENDS):
            sender.sendto(b"for the member", ("239.67.3.0", INSIDE))
    member.tell("receive", "socket", SENDS)
    member.end()
    return received((b"for the member", owners))


def made_again(stage: Stage) -> Judge:
    """CRIU ends a connection of one process, and makes it again for another, without a packet."""
    near, far = stage.wire.near.ipv4, stage.wire.far.ipv4
    with listener(stage.far, far) as listening:
        to = listening.getsockname()
        before, first = actor(stage, "before")
        before.tell("make", "connection", "tcp", MADE_AGAIN, [SO_REUSEADDR], "", near)
        before.tell("connect", "connection", *to)
        connection, _ = listening.accept()
        connection.sendall(b"to the first")
        before.tell("receive", "connection", 12)
        before.tell("leave", "connection", str(stage.directory / "numbers"))
        after, second = actor(stage, "restored")
        after.tell("make", "connection", "tcp", MADE_AGAIN, [SO_REUSEADDR], "", near)
        after.tell("take", "connection", *to, str(stage.directory / "numbers"))
        say(connection, b"to the second")
        after.tell("receive", "connection", 13 * SENDS)
        for place in (stage.near, stage.far):
            run(place, "ss", "-K", f"( sport = :{MADE_AGAIN} or dport = :{MADE_AGAIN} )")
        connection.close()
        for player in (before, after):
            player.end()
    return received((b"to the first", first), (b"to the second", second))


def moved_request(stage: Stage) -> Judge:
    """A listener ends while clients connect: their last ACK, with data, is for the other one of its port."""
    near, far = stage.wire.near, stage.wire.far
    stage.near.sysctl(ipv4__tcp_migrate_req="1")
    stage.near.ip(f"neighbour replace {ELSEWHERE} lladdr {far.mac} nud permanent dev {near.device}")
    players = [actor(stage, name) for name in ("ends", "inherits")]
    for player, _ in players:
        player.tell("make", "listener", "tcp", MOVED, [SO_REUSEPORT])
        player.tell("listen", "listener")
    ends = bytes.fromhex((near.mac + far.mac).replace(":", "")) + b"\x08\x00"
    with stage.far.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x800)) as tap:
        tap.bind((far.device, 0x800))
        tap.settimeout(DEADLINE_S)
        numbers: dict[int, int] = {}

        def send(port: int, flags: int, content: bytes = b"") -> None:
            number = (101, numbers[port] + 1) if port in numbers else (100, 0)
            tap.send(ends + tcp_segment((ELSEWHERE, near.ipv4), (port, MOVED), number, flags, content))

        for port in range(3001, 3001 + SENDS):
            send(port, SYN)
        while len(numbers) < SENDS:
            frame = Frame(tap.recv(2048), 1, is_sent=False)
            if frame.ports[0] == MOVED and frame.tcp_flags == SYN | ACK:
                numbers[frame.ports[1]] = struct.unpack_from("!I", frame.data, 38)[0]
        players[0][0].tell("close", "listener")
        for port in numbers:
            send(port, ACK, b"moved")
        for port in numbers:
            players[1][0].tell("accept", "listener", str(port))
    run(stage.near, "ss", "-K", f"sport = :{MOVED}")
    for player, _ in players:
        player.end()
    return received((b"moved", players[1][1]))


def stolen_answer(begin: str, end: str) -> Callable[[Stage], Judge]:
    """A process of the host has sent, but rules give the answer to a container, which has the same address."""

    def play(stage: Stage) -> Judge:
        near, far, there = stage.wire.near, stage.wire.far, container(stage)
        there.ip(f"link set eth0 address {near.mac}", f"address add {near.ipv4}/32 dev eth0")
        loser, _ = actor(stage, "loser")
        winner, owners = actor(stage, "winner", there)
        for player in (loser, winner):
            player.tell("make", "socket", "udp", STOLEN, [])
        with udp_socket(stage.far, far.ipv4) as peer:
            loser.tell("send_to", "socket", *peer.getsockname(), 1)
            peer.recv(2048)
            run(stage.near, "sh", "-ec", begin)
            for _ in range(SENDS):
                peer.sendto(b"stolen", (near.ipv4, STOLEN))
            winner.tell("receive", "socket", SENDS)
        run(stage.near, "sh", "-ec", end)
        there.ip(f"address del {near.ipv4}/32 dev eth0", f"link set eth0 address {CONTAINERS[0][2]}")
        for player in (loser, winner):
            player.end()

        return received((b"stolen", owners))

    return play


BY_TC = (
    "tc qdisc add dev near0 clsact; tc filter add dev near0 ingress protocol ip u32 match ip protocol 17 0xff "
    f"match ip dport {STOLEN} 0xffff action mirred egress redirect dev {PORTS[0]}"
)
BY_NFT = (
    "nft 'table netdev moving { chain moves { type filter hook ingress device near0 priority 0; "
    f"udp dport {STOLEN} fwd to {PORTS[0]}; }}; }}'"
)
TWICE = "TCP, two connections with the same addresses and ports"
SCENARIOS = [
    Scenario(OLDER_NAME, forged_older, early=start_older),
    Scenario("TCP not accepted yet, another process forges a SYN", forged_unaccepted(SYN), 1, SENDS),
    Scenario("TCP, two processes forge a SYN, one after the other", forged_twice, SENDS, SENDS),
    Scenario(f"{TWICE}, one is bound to no interface", stream_twins(both=False), 2, SENDS * 4),
    Scenario("received UDP at the socket of a key daemon (UDP_ENCAP)", encapsulated, SENDS, SENDS),
    Scenario("received multicast without IP_MULTICAST_ALL", not_member([NOT_ALL_GROUPS], ""), SENDS * 2, SENDS),
    Scenario("received multicast of another source", not_member([], ELSEWHERE), SENDS * 2, SENDS),
    Scenario("received multicast, member of 20 groups", member_of_many, SENDS),
    Scenario("TCP connection made again (TCP_REPAIR)", made_again, 3),
    Scenario("TCP request moved to another listener", moved_request, SENDS, SENDS),
]
HOST = "on a host that translates"
TRANSLATED = [
    Scenario(f"TCP not accepted yet, another process forges a SYN, {HOST}", forged_unaccepted(SYN), 1, SENDS),
    Scenario(f"TCP not accepted yet, another process forges an ACK, {HOST}", forged_unaccepted(ACK), 1, SENDS),
    Scenario(f"{TWICE}, {HOST}", stream_twins(both=True), 2, SENDS * 2),
    Scenario(f"UDP sockets of two interfaces, {HOST}", datagram_twins, SENDS * 2, SENDS),
    Scenario(f"UDP socket connected to another peer, {HOST}", another_peer, SENDS + 2, SENDS),
    Scenario(f"received UDP at the socket of a key daemon (UDP_ENCAP), {HOST}", encapsulated, SENDS, SENDS),
    Scenario(f"TCP connection made again (TCP_REPAIR), {HOST}", made_again, 3, SENDS),
    Scenario(
        "answer given to a container by tc", stolen_answer(BY_TC, "tc qdisc del dev near0 clsact"), SENDS * 2, SENDS
    ),
    Scenario(
        "answer given to a container by nftables",
        stolen_answer(BY_NFT, "nft delete table netdev moving"),
        SENDS * 2,
        SENDS,
    ),
]
