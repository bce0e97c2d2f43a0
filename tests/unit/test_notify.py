"""What the service manager is told, on a socket as systemd gives it; and when the watchdog is fed."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from skbcapd.daemon.notify import Notifier

FILE = Path("/a.pcapng.part")


class Manager:
    """A service manager with a watchdog of 28 seconds, a disk that may hang, and a clock."""

    def __init__(self, **environment: str) -> None:
        self.said: list[str] = []
        self.now = 100.0
        self.asked: list[Path] = []
        self.disk = threading.Event()
        self.disk.set()
        variables = {"NOTIFY_SOCKET": "/none", "WATCHDOG_USEC": "28000000", **environment}
        self.notifier = Notifier(variables, self.said.append, self.sync, lambda: self.now)

    def sync(self, path: Path) -> None:
        """Force a file to the disk."""
        self.asked.append(path)
        assert self.disk.wait(20)

    def wait_for_answer(self) -> None:
        """Until the question to the disk is over."""
        assert self.notifier._question is not None
        self.notifier._question.join(20)


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
    notifier.feed(FILE)


def test_the_watchdog_is_fed_four_times_in_its_timeout() -> None:
    """Looks in between feed nothing; each feeding puts a question to the disk."""
    manager = Manager()
    for _ in range(29):
        manager.notifier.feed(FILE)
        manager.wait_for_answer()
        manager.now += 1
    assert manager.said == ["WATCHDOG=1"] * 5
    assert manager.asked == [FILE] * 5


def test_a_disk_that_hangs_is_not_hidden() -> None:
    """While a question to the disk is open nothing is fed; after the answer, at once."""
    manager = Manager()
    manager.disk.clear()
    for _ in range(29):
        manager.notifier.feed(FILE)
        manager.now += 1
    assert manager.said == ["WATCHDOG=1"]
    manager.disk.set()
    manager.wait_for_answer()
    manager.notifier.feed(FILE)
    assert manager.said == ["WATCHDOG=1"] * 2


@pytest.mark.parametrize(
    "environment", [{"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-1"}]
)
def test_no_watchdog_of_ours(environment: dict[str, str]) -> None:
    """Where there is no watchdog, or it is another process's, nothing is fed and the disk is not asked."""
    manager = Manager(**environment)
    manager.notifier.feed(FILE)
    assert not manager.said
    assert not manager.asked


def test_a_file_that_is_gone_is_an_answer() -> None:
    """The real question, put about a file that was renamed meanwhile, does not fail."""
    said: list[str] = []
    notifier = Notifier({"WATCHDOG_USEC": "28000000"}, said.append)
    notifier.feed(FILE)
    assert notifier._question is not None
    notifier._question.join(20)
    assert not notifier._question.is_alive()
    assert said == ["WATCHDOG=1"]
