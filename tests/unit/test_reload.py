"""Settings of a running capture: what takes effect when, and log messages."""

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
    """A capture and its program, which record the calls."""

    changes: list[tuple[str, list[int], str]] = field(default_factory=list)  # filter, numbers of the rules, C text
    refuses: bool = False

    @property
    def program(self) -> FakeCapture:
        """Both in one."""
        return self

    def load_filters(self, source: Source) -> Filters:
        """Called in the child: the program is a file with the text."""
        memory = os.memfd_create("loaded")
        os.write(memory, source.text.encode())
        return Filters([("stages_out", 0)], [memory], source)

    def change(self, plan: Plan, filters: Filters | None = None) -> None:
        """Use another plan."""
        if self.refuses:
            raise KernelError("no")
        text = "".join(os.pread(one, 1 << 20, 0).decode() for one in filters.descriptors) if filters else ""
        self.changes.append((plan.filter, [*plan.rules.filters], text))


class Rig:
    """A Reload whose child reads the settings of the test."""

    def __init__(self) -> None:
        self.capture = FakeCapture()
        self.told: list[bool] = []
        self.read: Callable[[], Settings] = Settings
        self.reload = Reload(self.capture, Settings(), self._load, self.told.append)  # type: ignore[arg-type]

    def _load(self) -> Settings:
        return self.read()

    def text(self, **overrides: str) -> None:
        """Set the content of the file."""
        self.read = lambda: default_settings(overrides)

    def run(self, overrides: Mapping[str, str]) -> None:
        """Reload to the end."""
        self.text(**overrides)
        self.reload.begin()
        self.finish()

    def finish(self) -> None:
        """Wait for the child, and use its settings."""
        assert self.reload.child is not None
        assert select.select([self.reload.child], [], [], DEADLINE_S)[0]
        self.reload.finish()


def test_without_other_filters_nothing_is_compiled(caplog: pytest.LogCaptureFixture) -> None:
    """If no filter changes, none is loaded."""
    rig = Rig()
    rig.run({"snaplen": "96"})
    rig.run({"rules": "[{comm: a, action: drop}]"})
    assert rig.capture.changes == [("", [], "")] * 2
    assert caplog.messages == ["settings reloaded"] * 2


def test_other_filters_are_compiled_during_the_capture(caplog: pytest.LogCaptureFixture) -> None:
    """New filters are used when they are compiled; numbers of rules are never reused."""
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


def test_a_request_during_a_reload_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    """A request while a child works reads the file again after it."""
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
    """However long it takes to read the file, the loop and the end do not wait."""
    rig = Rig()
    rig.read = lambda: time.sleep(1000) or Settings()
    start = time.monotonic()
    rig.reload.begin()
    rig.reload.close()
    rig.reload.close()
    assert time.monotonic() - start < 1
    assert rig.capture.changes == []


def test_a_bad_file_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Each problem is logged, and the capture continues unchanged."""
    rig = Rig()
    rig.run({"snaplen": "5", "filter": "udp prot"})
    assert not rig.capture.changes
    assert [line.split(", expected")[0] for line in caplog.messages] == [
        'not reloaded: --set: snaplen: found "5"',
        'not reloaded: --set: filter: found "udp prot" (can\'t parse filter expression: syntax error)',
    ]
    with pytest.raises(ConfigError):
        default_settings({"snaplen": "5"})


def test_keys_that_need_a_restart_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Keys that need a restart are named, each time they differ from the active ones."""
    rig = Rig()
    rig.run({"buffer.size": "32MiB", "snaplen": "96"})
    rig.run({"buffer.size": "32MiB"})
    assert caplog.messages == ["buffer.size takes effect at the next start", "settings reloaded", "settings reloaded"]


def test_the_kernel_may_refuse(caplog: pytest.LogCaptureFixture) -> None:
    """Filters that the kernel rejects change nothing, with a log line; the next reload starts from
    there.
    """
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
    """An unexpected error ends the child, not the capture; its last output is logged."""
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
    """If no process can be started, nothing changes, and the next reload can work; no descriptor
    stays open.
    """
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


def test_names_are_looked_up_at_each_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with another address is another filter, even if the file is the same."""
    addresses = {"db.example": ["192.0.2.7"]}
    monkeypatch.setattr("skbcapd.filter.names._addresses", lambda name: addresses[name])
    packet_filter.forget()
    rig = Rig()
    for address in ("192.0.2.7", "192.0.2.7", "192.0.2.8"):
        addresses["db.example"] = [address]
        rig.run({"filter": "host db.example"})
    assert [bool(text) for *_, text in rig.capture.changes] == [True, False, True]
    packet_filter.forget()


def test_begin_and_end_of_a_reload_are_reported() -> None:
    """The end of a reload is reported when its settings are active or its file is rejected."""
    rig = Rig()
    for number, overrides in enumerate(({"snaplen": "96"}, {"snaplen": "1"}, {"filter": "tcp"}), 1):
        rig.text(**overrides)
        rig.reload.begin()
        assert rig.told == [True, False] * (number - 1) + [True]
        rig.finish()
        assert rig.told == [True, False] * number
