"""Messages to the service manager: ready, status, watchdog.

In: states. Out: messages on the socket in NOTIFY_SOCKET; nothing without that variable.

The rules: only the drain loop feeds the watchdog, and it never waits for a disk. While a disk is
slow, the daemon works, and its packets are in memory or counted as dropped. A restart would discard
them. Nor does it wait for a service manager that does not read, as the library of systemd would do:
the state is sent again a second later.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

from skbcapd import clocks
from skbcapd.text_safety import escaped

_SHORT_S = 15.0  # a watchdog with less time is fed each second, others with each tick, which are up to 5 s apart


class Notifier:
    """Sends messages to the service manager.

    Args:
        environment: variables as systemd sets them.
        send: sends one message, and returns whether it was accepted; default: to the socket in `environment`.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        send: Callable[[str], bool] | None = None,
    ) -> None:
        self.is_listening = "NOTIFY_SOCKET" in environment
        self._send = send or (_sender(environment["NOTIFY_SOCKET"]) if self.is_listening else lambda _: True)
        self._status = self._late = ""  # what was sent, what is still to be sent
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        timeout = environment.get("WATCHDOG_USEC", "") if is_ours else ""
        self._watchdog_s = int(timeout) / 1e6 if timeout.isdecimal() else 0.0

    def ready(self) -> None:
        """Packets are captured; also called after reloading()."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The settings are being read again; ready() must follow."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={clocks.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """Set the line for `systemctl status`; sent only if it has changed."""
        if text != self._status and self._send(f"STATUS={escaped(text)}"):
            self._status = text

    def feed(self) -> bool:
        """Feed the watchdog. Returns whether it must be called again in a second."""
        if self._late:
            self._tell(self._late)
        if self._watchdog_s:
            self._send("WATCHDOG=1")
        return bool(self._late) or 0 < self._watchdog_s < _SHORT_S

    def _tell(self, state: str) -> None:
        self._late = "" if self._send(state) else state


def _sender(address: str) -> Callable[[str], bool]:
    """Return a function that sends to a socket, and never waits. An abstract socket has an @ in front."""
    name = f"\0{address[1:]}" if address.startswith("@") else address

    def send(message: str) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)  # noqa: FBT003  the name of the method says what is false
                sock.sendto(message.encode(), name)
        except BlockingIOError:  # it is full
            return False
        except OSError:  # the service manager does not listen any more, which must not end a capture
            return True
        return True

    return send
