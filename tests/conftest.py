"""Settings of all tests. With --no-skips, as in `make test` and `make test-all`, a skipped test
fails the run.

A test that does not run proves nothing. A test that cannot run on some kind of machine must be left
out by name, not skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support import faults

# No deadline: the machine can be slow. No database: root would leave it behind in the checkout.
settings.register_profile("skbcapd", deadline=None, database=None, print_blob=True)
# `make fuzz`: the same tests, many more examples.
settings.register_profile("fuzz", settings.get_profile("skbcapd"), max_examples=5_003)
settings.load_profile(os.environ.get("SKBCAPD_HYPOTHESIS", "skbcapd"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --no-skips; on CI it is always on."""
    parser.addoption("--no-skips", action="store_true", default="CI" in os.environ, help="fail if a test was skipped")


@pytest.fixture(scope="session", autouse=True)
def _kept_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled programs are kept with the tests' other files: those of skbcapd, so the first
    capture compiles, and those of Python: a command starts in two thirds of the time. A machine that
    has them already says so.
    """
    kept = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIRECTORY", str(kept / "skbcapd"))
        patch.setenv("PYTHONPYCACHEPREFIX", os.environ.get("PYTHONPYCACHEPREFIX", str(kept / "python")))
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Turn exit code 0 into a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", [])) if reporter else 0
    if skipped and session.config.getoption("no_skips") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables of faults, and why a run failed, before the closing lines of pytest."""
    for title, lines in (("files: what faults cost", faults.lines()), ("faults, before and now", faults.compared())):
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)
    if terminalreporter.stats.get("skipped") and config.getoption("no_skips"):
        terminalreporter.write_line("ERROR: tests were skipped, and --no-skips (or CI) forbids it", red=True)
