"""The tables printed at the end of the kernel tests: compared frames, and packets by scenario and
verdict.

Outcomes go in, lines come out. A file of the tests adds its outcomes; conftest prints whatever was
added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.kernel.comparison import Outcome
from tests.kernel.stage import Performance

FRAMES = "frames: an AF_PACKET socket and skbcapd at the same device"
PEOPLE = "processes: the name on each packet and its sender's own word"
SOAK = "soak: a daemon under processes, devices and reloads that come and go"
HEADERS = {
    FRAMES: ("case", "sent", "AF_PACKET", "ours", "identical", "named right", "unknown", "wrong"),
    SOAK: ("seconds", "reloads", "files", "packets", "lost", "KiB, first third", "second", "last"),
    PEOPLE: ("scenario", "packets", "right", "unknown", "wrong", "unknown allowed"),
}

_rows: dict[str, list[tuple[str, ...]]] = {title: [] for title in HEADERS}


def add(outcomes: Iterable[Outcome], place: str = "") -> None:
    """Add a row per outcome; `place` is where the frames were captured, if it is not the usual one."""
    for outcome in outcomes:
        labels = outcome.labels()
        sent = outcome.case.frames
        _rows[FRAMES].append(
            (
                ", ".join(filter(None, (outcome.case.name, outcome.direction, place))),
                f"{outcome.case.size} B" if sent is None else str(sent),
                *map(str, (len(outcome.reference), len(outcome.ours), outcome.identical)),
                *(str(labels[verdict]) for verdict in ("right", "unknown", "wrong")),
            )
        )


def add_row(name: str, sent: str, reference: int, ours: int, identical: int) -> None:
    """Add a row without names."""
    _rows[FRAMES].append((name, sent, str(reference), str(ours), str(identical), "", "", ""))


def add_soak(*figures: float) -> None:
    """Add the row of a soak."""
    _rows[SOAK].append(tuple(f"{figure:.0f}" for figure in figures))


def add_played(performance: Performance, where: str = "") -> None:
    """Add a row per scenario of attribution; `where` is a prefix of their names."""
    for played in performance.played:
        verdicts = played.verdicts
        counts = (verdicts.packets, verdicts.right, verdicts.unknown, verdicts.wrong, played.allowed)
        _rows[PEOPLE].append((where + played.scenario.name, *map(str, counts)))


def tables() -> Iterator[tuple[str, list[str]]]:
    """Give each table that has rows: its title, and its lines as text."""
    for title, rows in _rows.items():
        if rows:
            yield title, _lines([HEADERS[title], *rows])


def _lines(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
