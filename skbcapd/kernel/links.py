"""Interfaces above others (VLAN, bond, team, macvlan, ipvlan), from rtnetlink(7).

In: network namespaces. Out: their interfaces of these kinds, each with a packet socket for its tap
(taps.py).

The rule: a namespace is entered by a thread of its own, which ends then.

Source: rtnl_fill_ifinfo in net/core/rtnetlink.c; include/uapi/linux/if_link.h. The kinds are those whose
frames arrive by RX_HANDLER_ANOTHER or vlan_do_receive in __netif_receive_skb_core, net/core/dev.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from skbcapd.child import is_readable
from skbcapd.kernel.packet_socket import PacketSocket
from skbcapd.kernel.taps import TAPS_MAX, Upper
from skbcapd.worker import start_thread

KINDS = frozenset({b"vlan", b"bond", b"team", b"macvlan", b"macvtap", b"ipvlan", b"ipvtap"})
OWN = Path("/proc/thread-self/ns/net")
_CLONE_NEWNET = 0x40000000
_NETLINK_ROUTE, _GROUP_LINK = 0, 1
_RTM_NEWLINK, _RTM_GETLINK, _NLM_REQUEST_DUMP = 16, 18, 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND, _TYPE = 3, 18, 1, 0x3FFF
_HEADER, _LINK, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxHiII"), struct.Struct("=HH")

Wants = Callable[[int, int, str], bool]
"""Whether an interface is to have a tap: inode number of its namespace, ifindex, name."""


class Changes:
    """Whether interfaces of the present network namespace have changed; never, if the kernel refuses the socket."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        with contextlib.suppress(OSError):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
            self._socket.bind((0, _GROUP_LINK))

    def fileno(self) -> int:
        """Readable when they have changed; -1: they cannot be watched."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def are_there(self) -> bool:
        """Whether `take` has something to take."""
        return self._socket is not None and is_readable(self._socket)

    def take(self) -> bool:
        """Whether they have since the last call."""
        is_changed = False
        if self._socket is None:
            return False
        for _ in range(1000):  # the rest is for the next call
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:  # there were more than it could store
                return True
            is_changed = True
        return is_changed

    def close(self) -> None:
        """Release the socket."""
        if self._socket is not None:
            self._socket.close()


def uppers(paths: Iterable[Path], wants: Wants) -> list[Upper]:
    """The interfaces above others in some network namespaces. Left out: namespaces that cannot be entered.

    Args:
        paths: files of the namespaces.
        wants: for which of them a socket is opened.
    """
    found: list[Upper] = []
    with contextlib.suppress(RuntimeError):  # the system has no thread left
        for path in paths:
            start_thread(_read_namespace, path, wants, found).join()
    return found


def _read_namespace(path: Path, wants: Wants, found: list[Upper]) -> None:
    with contextlib.suppress(OSError):
        with path.open("rb") as there:
            inode = os.fstat(there.fileno()).st_ino
            is_here = inode == OWN.stat().st_ino
            if not is_here and ctypes.CDLL(None, use_errno=True).setns(there.fileno(), _CLONE_NEWNET):
                return
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as route:
            links = [link for link in _links(route) if wants(inode, *link)]
        for ifindex, name in links[: TAPS_MAX - len(found)]:
            found.append(Upper(inode, ifindex, name, _packet_socket()))


def _packet_socket() -> PacketSocket | str:
    """A packet socket of the thread's namespace, or why there is none."""
    if "PREEMPT_RT" in os.uname().version:
        return "with PREEMPT_RT, another task could use the memory of the program before it has ended"
    try:
        return PacketSocket()
    except PermissionError as error:
        return f"no packet socket: {error.strerror}; expected CAP_NET_RAW (docs/limitations.md)"
    except OSError as error:
        return f"no packet socket: {error.strerror}"


def _links(route: socket.socket) -> Iterator[tuple[int, str]]:
    """The number and the name of each interface above another one."""
    header = _HEADER.pack(_HEADER.size + _LINK.size, _RTM_GETLINK, _NLM_REQUEST_DUMP, 0, 0)
    route.send(header + _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
    while True:  # ends with the dump: the kernel has all of it, but can wait for its lock (rtnl) for seconds
        data, at = route.recv(1 << 18), 0
        while at + _HEADER.size <= len(data):
            length, kind, *_ = _HEADER.unpack_from(data, at)
            if kind in {_NLMSG_DONE, _NLMSG_ERROR} or length < _HEADER.size:
                return
            if kind == _RTM_NEWLINK and (link := read_link(data[at + _HEADER.size : at + length])):
                yield link
            at += length + -length % 4


def read_link(message: bytes) -> tuple[int, str] | None:
    """The number and the name of an interface, if it is above another one; otherwise None.

    Args:
        message: a struct ifinfomsg and its attributes.
    """
    ifindex = _LINK.unpack_from(message)[2]
    attributes = dict(_attributes(message[_LINK.size :]))
    kind = dict(_attributes(attributes.get(_IFLA_LINKINFO, b""))).get(_IFLA_INFO_KIND, b"")
    if kind.rstrip(b"\0") not in KINDS:
        return None
    return ifindex, os.fsdecode(attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0"))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE, data[at + _ATTRIBUTE.size : at + length]
        at += length + -length % 4
