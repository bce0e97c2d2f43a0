"""Packet sockets, packet(7): one for each tap (taps.py).

In: an interface, a program. Out: the kernel runs the program for each packet that arrives on the interface.

The rule: interfaces are known by their numbers. Python's own bind and getsockname take and return names, which
another interface can have by then, and only those in UTF-8.

Source: packet_rcv, packet_notifier and packet_release in net/packet/af_packet.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from skbcapd.worker import start_thread

_SOL_PACKET, _PACKET_IGNORE_OUTGOING = 263, 23
_SO_ATTACH_FILTER, _SO_ATTACH_BPF = 26, 50
_ETH_P_ALL = 3
_ADDRESS = struct.Struct("=H2siHBB8x")  # struct sockaddr_ll
_RETURN_0 = struct.pack("=HBBI", 0x06, 0, 0, 0)  # struct sock_filter: BPF_RET | BPF_K
_CLOSERS = 32  # threads
_LIBRARY = ctypes.CDLL(None, use_errno=True)


class PacketSocket:
    """A packet socket of the thread's network namespace, which is not bound yet.

    Raises:
        OSError: the kernel refuses it.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)

    def listen(self, ifindex: int, program: int) -> None:
        """Bind it to an interface, with a program as filter; what is sent there does not count.

        Args:
            ifindex: number of the interface.
            program: descriptor of the program.

        Raises:
            OSError: the kernel refuses it; ENODEV: there is no such interface.
        """
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program)
        address = _ADDRESS.pack(socket.AF_PACKET, _ETH_P_ALL.to_bytes(2, "big"), ifindex, 0, 0, 0)
        if _LIBRARY.bind(self._socket.fileno(), address, len(address)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def is_over(self) -> bool:
        """Whether its interface was removed, or is in another namespace now."""
        address = ctypes.create_string_buffer(_ADDRESS.size)
        size = ctypes.c_uint(_ADDRESS.size)
        if _LIBRARY.getsockname(self._socket.fileno(), address, ctypes.byref(size)):
            return True
        return int(_ADDRESS.unpack(address.raw)[2]) <= 0

    def stop(self) -> None:
        """From now on, a filter that does nothing."""
        code = ctypes.create_string_buffer(_RETURN_0, len(_RETURN_0))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(code)))

    def close(self) -> None:
        """Release it. The kernel waits for a grace period of RCU: some 10 ms."""
        self._socket.close()


def close_all(sockets: Collection[PacketSocket]) -> None:
    """Close sockets, many at once."""
    with contextlib.suppress(RuntimeError), ThreadPoolExecutor(_CLOSERS) as threads:  # the system has no thread left
        list(threads.map(lambda each: each.close(), sockets))
    for each in sockets:
        each.close()


def close_later(sockets: Collection[PacketSocket]) -> None:
    """Close sockets in a thread. If the system has none left, do it now."""
    if not sockets:
        return
    try:
        start_thread(close_all, sockets)
    except RuntimeError:
        close_all(sockets)
