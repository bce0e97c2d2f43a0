"""Messages to the service manager: ready, status, watchdog.

In: states. Out: messages on the socket in NOTIFY_SOCKET; nothing without that variable.

The rule: only the drain loop feeds the watchdog, and it never waits for a disk. While a disk is
slow, the daemon works, and its packets are in memory or counted as dropped. A restart would discard
them.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping

from skbcapd import clocks
from skbcapd.text_safety import escaped


class Notifier:
    """Sends messages to the service manager.

    Args:
        environment: variables as systemd sets them.
        send: sends one message; default: that of systemd-python.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        send: Callable[[str], object] | None = None,
    ) -> None:
        self.is_listening = "NOTIFY_SOCKET" in environment
        self._send = send or (_systemd() if self.is_listening else lambda _: None)
        self._status = ""
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        timeout = environment.get("WATCHDOG_USEC", "") if is_ours else ""
        self._has_watchdog = timeout.isdecimal() and int(timeout) > 0

    def ready(self) -> None:
        """Packets are captured; also called after reloading()."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The settings are being read again; ready() must follow."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={clocks.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """Set the line for `systemctl status`; sent only if it has changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={escaped(text)}")

    def feed(self) -> None:
        """Feed the watchdog; called once a second by the drain loop."""
        if self._has_watchdog:
            self._send("WATCHDOG=1")


def _systemd() -> Callable[[str], object]:
    from systemd.daemon import notify  # noqa: PLC0415  of use to a service only

    def send(message: str) -> None:
        with contextlib.suppress(OSError):  # the service manager does not listen any more, which must not end a capture
            notify(message)

    return send
