"""A kernel that lacks what skbcapd needs: Debian 11's."""

from __future__ import annotations

import pytest

from tests.vm import boot, kernels

KERNEL = "5.10"
DEADLINE_S = 5 * 60
COMMAND = """
.venv/bin/python -m skbcapd capture -i lo -w /run/lo.pcapng; echo "@ capture $?"
.venv/bin/python -m skbcapd doctor; echo "@ doctor $?"
"""
pytestmark = pytest.mark.timeout(0)  # the deadline is enough


def test_it_is_refused_by_one_line() -> None:
    """Linux 5.10 has no compare-and-exchange in BPF: the capture ends with that reason, and doctor
    shows it, too.
    """
    result = boot.run_in_vm(kernels.fetch(KERNEL), COMMAND, DEADLINE_S)
    capture, _, rest = result.output.partition("@ capture 1\n")
    said = [line for line in capture.splitlines() if line.startswith("skbcapd")]
    assert len(said) == 1, result.report()
    assert "Linux 5.10" in said[0]
    assert "rejects compare-and-exchange in BPF programs" in said[0]
    assert "FAIL  BPF atomics" in rest
    assert "@ doctor 1" in rest
