"""The table of faults, printed at the end of a run: what was done to a writer, and what became of its packets.

Rows go in from any test, lines come out.
"""

from __future__ import annotations

HEADER = ("fault", "tries", "packets flushed", "readable", "lost of those")

_rows: list[tuple[str, ...]] = []


def add(fault: str, tries: int, flushed: int, readable: int, lost: int) -> None:
    """Add a row.

    Args:
        fault: what was done.
        tries: how often.
        flushed: packets that the writer had handed to the kernel, or said that it had written.
        readable: packets in files afterwards, as an independent reader sees them; also such as were not flushed.
        lost: of the flushed ones, how many are not readable.
    """
    _rows.append((fault, *map(str, (tries, flushed, readable, lost))))


def lines() -> list[str]:
    """Give the table as text; nothing when no row was added."""
    if not _rows:
        return []
    widths = [max(map(len, column)) for column in zip(HEADER, *_rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (HEADER, *_rows)]
