"""Taps: when their program is loaded, which sockets get it, and what is said if they do not."""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable, Iterator

import pytest

from skbcapd.filter.packet_filter import Source
from skbcapd.kernel import links, loader
from skbcapd.kernel.loader import TAP_STAGES, Loader, send
from skbcapd.kernel.packet_socket import PacketSocket
from skbcapd.kernel.taps import TAPS_MAX, Taps, Upper
from tests.support.deadline import until

OLD, NEW = Source("old", 64), Source("new", 128)


class Tap(PacketSocket):
    """A packet socket that needs no privilege.

    Args:
        error: of `listen`.
    """

    def __init__(self, error: int = 0) -> None:
        self.calls: list[str] = []
        self.is_there, self.is_closed, self._error = True, False, error

    def listen(self, ifindex: int, program: int) -> None:
        """Note the interface, or fail."""
        assert program >= 0
        if self._error:
            raise OSError(self._error, os.strerror(self._error))
        self.calls.append(f"listen {ifindex}")

    def is_over(self) -> bool:
        """Whether the interface is gone."""
        return not self.is_there

    def stop(self) -> None:
        """Note it."""
        self.calls.append("stop")

    def close(self) -> None:
        """Note it."""
        self.is_closed = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The filters of each child that was started to load the program; the children load nothing."""
    found: list[str] = []
    descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]

    def start(_maps: object, definitions: dict[str, int], filters: str) -> Loader:
        found.append(f"{filters} {definitions.get('WINDOW')}")
        if filters == "broken":
            return Loader(lambda _: os._exit(1))
        return Loader(lambda channel: send(channel, {}, descriptors))

    monkeypatch.setattr(loader, "start_tap", start)
    yield found
    for descriptor in descriptors:
        os.close(descriptor)


def taps(filters: str = "old") -> Taps:
    """Without interfaces."""
    return Taps({"stages_in": 3}, {"WINDOW": 64}, filters)


def finish(made: Taps) -> None:
    """As a capture at its start."""
    made.load()
    made.bind()


def test_without_such_an_interface_nothing_is_loaded(started: list[str]) -> None:
    """No child is started, and the capture has no further program."""
    made = taps()
    made.add([])
    finish(made)
    made.tick(is_reloading=False)
    assert (started, made.names, made.load_filters({}, "")) == ([], [], ([], []))
    made.detach()
    made.close()


def test_an_interface_has_one_tap(started: list[str]) -> None:
    """A second socket for it is closed."""
    made, one, again = taps(), Tap(), Tap()
    made.add([Upper(1, 7, "v7", one)])
    made.add([Upper(1, 7, "v7", again)])
    finish(made)
    assert (started, made.names) == (["old 64"], ["v7"])
    until(lambda: again.is_closed, "it is closed")
    made.detach()
    assert one.calls == ["listen 7", "stop"]
    made.close()
    assert one.is_closed


def test_an_interface_that_is_gone_is_forgotten(started: list[str]) -> None:
    """Its socket is closed, and another one with its number can get a tap."""
    made, one = taps(), Tap()
    made.add([Upper(1, 7, "v7", one)])
    finish(made)
    one.is_there = False
    assert made.tick(is_reloading=False) == {1}
    assert (made.has(1, 7), started) == (False, ["old 64"])
    until(lambda: one.is_closed, "it is closed")
    made.close()


@pytest.mark.parametrize(
    ("add", "said"),
    [
        (lambda: Upper(1, 7, "v7", "no reason"), ["v7 is captured on the interface below only: no reason"]),
        (lambda: Upper(1, 7, "v7", Tap(errno.EPERM)), ["v7 is captured on the interface below only: packet socket: "]),
        (lambda: Upper(1, 7, "v7", Tap(errno.ENODEV)), []),
    ],
)
def test_a_refused_interface_is_reported(
    add: Callable[[], Upper], said: list[str], started: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A warning has the reason, unless the interface was removed in the meantime; then there is no other try."""
    caplog.set_level(logging.WARNING)
    made = taps()
    made.add([add()])
    finish(made)
    assert len(caplog.messages) == len(said)
    assert all(part in message for part, message in zip(said, caplog.messages, strict=True))
    assert (made.names, made.has(1, 7)) == ([], bool(said))
    assert len(started) <= 1
    made.close()


def test_a_namespace_is_not_kept(started: list[str]) -> None:
    """A socket would keep it alive: taps of namespaces that are gone are closed."""
    made, one, other = taps(), Tap(), Tap()
    made.add([Upper(1, 7, "v7", one), Upper(2, 7, "v7", other), Upper(3, 8, "v8", "no reason")])
    finish(made)
    assert (made.is_elsewhere(1), len(started)) == (True, 1)
    made.keep({1})
    assert (made.is_elsewhere(1), made.has(1, 7), made.has(2, 7), made.has(3, 8)) == (False, True, False, False)
    until(lambda: other.is_closed, "it is closed")
    made.close()
    assert one.is_closed


def test_one_warning_for_one_reason(started: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """So they do not take the place of other warnings; the limit of their number is one, too."""
    caplog.set_level(logging.WARNING)
    made, surplus = taps(), Tap()
    made.add([Upper(1, number, f"v{number}", "no reason") for number in range(30)])
    made.add([Upper(2, number, f"v{number}", Tap()) for number in range(TAPS_MAX)])
    made.add([Upper(3, 1, "v1", surplus), Upper(3, 2, "v2", Tap())])
    until(lambda: surplus.is_closed, "it is closed")
    assert [line.rpartition(": ")[2] for line in caplog.messages] == ["no reason", "1024 interfaces have one already"]
    assert made.has(3, 2)
    assert len(started) == 1
    made.close()


def test_no_process_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """It is a warning, and the capture continues without taps."""

    def start(*_: object) -> Loader:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(loader, "start_tap", start)
    made, one = taps(), Tap()
    made.add([Upper(1, 7, "v7", one)])
    until(lambda: one.is_closed, "it is closed")
    assert "no process to load a program: Resource temporarily unavailable" in caplog.text
    made.close()


def test_a_program_that_cannot_be_loaded(started: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Each interface is reported, and nothing is loaded again."""
    made, one, later = taps("broken"), Tap(), Tap()
    made.add([Upper(1, 7, "v7", one)])
    finish(made)
    made.add([Upper(1, 8, "v8", later)])
    assert len(started) == 1
    until(lambda: one.is_closed and later.is_closed, "they are closed")
    (message,) = caplog.messages
    assert "what arrives on v7 is captured on the interface below only: " in message
    made.close()


def test_a_reload_while_the_program_is_loaded(started: list[str]) -> None:
    """It is not used before the reload ends, and then it is loaded again, with the new filters."""
    made, one = taps(), Tap()
    made.add([Upper(1, 7, "v7", one)])
    made.tick(is_reloading=True)
    assert made.names == []
    assert made.exchange(NEW, {"stages_in"}) == {"stages_in": 3}
    assert started == ["old 64", "new 128"]

    def is_used() -> bool:
        made.tick(is_reloading=False)
        return bool(made.names)

    until(is_used, "it has a tap")
    changed = made.exchange(OLD, {"stages_in", TAP_STAGES})
    assert (changed["stages_in"], len(started)) == (3, 2)
    assert changed[TAP_STAGES] not in {3, -1}
    made.close()


def link(kind: bytes, name: bytes = b"v7", ifindex: int = 7) -> bytes:
    """A message of rtnetlink about an interface."""

    def attribute(number: int, data: bytes) -> bytes:
        return struct.pack("=HH", 4 + len(data), number) + data + bytes(-len(data) % 4)

    nested = attribute(18 | 0x8000, attribute(1, kind) + attribute(2, b"data")) if kind else b""
    return struct.pack("=BxHiII", 0, 1, ifindex, 0, 0) + attribute(3, name + b"\0") + nested


@pytest.mark.parametrize("kind", sorted(links.KINDS))
def test_interfaces_above_others(kind: bytes) -> None:
    """They are known by their kind, with or without a NUL at its end."""
    assert links.read_link(link(kind)) == links.read_link(link(kind + b"\0")) == (7, "v7")


@pytest.mark.parametrize(
    "message", [link(b""), link(b"veth"), link(b"vlan2"), link(b"vlan")[:-12], struct.pack("=BxHiII", 0, 1, 7, 0, 0)]
)
def test_other_interfaces(message: bytes) -> None:
    """Other kinds, cut messages and interfaces without a kind are left out."""
    assert links.read_link(message) is None


def test_own_namespace() -> None:
    """Without privileges, the interfaces of the own network namespace can be listed, and changes end."""
    asked: list[str] = []
    changes = links.Changes()
    assert links.uppers([links.OWN], lambda _netns, _ifindex, name: bool(asked.append(name))) == []
    assert "lo" not in asked
    until(lambda: not changes.take(), "nothing has changed")
    changes.close()
