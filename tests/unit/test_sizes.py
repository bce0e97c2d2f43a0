"""No class and no function is longer than a reader can hold in mind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import skbcapd

ROOT = Path(skbcapd.__file__).parent.parent
CLASS_LINES, FUNCTION_LINES = 250, 60  # below these


def too_long(path: Path) -> Iterator[str]:
    """What is too long in a file, with its number of lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines >= (CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES):
                yield f"{node.name}: {lines} lines"


@pytest.mark.parametrize("directory", ["skbcapd", "tests", "tools", "bench"])
def test_nothing_is_too_long(directory: str) -> None:
    """Classes have fewer than 250 lines, functions fewer than 60."""
    files = sorted((ROOT / directory).rglob("*.py"))
    assert files
    assert {str(file.relative_to(ROOT)): found for file in files if (found := list(too_long(file)))} == {}
