"""A wire whose two ends are joined by this process, as an uplink joins two machines.

Nothing of a frame but its bytes comes through, so what the kernel knew of it at one end is not
known at the other. What the far end sends takes a moment: a scenario that does not wait for its
last answer fails each time, not only on a busy machine.

Two namespaces come out, each with a tap device of the same names and addresses as
`namespace.wire`'s.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.kernel.namespace import End, Namespace, Wire

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME_MAX = 1 << 17
LATENCY_S = 0.001


@contextmanager
def relayed_wire() -> Iterator[Wire]:
    """Two namespaces whose tap interfaces a thread joins, removed afterwards."""
    with ExitStack() as stack:
        near, far = (
            End(Namespace(), "near0", "3c:7c:3f:20:23:bd", "192.168.178.24", "fd00:b2::24"),
            End(Namespace(), "far0", "34:31:c4:b0:6a:8b", "192.168.178.1", "fd00:b2::1"),
        )
        taps = []
        for end, other in ((near, far), (far, near)):
            stack.callback(end.namespace.close)
            taps.append(end.namespace.do(_open, end.device))
            stack.callback(os.close, taps[-1])
            end.namespace.sysctl(ipv4__ping_group_range="0 2147483647")
            end.namespace.ip(
                "link set lo up",
                f"link set {end.device} address {end.mac} addrgenmode none up",
                f"address add {end.ipv4}/24 dev {end.device}",
                f"address add {end.ipv6}/64 dev {end.device} nodad",
                f"neighbour add {other.ipv4} lladdr {other.mac} nud permanent dev {end.device}",
                f"neighbour add {other.ipv6} lladdr {other.mac} nud permanent dev {end.device}",
            )
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        thread = threading.Thread(target=_relay, args=(*taps, reading), daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(os.close, writing)
        yield Wire(near, far)


def _open(device: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def _relay(near: int, far: int, end: int) -> None:
    """Pass each frame on until the other end of a pipe is closed."""
    to = {near: far, far: near}
    with selectors.DefaultSelector() as selector:
        for descriptor in (near, far, end):
            selector.register(descriptor, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == end:
                    return
                with contextlib.suppress(BlockingIOError):
                    while True:
                        frame = os.read(key.fd, FRAME_MAX)
                        if key.fd == far:
                            time.sleep(LATENCY_S)
                        os.write(to[key.fd], frame)
