"""The IPv4 netmask that `ip broadcast` in a packet filter uses.

In: the interfaces that are captured. Out: their netmask, if it is known and the same for all.

Source: pcap_compile(3PCAP); SIOCGIFNETMASK in netdevice(7).
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Sequence

UNKNOWN = 0
"""The value that tcpdump passes to libpcap: `ip broadcast` means 255.255.255.255 and 0.0.0.0."""

_SIOCGIFNETMASK = 0x891B


def netmask_of(interfaces: Sequence[str], namespaces: Sequence[str] = ()) -> int:
    """The common netmask of interfaces in our own network namespace.

    Args:
        interfaces: names or globs from the settings.
        namespaces: their network namespaces; empty: our own.

    Returns:
        The netmask, in the byte order of the machine; UNKNOWN if they differ, or if one is not
        known.
    """
    if not set(namespaces) <= {"self"}:
        return UNKNOWN
    masks = {_netmask(name) for name in interfaces}
    return masks.pop() if len(masks) == 1 else UNKNOWN


def _netmask(name: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            request = struct.pack("16s24x", name.encode())
            return int.from_bytes(fcntl.ioctl(sock, _SIOCGIFNETMASK, request)[20:24], "big")
        except OSError:  # no such interface, or it has no address
            return UNKNOWN
