"""Settings over the time of a capture: what is put in place when, and what is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from skbcapd.capture.reload import Reload
from skbcapd.config.parser import default_settings
from skbcapd.config.settings import Settings
from skbcapd.errors import ConfigError, KernelError
from skbcapd.filter.packet_filter import Source


@dataclass
class FakeCapture:
    """A capture, and its program, that remembers what it is to do."""

    compiled: list[Source] = field(default_factory=list)
    changes: list[tuple[object, str, int]] = field(default_factory=list)
    closed: int = 0
    refuses: bool = False

    @property
    def program(self) -> FakeCapture:
        """Both in one."""
        return self

    def compile_filters(self, source: Source) -> FakeCapture:
        """Begin; the child is this object again."""
        self.compiled.append(source)
        return self

    def change(self, child: object, **chosen: Any) -> None:
        """Go on with other settings."""
        if self.refuses:
            raise KernelError("no")
        self.changes.append((child, chosen["filter"], chosen["first"]))

    def close(self) -> None:
        """The child is waited for no longer."""
        self.closed += 1


class Rig:
    """A Reload that reads what a test says, text after text."""

    def __init__(self, *overrides: Mapping[str, str]) -> None:
        self.capture = FakeCapture()
        self.said: list[str] = []
        self.told: list[bool] = []
        self._texts: Iterator[Mapping[str, str]] = iter(overrides)
        self.reload = Reload(self.capture, Settings(), self._load, self._choose, self.said.append, self.told.append)  # type: ignore[arg-type]

    def _load(self) -> Settings:
        return default_settings(next(self._texts))

    @staticmethod
    def _choose(settings: Settings, first: int) -> dict[str, object]:
        return {"filter": settings.filter, "first": first}


def test_without_other_filters_all_is_done_at_once() -> None:
    """Where no filter changes nothing is compiled."""
    rig = Rig({"snaplen": "96"}, {"rules": "[{comm: a, action: drop}]"})
    rig.reload.begin()
    rig.reload.begin()
    assert rig.capture.changes == [(None, "", 1)] * 2
    assert not rig.capture.compiled
    assert rig.said == ["settings reloaded"] * 2


def test_other_filters_are_compiled_meanwhile() -> None:
    """Other filters are put in place when they are compiled; the rules' numbers are never used again."""
    rig = Rig(
        {"filter": "udp", "rules": "[{comm: a, filter: tcp}, {comm: b, filter: port 5}]"},
        {"filter": "udp", "rules": "[{comm: c, filter: tcp}, {comm: b, filter: port 5}]"},
        {"filter": "udp", "rules": "[{comm: c, filter: port 6}]"},
    )
    rig.reload.begin()
    assert (rig.capture.changes, rig.said) == ([], [])
    rig.reload.finish()
    assert rig.reload.child is None
    rig.reload.begin()  # the same filters
    rig.reload.begin()
    rig.reload.finish()
    assert rig.capture.changes == [(rig.capture, "udp", 1), (None, "udp", 1), (rig.capture, "udp", 3)]
    assert ["filter_2(" in source.text for source in rig.capture.compiled] == [True, False]
    assert ["filter_3(" in source.text for source in rig.capture.compiled] == [False, True]


def test_a_wish_meanwhile_is_kept() -> None:
    """Asked again while filters are compiled, the file is read once more behind that."""
    rig = Rig({"filter": "udp"}, {"filter": ""})
    for _ in range(3):
        rig.reload.begin()
    assert len(rig.capture.compiled) == 1
    rig.reload.finish()
    assert rig.capture.changes == [(rig.capture, "udp", 1), (None, "", 1)]
    assert len(rig.said) == 2


def test_a_bad_file_changes_nothing() -> None:
    """Every problem is said, and the capture goes on as it was."""
    rig = Rig({"snaplen": "5", "filter": "udp prot"})
    rig.reload.begin()
    assert not rig.capture.changes
    assert [line.split(", expected")[0] for line in rig.said] == [
        'not reloaded: --set: snaplen: found "5"',
        'not reloaded: --set: filter: found "udp prot" (can\'t parse filter expression: syntax error)',
    ]
    with pytest.raises(ConfigError):
        default_settings({"snaplen": "5"})


def test_what_needs_a_new_start_is_said() -> None:
    """Keys that cannot change while a capture runs are named, each time they differ from those in use."""
    rig = Rig({"buffer.size": "32MiB", "snaplen": "96"}, {"buffer.size": "32MiB"})
    rig.reload.begin()
    assert rig.said == ["buffer.size takes effect at the next start", "settings reloaded"]


def test_the_kernel_may_refuse() -> None:
    """Filters that cannot be loaded leave the capture as it was, with a line; the next reload starts from there."""
    rig = Rig({"filter": "udp"}, {"filter": "udp"})
    rig.capture.refuses = True
    rig.reload.begin()
    rig.reload.finish()
    assert rig.said == ["not reloaded: no"]
    rig.capture.refuses = False
    rig.reload.begin()
    rig.reload.finish()
    assert rig.capture.changes == [(rig.capture, "udp", 1)]


def test_the_end_waits_for_nothing() -> None:
    """A child that still compiles at the end is given up."""
    rig = Rig({"filter": "udp"})
    rig.reload.begin()
    rig.reload.close()
    rig.reload.close()
    assert rig.capture.closed == 1


def test_a_manager_is_told_of_begin_and_end() -> None:
    """A reload is over when its settings are in place or its file is refused: then the end is told."""
    rig = Rig({"snaplen": "96"}, {"snaplen": "1"}, {"filter": "tcp"})
    rig.reload.begin()
    assert rig.told == [True, False]
    rig.reload.begin()
    assert rig.told == [True, False] * 2
    rig.reload.begin()
    assert rig.told == [True, False, True, False, True]
    rig.reload.finish()
    assert rig.told == [True, False] * 3
