"""What the service manager is told, on a socket as systemd gives it; and when the watchdog is fed."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from skbcapd.daemon.notify import Notifier


class Manager:
    """A service manager with a watchdog of 28 seconds, and a clock."""

    def __init__(self, **environment: str) -> None:
        self.said: list[str] = []
        self.now = 100.0
        variables = {"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "28000000", **environment}
        self.notifier = Notifier(variables, self.said.append, lambda: self.now)


def test_messages_reach_the_socket(tmp_path: Path) -> None:
    """Through systemd's own library, ready, reloading and status arrive as sd_notify(3) spells them."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        before = os.environ.get("NOTIFY_SOCKET")
        os.environ["NOTIFY_SOCKET"] = address
        try:
            notifier = Notifier()
            notifier.status("7 packets\x1b\n")
            notifier.status("7 packets\x1b\n")
            notifier.reloading()
            notifier.ready()
        finally:
            del os.environ["NOTIFY_SOCKET"]
            if before is not None:
                os.environ["NOTIFY_SOCKET"] = before
        said = [manager.recv(1000).decode() for _ in range(3)]
    assert said[0] == "STATUS=7 packets\\x1b\\n"
    assert said[1].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert said[2] == "READY=1"


def test_a_manager_that_has_gone_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens any more at the socket, what is said is lost, and nothing fails."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = Notifier()
    notifier.ready()
    notifier.status("x")


def test_without_a_manager_nothing_is_said() -> None:
    """Outside systemd nobody listens, and nothing fails."""
    notifier = Notifier({})
    assert not notifier.is_listening
    notifier.ready()
    notifier.status("x")
    notifier.feed()


def test_the_watchdog_is_fed_four_times_in_its_timeout() -> None:
    """Turns of the loop in between feed nothing."""
    manager = Manager()
    for _ in range(29):
        manager.notifier.feed()
        manager.now += 1
    assert manager.said == ["WATCHDOG=1"] * 5


@pytest.mark.parametrize(
    "environment", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-1"}]
)
def test_no_watchdog_of_ours(environment: dict[str, str]) -> None:
    """Where there is no watchdog, or it is another process's, nothing is fed."""
    manager = Manager(**environment)
    manager.notifier.feed()
    assert not manager.said
