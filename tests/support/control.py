"""The other end of a control socket, with the answers of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from tests.support.deadline import DEADLINE_S


class Daemon:
    """Something that listens, takes a line and answers as the test says, as often as it says.

    Args:
        path: where.
        answers: one for each connection.
    """

    def __init__(self, path: Path, *answers: bytes) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen()
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, args=answers)
        self._thread.start()

    def _serve(self, *answers: bytes) -> None:
        for answer in answers:
            with self._socket.accept()[0] as client:
                client.settimeout(DEADLINE_S)
                self.requests.append(client.recv(4096))
                with contextlib.suppress(OSError):  # the client has closed the connection
                    client.sendall(answer)
        self._socket.close()

    def end(self) -> None:
        """All answers are sent."""
        self._thread.join(DEADLINE_S)
