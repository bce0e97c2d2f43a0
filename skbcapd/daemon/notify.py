"""Messages to the service manager: ready, status, watchdog.

In: states. Out: messages on the socket in NOTIFY_SOCKET; nothing without that variable.

The rules: only the drain loop feeds the watchdog, whatever the disk does: a daemon that waits for a
slow disk works, and its packets are in memory or counted as dropped. A restart would throw them
away. And a service manager that does not read is not waited for, as the library of systemd would
do: the state is sent again a second later.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

from skbcapd import clocks
from skbcapd.text_safety import escaped


class Notifier:
    """The service manager.

    Args:
        environment: variables as systemd sets them.
        send: takes one message; whether it was taken. The socket in `environment` unless given.
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
        self._has_watchdog = timeout.isdecimal() and int(timeout) > 0

    def ready(self) -> None:
        """Packets are captured; also after reloading()."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """The settings are being read anew; ready() must follow."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={clocks.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent only when it changes."""
        if text != self._status and self._send(f"STATUS={escaped(text)}"):
            self._status = text

    def feed(self) -> None:
        """Feed the watchdog; called once a second by the drain loop."""
        if self._late:
            self._tell(self._late)
        if self._has_watchdog:
            self._send("WATCHDOG=1")

    def _tell(self, state: str) -> None:
        self._late = "" if self._send(state) else state


def _sender(address: str) -> Callable[[str], bool]:
    """What sends to a socket, in the file system or abstract (with an @), and never waits."""
    name = f"\0{address[1:]}" if address.startswith("@") else address

    def send(message: str) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)  # noqa: FBT003  the name of the method says what is false
                sock.sendto(message.encode(), name)
        except BlockingIOError:  # it is full
            return False
        except OSError:  # who listened has gone: that is no reason to end a capture
            return True
        return True

    return send
