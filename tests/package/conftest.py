"""On systems other than Debian the clean Debian systems are left out by name, and the summary lists
them.
"""

from __future__ import annotations

import pytest

from tests.vm import kernels

LEFT_OUT = kernels.unavailable()

collect_ignore = ["test_chroot.py"] if LEFT_OUT else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was left out."""
    if LEFT_OUT:
        terminalreporter.write_line(f"clean Debian systems left out: {LEFT_OUT}")
