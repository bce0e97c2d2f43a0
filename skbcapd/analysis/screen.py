"""The screen of `skbcapd top` without files: a table that is replaced every second, and keys.

In: reports, keys. Out: the last report on the terminal, sorted as the user likes.

The rule not to break: the terminal is restored, whatever happens.
"""

from __future__ import annotations

import contextlib
import curses
from collections.abc import Iterator
from typing import TypeVar

from skbcapd.analysis.live import Intervals
from skbcapd.analysis.rates import Report, View

_Row = TypeVar("_Row")
_POLL_MS = 50
_KEYS = {"b": "bytes", "s": "sent", "r": "received", "p": "packets"}
_HELP = "sort: b bytes  s sent  r received  p packets   space stop/go on   q quit"
_LINES = 4  # head, what was left out, headings, help


@contextlib.contextmanager
def opened() -> Iterator[curses.window]:
    """The terminal as a screen.

    Raises:
        curses.error: it cannot be one.
    """
    window = curses.initscr()
    try:
        curses.noecho()
        curses.cbreak()
        with contextlib.suppress(curses.error):  # a terminal without a cursor that can be hidden
            curses.curs_set(0)
        window.timeout(_POLL_MS)
        yield window
    finally:
        curses.endwin()


def show(window: curses.window, intervals: Intervals, view: View[_Row], count: int | None) -> None:
    """Show reports until the user quits, or until there were `count` of them.

    Raises:
        FileError: the daemon has ended.
    """
    report: Report[_Row] | None = None
    order, is_stopped, shown = "bytes", False, 0
    _draw(window, ["waiting for packets of the first second"], order)
    while count is None or shown < count:
        is_new = False
        if interval := intervals.next(0):
            found = view.report(interval)
            shown += 1
            if not is_stopped:
                report, is_new = found, True
        key = window.getch()
        letter = chr(key) if 0 <= key < 128 else ""
        if letter in {"q", "\x1b"}:
            return
        if letter == " ":
            is_stopped = not is_stopped
        order = _KEYS.get(letter, order)
        if report is not None and (is_new or key != curses.ERR):
            most = max(1, window.getmaxyx()[0] - _LINES)
            _draw(window, list(view.lines(report, order, most)), order, is_stopped=is_stopped)


def _draw(window: curses.window, lines: list[str], order: str, *, is_stopped: bool = False) -> None:
    """Replace everything; what does not fit is cut."""
    height, width = window.getmaxyx()
    window.erase()
    state = " (stopped)" if is_stopped else ""
    with contextlib.suppress(curses.error):  # the terminal has become smaller in between
        for row, line in enumerate(lines[: height - 1]):
            window.addnstr(row, 0, line.rstrip("\n"), width - 1)
        window.addnstr(height - 1, 0, f"sorted by {order}{state}   {_HELP}", width - 1, curses.A_REVERSE)
    window.refresh()
