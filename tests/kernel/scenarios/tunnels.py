"""Tunnels of a host with containers (passing.py) whose outer packets are IP only: GRE, IPIP, SIT."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from tests.kernel.scenarios.modules import masqueraded
from tests.kernel.scenarios.passing import SENDS, nft, whose
from tests.kernel.sink import TCP_PORT
from tests.kernel.stage import Scenario, Stage
from tests.kernel.verdict import Frame, Judge, Right

HERE, THERE = 1, 2
NETS = {"gre": "10.75.0.", "ipip": "10.76.0.", "sit": "fd77::"}
DEVICES = tuple(f"{kind}7*" for kind in NETS)  # made later
OUTER_BYTES = {47: 14 + 20 + 4, 4: 14 + 20, 41: 14 + 20}  # before the inner header, by the protocol of the outer one
RAW_IP = 101
RULES = """
table {family} tunnels {{
 chain post {{
  type nat hook postrouting priority 100
  oifname "{device}" {family} saddr {containers} masquerade
 }}
}}
"""


def tunnel(kind: str) -> Callable[[Stage], contextlib.AbstractContextManager[None]]:
    """A tunnel to the far end, and a host that translates for it."""

    @contextlib.contextmanager
    def made(stage: Stage) -> Iterator[None]:
        near, far, net, device = stage.wire.near, stage.wire.far, NETS[kind], f"{kind}7"
        family, containers, bits = ("ip6", "fd30::/64", 64) if ":" in net else ("ip", "172.30.0.0/24", 24)
        for one, other, number in ((near, far, HERE), (far, near, THERE)):
            one.namespace.ip(
                f"link add {device} type {kind} local {one.ipv4} remote {other.ipv4}",
                f"link set {device} addrgenmode none up",
                f"address add {net}{number}/{bits} dev {device} {'nodad' if bits == 64 else ''}",
            )
        nft(stage.near, RULES.format(family=family, device=device, containers=containers))
        try:
            yield
        finally:
            nft(stage.near, f"delete table {family} tunnels\n")
            for one in (near, far):
                one.namespace.ip(f"link del {device}")

    return made


def with_outer(play: Callable[[Stage], Judge]) -> Callable[[Stage], Judge]:
    """Judge outer packets as the inner ones if they are sent; received, they can be for any process."""

    def under(stage: Stage) -> Judge:
        inner = play(stage)

        def right(frame: Frame) -> Right:
            before = OUTER_BYTES.get(frame.protocol)
            if before is None:
                return inner(frame)
            found = inner(Frame(frame.data[before:], RAW_IP, frame.is_sent))
            return found if found is None or frame.is_sent else "unknown"

        return right

    return under


def container_client(kind: str) -> Callable[[Stage], Judge]:
    """Connections of a container."""
    return with_outer(masqueraded(f"{NETS[kind]}{THERE}", tunnel(kind)))


def host_client(kind: str) -> Callable[[Stage], Judge]:
    """Connections of a process of the host."""

    def play(stage: Stage) -> Judge:
        with tunnel(kind)(stage):
            words = ("--to", f"{NETS[kind]}{THERE}", "--port", TCP_PORT, "--count", SENDS)
            return whose(*stage.play("tcp", "connects", *words))

    return with_outer(play)


SCENARIOS = [
    Scenario(
        f"{kind.upper()}, {name}",
        client(kind),
        SENDS * least,
        SENDS * 3,
        vm=True,
        needs=f"upper0 type {kind} remote 10.0.0.1",
    )
    for kind in NETS
    for name, client, least in (("a container", container_client, 20), ("the host", host_client, 10))
]
