"""Messages to the service manager, on a socket as from systemd; and the watchdog."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from skbcapd.daemon.notify import Notifier


class Manager:
    """A service manager with a watchdog of 28 seconds."""

    def __init__(self, **environment: str) -> None:
        self.said: list[str] = []
        variables = {"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "28000000", **environment}
        self.notifier = Notifier(variables, self._take)

    def _take(self, message: str) -> bool:
        self.said.append(message)
        return True


def test_messages_reach_the_socket(tmp_path: Path) -> None:
    """Ready, reloading and status have the spelling of sd_notify(3)."""
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


def test_a_manager_that_has_ended_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If nobody listens on the socket any more, messages are lost, and nothing fails."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = Notifier()
    notifier.ready()
    notifier.status("x")


@pytest.mark.parametrize("name", ["{}/notify", "@skbcapd-test-{}"])
def test_a_manager_that_does_not_read_is_not_waited_for(name: str, tmp_path: Path) -> None:
    """A stopped manager delays nothing; its last message arrives when it reads again."""
    address = name.format(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0"))
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "28000000"})
        begun = time.monotonic()
        for number in range(1009):
            notifier.feed()
            notifier.status(f"{number} packets")
        notifier.reloading()
        notifier.ready()
        notifier.status("the last one")
        assert time.monotonic() - begun < 5.0
        manager.setblocking(False)  # noqa: FBT003  the name of the method says what is false

        def said() -> list[bytes]:
            found = []
            with suppress(BlockingIOError):
                while True:
                    found.append(manager.recv(1000))
            return found

        assert b"READY=1" not in said()
        notifier.feed()
        notifier.status("the last one")
        assert said() == [b"READY=1", b"WATCHDOG=1", b"STATUS=the last one"]


def test_without_a_manager_nothing_is_sent() -> None:
    """Outside of systemd nothing is sent, and nothing fails."""
    notifier = Notifier({})
    assert not notifier.is_listening
    notifier.ready()
    notifier.status("x")
    notifier.feed()


def test_the_watchdog_is_fed_at_each_turn() -> None:
    """The loop feeds the watchdog once a second, whatever the timeout is."""
    manager = Manager()
    for _ in range(5):
        manager.notifier.feed()
    assert manager.said == ["WATCHDOG=1"] * 5


def test_a_short_watchdog_is_fed_each_second() -> None:
    """A watchdog of the unit can wait for the ticks of a quiet capture; a shorter one cannot, nor can a late state."""
    assert not Manager().notifier.feed()
    assert Manager(WATCHDOG_USEC="9000000").notifier.feed()
    assert not Manager(WATCHDOG_USEC="9000000", WATCHDOG_PID="1").notifier.feed()
    notifier = Notifier({"NOTIFY_SOCKET": "/none"}, lambda _: False)
    assert not notifier.feed()
    notifier.ready()
    assert notifier.feed()


@pytest.mark.parametrize(
    "environment", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-1"}]
)
def test_a_watchdog_of_another_process(environment: dict[str, str]) -> None:
    """Without a watchdog, or with that of another process, nothing is fed."""
    manager = Manager(**environment)
    manager.notifier.feed()
    assert not manager.said
