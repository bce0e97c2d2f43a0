"""`skbcapd top` without files: what processes send and receive now, second by second.

In: intervals of a running daemon (`live`). Out: one report for each, as lines for people or as JSON.

The rule not to break: a rate is never estimated. If packets were left out, the report says how much of
the capture it has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from skbcapd.analysis.account import PEER, Account, Process
from skbcapd.analysis.live import Interval
from skbcapd.analysis.names import Names
from skbcapd.analysis.selectors import Selection
from skbcapd.analysis.sources import Sources
from skbcapd.analysis.top import aligned, facts, identity, peer_facts
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.live import Mark

_NUMBERS = {"TGID", "PACKETS/S", "SENT/S", "RECEIVED/S"}
_ROWS = 20  # of a report that is not on a screen; JSON has all

ORDERS: dict[str, Callable[[Process], tuple[int, ...]]] = {
    "bytes": lambda process: (process.bytes,),
    "sent": lambda process: (process.by_direction[DIRECTION_OUT][1], process.bytes),
    "received": lambda process: (process.by_direction[DIRECTION_IN][1], process.bytes),
    "packets": lambda process: (process.packets, process.bytes),
}
"""What rows can be sorted by, the largest first."""


@dataclass(frozen=True, slots=True)
class Report:
    """One interval.

    Args:
        rows: processes, or other values that packets were added up by.
        mark: duration, and what was left out.
        at_s: when it was made, seconds since 1970 UTC.
    """

    rows: Sequence[Process]
    mark: Mark
    at_s: float

    @property
    def seconds(self) -> float:
        """Its duration."""
        return max(1, self.mark.duration_ns) / 1e9


class Rates:
    """Makes reports.

    Args:
        by: what packets are added up by; see `account`.
        selection: which packets.
        has_names: whether peers have names: those that were seen since the view began.
    """

    def __init__(self, by: str, selection: Selection, *, has_names: bool) -> None:
        self._by, self._selection = by, selection
        self._names = Names() if has_names else None

    def report(self, interval: Interval) -> Report:
        """Add up an interval, and close it.

        Raises:
            FileError: the daemon has sent something else than packets.
        """
        account = Account(self._by, self._names)
        with interval.file:
            if not interval.is_empty:
                sources = Sources([interval.path], self._selection)
                account.read(sources.unordered())
                for error in sources.wrong:
                    raise error
        return Report(account.processes, interval.mark, time.time())

    def lines(self, report: Report, order: str = "bytes", most: int = _ROWS) -> Iterator[str]:
        """A report for people: sums, then a table.

        Args:
            report: the report.
            order: one of ORDERS.
            most: number of rows.
        """
        yield _head(report)
        if left_out := _left_out(report.mark):
            yield left_out
        rows = sorted(report.rows, key=ORDERS[order], reverse=True)
        heading = "PROCESS" if self._by == "tgid" else self._by.upper()
        headings = ("TGID", heading, "PACKETS/S", "SENT/S", "RECEIVED/S", "PROCESSES" if self._by == PEER else "PEERS")
        yield from aligned([headings, *(self._row(process, report.seconds) for process in rows[:most])], _NUMBERS)
        if len(rows) > most:
            yield f"... and {len(rows) - most} more\n"

    def as_json(self, report: Report) -> str:
        """A report as one line of JSON; docs/tools.md has its keys."""
        rows = [
            facts(process, self._by)
            | {
                "comms": process.comms,
                "peers": [peer_facts(address, peer, self._names) for address, peer in process.busiest()],
            }
            for process in report.rows
        ]
        mark = report.mark
        whole = {"time_s": round(report.at_s, 3), "seconds": report.seconds, "left_out": _share(mark), "rows": rows}
        return json.dumps(whole) + "\n"

    def _row(self, process: Process, seconds: float) -> tuple[str, ...]:
        tgid, name, last = identity(process, self._by, self._names)
        sent, received = process.by_direction[DIRECTION_OUT][1], process.by_direction[DIRECTION_IN][1]
        rates = (f"{number / seconds:,.0f}" for number in (process.packets, sent, received))
        return (tgid, name, *rates, last)


def _head(report: Report) -> str:
    sent, received = (
        sum(process.by_direction[way][1] for process in report.rows) for way in (DIRECTION_OUT, DIRECTION_IN)
    )
    packets, seconds = sum(process.packets for process in report.rows), report.seconds
    return (
        f"{time.strftime('%H:%M:%S', time.localtime(report.at_s))}  {packets / seconds:,.0f} packets/s, "
        f"{sent / seconds:,.0f} bytes/s sent, {received / seconds:,.0f} bytes/s received\n"
    )


def _share(mark: Mark) -> float:
    """The part of the capture that was left out, 0 to 1."""
    return round(mark.left_out / whole, 4) if (whole := mark.passed + mark.left_out) else 0.0


def _left_out(mark: Mark) -> str:
    if not mark.left_out:
        return ""
    share = 100 * _share(mark)
    return f"left out: {share:.1f} % of the captured bytes, because they came too fast: rates are too low\n"
