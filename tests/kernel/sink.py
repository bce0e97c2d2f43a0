"""The far end of a wire: whatever is sent there is taken, so that the kernel answers nothing of its own.

A namespace goes in; UDP sockets stand on some ports (unread: what does not fit is dropped in silence), and a TCP
listener reads each connection to its end and then closes it, so that a sender knows when all is over.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from tests.kernel.namespace import Namespace

DISCARD_PORT = 9
NTP_PORT = 123
TCP_PORT = 5001


class Sink:
    """Open ports in a namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._datagrams = [namespace.do(_bound, socket.SOCK_DGRAM, port) for port in (DISCARD_PORT, NTP_PORT)]
        self._listener = namespace.do(_bound, socket.SOCK_STREAM, TCP_PORT)
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close every port."""
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread out of accept
        self._thread.join()
        for opened in (*self._datagrams, self._listener):
            opened.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionResetError):
                while connection.recv(1 << 20):
                    pass


def _bound(kind: socket.SocketKind, port: int) -> socket.socket:
    """Give a socket bound to a port of every address, IPv4 and IPv6."""
    opened = socket.socket(socket.AF_INET6, kind)
    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    opened.bind(("::", port))
    return opened
