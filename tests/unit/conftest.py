"""For the unit tests: threads may be late, unless a test is about that.

A running capture waits 0.1 to 0.15 s for a thread that creates, deletes or reads files, and then goes on without it. On
a busy machine any thread can be that late, and a test that expects the result would fail.
"""

from __future__ import annotations

import pytest

from skbcapd.attribution import command_lines
from skbcapd.output import key_log
from skbcapd.worker import TimedCall
from tests.support.deadline import DEADLINE_S


@pytest.fixture(autouse=True)
def _patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait long, except in tests that are marked with `late_thread`."""
    if request.node.get_closest_marker("late_thread"):
        return
    monkeypatch.setattr(TimedCall.__init__, "__defaults__", (DEADLINE_S,))
    for module in (command_lines, key_log):
        monkeypatch.setattr(module, "PATIENCE_S", DEADLINE_S)
