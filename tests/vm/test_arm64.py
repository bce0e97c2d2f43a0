"""arm64: by kprobes on the oldest kernel, by tracepoints on the newest, one way for each, because the
emulation of another architecture needs minutes. Doctor is that of the package for arm64.
"""

from __future__ import annotations

import pytest

from tests.vm import arm64, core

ATTACH = {"6.1": "kprobe", "newest": "auto"}
DEADLINE_S = 30 * 60  # per kernel
SLOWNESS = 20
pytestmark = pytest.mark.timeout(0)  # the deadline is enough


@pytest.mark.parametrize("name", ATTACH)
def test_frames_and_names(name: str, reports: dict[str, str]) -> None:
    """Frames are identical, and names right. Doctor finds softirqs on stacks of their own, and nothing that is
    missing.
    """
    command = core.command(ATTACH[name], SLOWNESS, "python3", "cd /; skbcapd")
    report = core.check(arm64.run(name, command, DEADLINE_S), f"arm64, {ATTACH[name]}", reports)
    assert report.version.endswith(" aarch64")
    assert report.findings["softirqs"] == ("ok", "on stacks of their own")
    assert {status for status, _ in report.findings.values()} == {"ok"}, report
