"""Prints an answer: a table for people, JSON or CSV.

In: names of columns, and lines of values. Out: text; untrusted text is escaped.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO, Any

from skbcapd.text_safety import escaped

FORMATS = ("table", "json", "csv")


def write(form: str, columns: Sequence[str], lines: Sequence[Sequence[Any]], into: IO[str]) -> None:
    """Print an answer.

    Args:
        form: one of FORMATS; json: an object on each line.
        columns: their names.
        lines: values.
        into: where to.
    """
    texts = [[_plain(value) for value in line] for line in lines]
    if form == "json":
        for line in texts:
            into.write(json.dumps(dict(zip(columns, line, strict=True))) + "\n")
    elif form == "csv":
        writer = csv.writer(into, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(texts)
    elif lines:
        rows = [list(columns), *([_cell(value) for value in line] for line in texts)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        numbers = [all(isinstance(value, int | None) for value in column) for column in zip(*texts, strict=True)]
        for row in rows:
            cells = (
                cell.rjust(width) if is_number else cell.ljust(width)
                for cell, width, is_number in zip(row, widths, numbers, strict=True)
            )
            into.write("  ".join(cells).rstrip() + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return value


def _cell(value: Any) -> str:
    return "-" if value is None else escaped(str(value))
