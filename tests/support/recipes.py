"""The recipes of docs/recipes.md: tasks and their commands; the tasks of docs/tasks.md, also with their output."""

from __future__ import annotations

import re
from pathlib import Path

import skbcapd

DOCS = Path(skbcapd.__file__).parent.parent / "docs"
PAGE = DOCS / "recipes.md"


def recipes(part: str) -> dict[str, list[str]]:
    """The commands of a part of the page, by task."""
    [text] = re.findall(rf"^## {re.escape(part)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = {}
    for section in text.split("### ")[1:]:
        task, _, rest = section.partition("\n")
        found[task] = [line.strip() for line in rest.splitlines() if line.startswith("    ")]
    return found


def task(title: str) -> tuple[list[str], str]:
    """The commands of a task of docs/tasks.md, and all that they print."""
    [text] = re.findall(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", (DOCS / "tasks.md").read_text(), re.MULTILINE | re.DOTALL
    )
    lines = re.findall(r"^    (.*)$", text, re.MULTILINE)
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    assert 1 <= len(commands) <= 2
    return commands, "".join(f"{line}\n" for line in lines if not line.startswith("$ "))


def shape(text: str) -> str:
    """Output without what differs from run to run: numbers, times, and the width of columns."""
    return re.sub(r" +", " ", re.sub(r"\d+(?:\.\d+)?", "0", text))
