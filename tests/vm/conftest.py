"""Which kernels the virtual machines boot, and what pytest says about them at the end.

SKBCAPD_VM_KERNELS names them (`make test-vm KERNEL=6.12` sets it); else kernels.DEFAULT_NAMES. On a machine that
cannot get Debian's kernels and is given no image, all virtual machines are left out by name, and the summary says so:
left out, not skipped, because there no run could ever pass.
"""

from __future__ import annotations

import os

import pytest

from tests.vm import kernels

ASKED_FOR = tuple(os.environ.get("SKBCAPD_VM_KERNELS", "").split())
NAMES = ASKED_FOR or kernels.DEFAULT_NAMES
LEFT_OUT = "" if all("/" in name for name in NAMES) else kernels.unavailable()
REPORTS = pytest.StashKey[dict[str, str]]()

collect_ignore = ["test_kernels.py", "test_service.py"] if LEFT_OUT else []
# They choose their kernels themselves.
if ASKED_FOR or LEFT_OUT:
    collect_ignore += ["test_arm64.py", "test_further.py", "test_older.py"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives each test that asks for a kernel all of them, one after the other."""
    if "kernel_name" in metafunc.fixturenames:
        metafunc.parametrize("kernel_name", NAMES, scope="module")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where machines are left out, or others are asked for, a part of the tests can be empty."""
    if (LEFT_OUT or ASKED_FOR) and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session")
def reports(pytestconfig: pytest.Config) -> dict[str, str]:
    """What the runs inside printed, by title; shown at the end of the run outside."""
    return pytestconfig.stash.setdefault(REPORTS, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Shows the runs inside, or why there were none."""
    for title, text in config.stash.get(REPORTS, {}).items():
        terminalreporter.section(title)
        terminalreporter.write_line(text.strip())
    if LEFT_OUT:
        terminalreporter.write_line(f"virtual machines left out: {LEFT_OUT}")
