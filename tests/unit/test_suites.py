"""The suites of tests are independent: shared code is in tests/support."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import skbcapd

TESTS = Path(skbcapd.__file__).parent.parent / "tests"
MAY_IMPORT = {
    "support": {"support"},
    "unit": {"support"},
    "golden": {"support"},
    "kernel": {"kernel", "support"},
    "vm": {"vm", "support"},
    "fleet": {"fleet", "support"},
    "package": {"package", "kernel", "vm", "support"},  # tries captures in clean systems; fetches packages for both
}


def imported(path: Path) -> set[str]:
    """The suites that a file imports from."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("tests.")}


@pytest.mark.parametrize("suite", MAY_IMPORT)
def test_a_suite_imports_from_those_it_may(suite: str) -> None:
    """A suite imports only from itself and tests/support."""
    files = sorted((TESTS / suite).rglob("*.py"))
    assert files
    assert {str(file): more for file in files if (more := imported(file) - MAY_IMPORT[suite])} == {}


def test_every_suite_is_listed() -> None:
    """A new directory of tests has a line above."""
    assert {path.parent.name for path in TESTS.glob("*/*.py")} == MAY_IMPORT.keys()
