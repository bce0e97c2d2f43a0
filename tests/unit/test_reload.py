"""Settings over the time of a capture: what is put in place when, and what is logged."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from skbcapd.capture.plan import Plan
from skbcapd.capture.reload import Reload
from skbcapd.config.parser import default_settings
from skbcapd.config.settings import Settings
from skbcapd.errors import ConfigError, KernelError
from skbcapd.filter import packet_filter
from skbcapd.filter.packet_filter import Source
from skbcapd.kernel.program import Filters

DEADLINE_S = 30.0


@pytest.fixture(autouse=True)
def _log_has_information(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skbcapd")


@dataclass
class FakeCapture:
    """A capture, and its program, that remembers what it is to do."""

    changes: list[tuple[str, list[int], str]] = field(default_factory=list)  # filter, its rules' numbers, C text
    refuses: bool = False

    @property
    def program(self) -> FakeCapture:
        """Both in one."""
        return self

    def load_filters(self, source: Source) -> Filters:
        """In the child: the program is a file with the text."""
        memory = os.memfd_create("loaded")
        os.write(memory, source.text.encode())
        return Filters([("stages_out", 0)], [memory])

    def change(self, plan: Plan, filters: Filters | None = None) -> None:
        """Go on with another plan."""
        if self.refuses:
            raise KernelError("no")
        text = "".join(os.pread(one, 1 << 20, 0).decode() for one in filters.descriptors) if filters else ""
        self.changes.append((plan.filter, [*plan.rules.filters], text))


class Rig:
    """A Reload that reads what a test says, in its child."""

    def __init__(self) -> None:
        self.capture = FakeCapture()
        self.told: list[bool] = []
        self.read: Callable[[], Settings] = Settings
        self.reload = Reload(self.capture, Settings(), self._load, self.told.append)  # type: ignore[arg-type]

    def _load(self) -> Settings:
        return self.read()

    def text(self, **overrides: str) -> None:
        """What the file says from now on."""
        self.read = lambda: default_settings(overrides)

    def run(self, overrides: Mapping[str, str]) -> None:
        """Reload to the end."""
        self.text(**overrides)
        self.reload.begin()
        self.finish()

    def finish(self) -> None:
        """Wait for the child, and take what it has prepared."""
        assert self.reload.child is not None
        assert select.select([self.reload.child], [], [], DEADLINE_S)[0]
        self.reload.finish()


def test_without_other_filters_nothing_is_compiled(caplog: pytest.LogCaptureFixture) -> None:
    """Where no filter changes none is loaded."""
    rig = Rig()
    rig.run({"snaplen": "96"})
    rig.run({"rules": "[{comm: a, action: drop}]"})
    assert rig.capture.changes == [("", [], "")] * 2
    assert caplog.messages == ["settings reloaded"] * 2


def test_other_filters_are_compiled_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    """Other filters are put in place when they are compiled; the rules' numbers are never used again."""
    rig = Rig()
    rig.text(filter="udp", rules="[{comm: a, filter: tcp}, {comm: b, filter: port 5}]")
    rig.reload.begin()
    assert (rig.capture.changes, caplog.messages) == ([], [])
    rig.finish()
    assert rig.reload.child is None
    rig.run({"filter": "udp", "rules": "[{comm: c, filter: tcp}, {comm: b, filter: port 5}]"})  # the same filters
    rig.run({"filter": "udp", "rules": "[{comm: c, filter: port 6}]"})
    assert [change[:2] for change in rig.capture.changes] == [("udp", [1, 2]), ("udp", [1, 2]), ("udp", [3])]
    texts = [text for *_, text in rig.capture.changes]
    assert ["filter_2(" in text for text in texts] == [True, False, False]
    assert ["filter_3(" in text for text in texts] == [False, False, True]


def test_a_wish_meanwhile_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """Asked again while a child works, the file is read once more behind that."""
    rig = Rig()
    rig.text(filter="udp")
    for _ in range(3):
        rig.reload.begin()
    rig.text()
    rig.finish()
    rig.finish()
    assert [change[0] for change in rig.capture.changes] == ["udp", ""]
    assert len(caplog.messages) == 2
    assert rig.reload.child is None


def test_the_loop_does_not_wait() -> None:
    """However long it takes to read the file, nobody waits, and the end is not held up."""
    rig = Rig()
    rig.read = lambda: time.sleep(1000) or Settings()
    start = time.monotonic()
    rig.reload.begin()
    rig.reload.close()
    rig.reload.close()
    assert time.monotonic() - start < 1
    assert rig.capture.changes == []


def test_a_bad_file_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Every problem is said, and the capture goes on as it was."""
    rig = Rig()
    rig.run({"snaplen": "5", "filter": "udp prot"})
    assert not rig.capture.changes
    assert [line.split(", expected")[0] for line in caplog.messages] == [
        'not reloaded: --set: snaplen: found "5"',
        'not reloaded: --set: filter: found "udp prot" (can\'t parse filter expression: syntax error)',
    ]
    with pytest.raises(ConfigError):
        default_settings({"snaplen": "5"})


def test_what_needs_a_new_start_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Keys that cannot change while a capture runs are named, each time they differ from those in use."""
    rig = Rig()
    rig.run({"buffer.size": "32MiB", "snaplen": "96"})
    rig.run({"buffer.size": "32MiB"})
    assert caplog.messages == ["buffer.size takes effect at the next start", "settings reloaded", "settings reloaded"]


def test_the_kernel_may_refuse(caplog: pytest.LogCaptureFixture) -> None:
    """Filters that cannot be put in place leave the capture as it was, with a line; the next reload starts there."""
    rig = Rig()
    rig.capture.refuses = True
    rig.run({"filter": "udp"})
    assert caplog.messages == ["not reloaded: no"]
    rig.capture.refuses = False
    before = len([*Path("/proc/self/fd").iterdir()])
    rig.run({"filter": "udp"})
    assert [change[:2] for change in rig.capture.changes] == [("udp", [])]
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_child_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody has thought of ends the child, not the capture; its last words are said."""
    rig = Rig()

    def read() -> Settings:
        raise ZeroDivisionError("odd")

    rig.read = read
    rig.reload.begin()
    rig.finish()
    assert not rig.capture.changes
    assert caplog.messages[0].startswith("not reloaded: ")
    assert "ZeroDivisionError: odd" in caplog.messages[0]


def test_no_process_is_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where no process can be started, nothing is changed, and the next reload may work; nothing is left open."""
    rig = Rig()

    def refused() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", refused)
        rig.reload.begin()
    assert rig.reload.child is None
    assert caplog.messages == ["not reloaded: Resource temporarily unavailable; expected to start a process for it"]
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_names_are_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has got another address is another filter, though the file is the same."""
    addresses = {"db.example": ["192.0.2.7"]}
    monkeypatch.setattr("skbcapd.filter.names._addresses", lambda name: addresses[name])
    packet_filter.forget()
    rig = Rig()
    for address in ("192.0.2.7", "192.0.2.7", "192.0.2.8"):
        addresses["db.example"] = [address]
        rig.run({"filter": "host db.example"})
    assert [bool(text) for *_, text in rig.capture.changes] == [True, False, True]
    packet_filter.forget()


def test_a_manager_is_told_of_begin_and_end() -> None:
    """A reload is over when its settings are in place or its file is refused: then the end is told."""
    rig = Rig()
    for number, overrides in enumerate(({"snaplen": "96"}, {"snaplen": "1"}, {"filter": "tcp"}), 1):
        rig.text(**overrides)
        rig.reload.begin()
        assert rig.told == [True, False] * (number - 1) + [True]
        rig.finish()
        assert rig.told == [True, False] * number
