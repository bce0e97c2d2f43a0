"""Messages to the service manager: ready, status, watchdog.

In: states. Out: messages on the socket in NOTIFY_SOCKET; nothing without that variable.

The rule: only the drain loop feeds the watchdog, whatever the disk does: a daemon that waits for a slow disk works, and
its packets are in memory or counted as dropped. A restart would throw them away.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping

from skbcapd import clocks
from skbcapd.text_safety import escaped


class Notifier:
    """The service manager.

    Args:
        environment: variables as systemd sets them.
        send: takes one message; systemd-python's unless given.
        clock: seconds.
    """

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        send: Callable[[str], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_listening = "NOTIFY_SOCKET" in environment
        self._send = send or (_systemd() if self.is_listening else lambda _: None)
        self._clock = clock
        self._status = ""
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        timeout = environment.get("WATCHDOG_USEC", "") if is_ours else ""
        self._every_s = int(timeout) / 4e6 if timeout.isdecimal() else 0.0
        self._next_feed = clock()

    def ready(self) -> None:
        """Packets are captured; also after reloading()."""
        self._send("READY=1")

    def reloading(self) -> None:
        """The settings are being read anew; ready() must follow."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={clocks.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent only when it changes."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={escaped(text)}")

    def feed(self) -> None:
        """Called once a second by the drain loop: feed the watchdog four times in its timeout."""
        now = self._clock()
        if self._every_s and now >= self._next_feed:
            self._send("WATCHDOG=1")
            self._next_feed = now + self._every_s


def _systemd() -> Callable[[str], object]:
    from systemd.daemon import notify  # noqa: PLC0415  of use to a service only

    def send(message: str) -> None:
        with contextlib.suppress(OSError):  # who listened has gone: that is no reason to end a capture
            notify(message)

    return send
