"""The comparison's table, printed at the end of a run of the kernel tests.

Outcomes go in, lines come out. A file of the tests adds its outcomes; conftest prints whatever was added.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.kernel.comparison import Outcome

HEADER = ("case", "sent", "AF_PACKET", "ours", "identical", "named right", "unknown", "wrong")

_rows: list[tuple[str, ...]] = []


def add(outcomes: Iterable[Outcome], place: str = "") -> None:
    """Add a row per outcome; `place` is where the frames were taken, if it is not the usual one."""
    for outcome in outcomes:
        labels = outcome.labels()
        sent = outcome.case.frames
        _rows.append(
            (
                ", ".join(filter(None, (outcome.case.name, outcome.direction, place))),
                f"{outcome.case.size} B" if sent is None else str(sent),
                *map(str, (len(outcome.reference), len(outcome.ours), outcome.identical)),
                *(str(labels[verdict]) for verdict in ("right", "unknown", "wrong")),
            )
        )


def add_row(name: str, sent: str, reference: int, ours: int, identical: int) -> None:
    """Add a row that says nothing of names."""
    _rows.append((name, sent, str(reference), str(ours), str(identical), "", "", ""))


def lines() -> list[str]:
    """Give the table as text; nothing when no row was added."""
    if not _rows:
        return []
    widths = [max(map(len, column)) for column in zip(HEADER, *_rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (HEADER, *_rows)
    ]
