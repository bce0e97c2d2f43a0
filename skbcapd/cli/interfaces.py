"""The interfaces that `skbcapd capture -D` lists.

In: the interfaces of this network namespace. Out: a line for each: name, flags, link type.

Source: netdevice(7).
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterator

from skbcapd.pcapng import link_type as links
from skbcapd.text_safety import escaped

_SIOCGIFFLAGS, _SIOCGIFHWADDR = 0x8913, 0x8927  # include/uapi/linux/sockios.h
_FLAGS = ((0x1, "Up"), (0x40, "Running"), (0x8, "Loopback"))  # include/uapi/linux/if.h
_REQUEST = struct.Struct("16sH14x")


def lines() -> Iterator[str]:
    """One line for each interface, and one for `any`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        for _, name in socket.if_nameindex():
            flags, arphrd = (_ask(control, name, which) for which in (_SIOCGIFFLAGS, _SIOCGIFHWADDR))
            if flags is None or arphrd is None:
                continue  # it is gone
            words = ", ".join(word for bit, word in _FLAGS if flags & bit)
            link = links.link_type(arphrd)
            kind = f"unknown link type (ARPHRD {arphrd}): not captured" if link is None else links.name(link)
            yield f"{escaped(name)} [{words or 'none'}], {kind}"
    yield "any (all interfaces of all network namespaces)"


def _ask(control: socket.socket, name: str, what: int) -> int | None:
    """The number in an answer of the kernel; None if there is no such interface."""
    try:
        answer = fcntl.ioctl(control, what, _REQUEST.pack(name.encode("utf-8", "surrogateescape")[:15], 0))
    except OSError:
        return None
    return int(_REQUEST.unpack(answer[: _REQUEST.size])[1])
