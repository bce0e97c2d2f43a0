"""No class and no function is longer than a reader can hold in mind, in Python and in C."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import skbcapd

ROOT = Path(skbcapd.__file__).parent.parent
CLASS_LINES, FUNCTION_LINES = 250, 60  # below these
# From the line with its type, in the first column, to its closing brace there; so clang-format writes it.
C_FUNCTION = re.compile(r"^\w[^\n;{}]*?(\w+)\([^;{}]*\)\n\{\n.*?^\}", re.MULTILINE | re.DOTALL)


def too_long(path: Path) -> Iterator[str]:
    """What is too long in a file, with its number of lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines >= (CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES):
                yield f"{node.name}: {lines} lines"


def too_long_in_c(text: str) -> Iterator[str]:
    """What is too long in a C text, with its number of lines."""
    for function in C_FUNCTION.finditer(text):
        lines = function[0].count("\n") + 1
        if lines >= FUNCTION_LINES:
            yield f"{function[1]}: {lines} lines"


@pytest.mark.parametrize("directory", ["skbcapd", "tests", "tools", "bench"])
def test_nothing_is_too_long(directory: str) -> None:
    """Classes have fewer than 250 lines, functions fewer than 60."""
    files = sorted((ROOT / directory).rglob("*.py"))
    assert files
    assert {str(file.relative_to(ROOT)): found for file in files if (found := list(too_long(file)))} == {}


def test_no_function_of_the_kernel_program_is_too_long() -> None:
    """Functions in C have fewer than 60 lines, and each of them is counted."""
    texts = {file.name: file.read_text() for file in sorted((ROOT / "bpf").glob("*.[ch]"))}
    assert {name: found for name, text in texts.items() if (found := list(too_long_in_c(text)))} == {}
    for name, text in texts.items():
        assert len(C_FUNCTION.findall(text)) == text.count("\n{\n"), name


@pytest.mark.parametrize(("statements", "expected"), [(56, []), (57, ["count: 60 lines"])])
def test_lines_of_a_c_function(statements: int, expected: list[str]) -> None:
    """The lines of a function are those from its type to its closing brace."""
    before = "struct row {\n\tu64 number;\n};\n\n/* Counts. */\n"
    text = before + "static inline void count(struct row *row)\n{\n" + "\n" * statements + "}\n"
    assert list(too_long_in_c(text)) == expected
