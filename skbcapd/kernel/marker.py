"""The marker: a page of known bytes, sent as a paged frame through a private loopback interface.

In: nothing. Out: a packet in the kernel with known bytes, page frame and system call.

It has two purposes: to measure where the kernel maps its pages (program.py), and to prove at every
start that a paged frame is captured completely (capture/self_test.py). The loopback interface is in
a separate network namespace, so that no firewall, no interface that is down and no other capture
can interfere. If that namespace is not allowed (it needs CAP_SYS_ADMIN and CAP_NET_ADMIN), the
loopback interface of the current one is used, and the end of the connection appears in the capture.

Source: Documentation/admin-guide/mm/pagemap.rst; sendfile(2) on a TCP socket puts the page itself
into the skb (on a UDP socket it does so only since Linux 6.5; 6.1 copies).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import socket
import struct
from pathlib import Path

from skbcapd.errors import KernelError
from skbcapd.worker import start_thread

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_PFN_MASK = (1 << 55) - 1
_SO_NETNS_COOKIE = 71
SIZE = 32
OFFSET = 100  # offset of the bytes in their page


class Marker:
    """The page, and a connection that it is sent through.

    `net` is the cookie of its network namespace; `is_private`: nothing else uses this namespace.

    Raises:
        KernelError: there is no loopback interface.
    """

    def __init__(self) -> None:
        self.bytes = os.urandom(SIZE)
        self.net = 0
        self.is_private = False
        self._file = os.memfd_create("skbcapd-marker")
        os.ftruncate(self._file, mmap.PAGESIZE)
        self._page = mmap.mmap(self._file, mmap.PAGESIZE)
        self._page[OFFSET : OFFSET + SIZE] = self.bytes
        self._ends: tuple[socket.socket, ...] = ()  # sender, receiver; a UDP socket
        self._error: OSError | None = None
        # If a new namespace is not allowed, or its loopback cannot be set up, use the current one.
        if not any(self._try(is_private=is_private) for is_private in (True, False)):
            self.close()
            raise KernelError(f"no loopback interface for the self-test: {self._error}", "ip link set lo up")

    def _try(self, *, is_private: bool) -> bool:
        # unshare(2) applies to one thread
        start_thread(self._open, is_private).join()
        return bool(self._ends)

    def _open(self, is_private: bool) -> None:  # noqa: FBT001  a thread takes plain arguments
        if is_private and ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            return
        self.is_private = is_private
        try:
            with socket.socket() as server:
                request = struct.pack("16sh14x", b"lo", 0)
                flags = struct.unpack("16sh14x", fcntl.ioctl(server, _SIOCGIFFLAGS, request))[1]
                if not flags & _IFF_UP:
                    fcntl.ioctl(server, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
                server.bind(("127.0.0.1", 0))
                server.listen()
                sender = socket.create_connection(server.getsockname())
                receiver, _ = server.accept()
            datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            datagrams.bind(("127.0.0.1", 0))
            datagrams.connect(datagrams.getsockname())
            receiver.setblocking(False)  # noqa: FBT003  the name of the method says what is false
            self.net = int.from_bytes(sender.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
            self._ends = sender, receiver, datagrams
        except OSError as error:
            self._error = error

    def frame_number(self) -> int:
        """The frame number of the page; 0 if the kernel does not show it (CAP_SYS_ADMIN is
        missing).
        """
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._page))
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            pagemap.seek(address // mmap.PAGESIZE * 8)
            return int.from_bytes(pagemap.read(8), "little") & _PFN_MASK

    def send(self) -> None:
        """Send the bytes once, by one sendfile(2) call of this thread, and read them from the
        socket.
        """
        sender, receiver, _ = self._ends
        os.sendfile(sender.fileno(), self._file, OFFSET, SIZE)
        with contextlib.suppress(BlockingIOError):  # not delivered yet: the next call reads it
            receiver.recv(SIZE)

    def send_datagram(self) -> None:
        """Send the bytes in a datagram to ourselves: it shows the kernel program our process, and the
        table of UDP sockets.
        """
        self._ends[2].send(self.bytes)

    def is_in(self, net: int, frame: memoryview) -> bool:
        """Whether a frame is the marker, captured in its namespace, complete to the last byte."""
        return net == self.net and frame[-SIZE:] == self.bytes

    def close(self) -> None:
        """Release page, file, sockets and namespace."""
        for end in self._ends:
            end.close()
        os.close(self._file)
