"""The recipes of docs/recipes.md: tasks and their commands."""

from __future__ import annotations

import re
from pathlib import Path

import skbcapd

PAGE = Path(skbcapd.__file__).parent.parent / "docs/recipes.md"


def recipes(part: str) -> dict[str, list[str]]:
    """The commands of a part of the page, by task."""
    [text] = re.findall(rf"^## {re.escape(part)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = {}
    for section in text.split("### ")[1:]:
        task, _, rest = section.partition("\n")
        found[task] = [line.strip() for line in rest.splitlines() if line.startswith("    ")]
    return found
