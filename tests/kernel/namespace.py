"""Network namespaces of the tests, joined by veth pairs.

In goes nothing but a wish for two ends of a wire; out come two namespaces whose devices carry no
frame that a test did not ask for: neighbours are permanent; there is no link-local address, no
duplicate address detection, no late multicast report. Names are unique to this process and removed
by exact name. Each namespace owns one thread that has moved into it: sockets made and children
started by that thread belong to the namespace, while this process stays where it is. That is
cheaper than `ip netns exec` and leaves /sys and its tracefs mounted.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from tests.support.deadline import DEADLINE_S, until

CLONE_NEWNET = 0x40000000
_RESERVED_PORTS = "40000-40999,51207,51820"  # of the tests: no other socket gets one of them by chance

P = ParamSpec("P")
T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


class Namespace:
    """One named network namespace, and a thread of this process inside of it."""

    def __init__(self) -> None:
        self.name = f"skbcapd-{os.getpid()}-{next(_numbers)}"
        self.path = Path("/run/netns") / self.name
        _ip("netns", "add", self.name)
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=self._enter)
        self.sysctl(ipv4__ip_local_reserved_ports=_RESERVED_PORTS)

    def close(self) -> None:
        """Remove the namespace with its interfaces."""
        self._thread.shutdown()
        _ip("netns", "del", self.name)

    def do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call inside the namespace.

        Args:
            call: what to run; a child it starts, or a socket it makes, belongs to the namespace for
                good.
            *args: its arguments.
            **kwargs: its arguments by name.

        Returns:
            What the call returned.

        Raises:
            Whatever the call raised.
        """
        return self._thread.submit(call, *args, **kwargs).result(DEADLINE_S)

    def _enter(self) -> None:
        with self.path.open("rb") as there:  # Python 3.12 has os.setns
            if _libc.setns(there.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {self.path}")

    def ip(self, *lines: str) -> None:
        """Run `ip` commands inside the namespace, all in one process."""
        _ip("-n", self.name, "-batch", "-", stdin="\n".join(lines))

    def sysctl(self, **values: str) -> None:
        """Set net.* sysctls of this namespace; the name's dots are written as `__`."""
        for name, value in values.items():
            self.do(Path("/proc/sys/net", *name.split("__")).write_text, value)


@dataclass(frozen=True)
class End:
    """One end of a wire: a namespace, its interface and the addresses of the interface."""

    namespace: Namespace
    device: str
    mac: str
    ipv4: str
    ipv6: str

    def flows(self) -> bool:
        """Whether the interface has its carrier and its queue, so that no frame is dropped any
        more.
        """
        shown = _ip("-n", self.namespace.name, "-j", "link", "show", "dev", self.device)
        link = json.loads(shown)[0]
        return bool(link["operstate"] == "UP" and link["qdisc"] == "noqueue")


@dataclass(frozen=True)
class Wire:
    """A veth pair: the tests send and capture at `near`, frames arrive at `far`."""

    near: End
    far: End


@contextmanager
def wire() -> Iterator[Wire]:
    """Two namespaces joined by a veth pair, ready to carry frames, gone afterwards.

    The addresses, of both layers, are those of the frame this project grew from
    (tests/support/frames.py).
    """
    with ExitStack() as stack:
        ends = []
        for device, mac, ipv4, ipv6 in (
            ("near0", "3c:7c:3f:20:23:bd", "192.168.178.24", "fd00:b2::24"),
            ("far0", "34:31:c4:b0:6a:8b", "192.168.178.1", "fd00:b2::1"),
        ):
            namespace = Namespace()
            stack.callback(namespace.close)
            namespace.sysctl(
                ipv4__ping_group_range="0 2147483647",
                # Reports of a solicited-node group are repeated after a second: send them at once.
                ipv6__conf__default__mldv2_unsolicited_report_interval="1",
            )
            ends.append(End(namespace, device, mac, ipv4, ipv6))
        near, far = ends
        _ip(
            *f"link add {near.device} address {near.mac} netns {near.namespace.name} type veth".split(),
            *f"peer {far.device} address {far.mac} netns {far.namespace.name}".split(),
        )
        for end, other in ((near, far), (far, near)):
            end.namespace.ip(
                "link set lo up",
                f"link set {end.device} addrgenmode none up",
                f"address add {end.ipv4}/24 dev {end.device}",
                f"address add {end.ipv6}/64 dev {end.device} nodad",
                f"neighbour add {other.ipv4} lladdr {other.mac} nud permanent dev {end.device}",
                f"neighbour add {other.ipv6} lladdr {other.mac} nud permanent dev {end.device}",
            )
        for end in ends:
            until(end.flows, f"{end.device} carries frames")
        yield Wire(near, far)


def _ip(*args: str, stdin: str = "") -> str:
    done = subprocess.run(["ip", *args], input=stdin, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout
