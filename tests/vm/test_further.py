"""Kernels on which only the core of the kernel tests runs: Debian 13's, and one with PREEMPT_RT, where softirqs run
in tasks.
"""

from __future__ import annotations

import pytest

from tests.vm import boot, core, kernels

REAL_TIME = "rt-amd64"
OWN_STACKS, IN_TASKS = "on stacks of their own", "in tasks, which count them (PREEMPT_RT)"
DEADLINE_S = 20 * 60  # per kernel
SLOWNESS = 5  # of an emulated machine
PYTHON = ".venv/bin/python"
pytestmark = pytest.mark.timeout(0)  # the deadline is enough


@pytest.mark.parametrize(
    ("name", "flavour", "attach", "softirqs"),
    [
        ("6.12", kernels.AMD64, "auto", OWN_STACKS),
        # By tracepoints: a bpf(2) call can be preempted there, and meanwhile a kprobe runs no program.
        ("6.1", REAL_TIME, "auto", IN_TASKS),
    ],
)
def test_frames_and_names(name: str, flavour: str, attach: str, softirqs: str, reports: dict[str, str]) -> None:
    """Frames are identical, and names right; doctor says where softirqs run."""
    command = core.command(attach, SLOWNESS, PYTHON, f"{PYTHON} -m skbcapd")
    result = boot.run_in_vm(kernels.fetch(name, flavour), command, DEADLINE_S)
    report = core.check(result, f"{flavour}, {attach}", reports)
    assert ("PREEMPT_RT" in report.version) == (flavour == REAL_TIME)
    assert report.findings["softirqs"] == ("ok", softirqs)
