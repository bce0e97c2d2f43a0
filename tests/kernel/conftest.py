"""What the kernel tests share: they need root, leave nothing behind, and end with their tables."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.kernel import namespace, table


@pytest.fixture(scope="session", autouse=True)
def _root() -> Iterator[None]:
    """Fail, never skip, where the kernel would refuse; clean up on SIGTERM as on Ctrl-C."""
    if os.geteuid() != 0:
        pytest.fail("the kernel tests make network namespaces and load a BPF program: run them as root", pytrace=False)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def wire() -> Iterator[namespace.Wire]:
    """Two namespaces joined by a veth pair, for all tests of a file."""
    with namespace.wire() as made:
        yield made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables of what was compared and judged."""
    for title, lines in table.tables():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)
