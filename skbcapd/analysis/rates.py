"""`skbcapd top` without files: what processes send and receive now, second by second.

In: intervals of a running daemon (`live`). Out: one report for each, as lines for people or as JSON.

The rule not to break: a rate is never estimated. If packets were left out, the report says how much of
the capture it has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from skbcapd.analysis.account import PEER, Account, Process
from skbcapd.analysis.drops import COLUMNS, DropAccount, DropRow, cells
from skbcapd.analysis.live import Interval
from skbcapd.analysis.names import Names
from skbcapd.analysis.selectors import Selection
from skbcapd.analysis.sources import Sources, Timed
from skbcapd.analysis.top import aligned, facts, identity, peer_facts
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.flows import Counted
from skbcapd.pcapng.live import Mark

_Row = TypeVar("_Row")
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
class Report(Generic[_Row]):
    """One interval.

    Args:
        rows: processes, or other values that packets were added up by; or dropped packets.
        mark: duration, and what was left out.
        at_s: when it was made, seconds since 1970 UTC.
    """

    rows: Sequence[_Row]
    mark: Mark
    at_s: float

    @property
    def seconds(self) -> float:
        """Its duration."""
        return max(1, self.mark.duration_ns) / 1e9


class View(Protocol[_Row]):
    """Makes reports, and text of them."""

    def report(self, interval: Interval) -> Report[_Row]:
        """Add up an interval, and close it.

        Raises:
            FileError: the daemon has sent something else than packets.
        """

    def lines(self, report: Report[_Row], order: str = "bytes", most: int = _ROWS) -> Iterator[str]:
        """A report for people: sums, then a table.

        Args:
            report: the report.
            order: one of ORDERS.
            most: number of rows.
        """

    def as_json(self, report: Report[_Row]) -> str:
        """A report as one line of JSON; docs/tools.md has its keys."""


def _read(
    interval: Interval,
    selection: Selection,
    read: Callable[[Iterable[Timed]], None],
    counted: Counted | None = None,
) -> None:
    """Have the selected packets of an interval read, except those that are counted, and close it; see `report`."""
    with interval.file:
        if not interval.is_empty:
            sources = Sources([interval.path], selection, counted=counted)
            read(sources.unordered())
            for error in sources.wrong:
                raise error


class Rates:
    """A view of what processes send and receive.

    Args:
        by: what packets are added up by; see `account`.
        selection: which packets.
        has_names: whether peers have names: those that were seen since the view began.
    """

    def __init__(self, by: str, selection: Selection, *, has_names: bool) -> None:
        self._by, self._selection = by, selection
        self._names = Names() if has_names else None

    def report(self, interval: Interval) -> Report[Process]:
        """Add up an interval, and close it; see `View`."""
        account = Account(self._by, self._names, has_drops=self._selection.is_of_drops)
        _read(interval, self._selection, account.read, account.counted)
        return Report(account.processes, interval.mark, time.time())

    def lines(self, report: Report[Process], order: str = "bytes", most: int = _ROWS) -> Iterator[str]:
        """A report for people; see `View`."""
        yield _head(report)
        if left_out := _left_out(report.mark):
            yield left_out
        rows = sorted(report.rows, key=ORDERS[order], reverse=True)
        heading = "PROCESS" if self._by == "tgid" else self._by.upper()
        headings = ("TGID", heading, "PACKETS/S", "SENT/S", "RECEIVED/S", "PROCESSES" if self._by == PEER else "PEERS")
        yield from aligned([headings, *(self._row(process, report.seconds) for process in rows[:most])], _NUMBERS)
        if len(rows) > most:
            yield f"... and {len(rows) - most} more\n"

    def as_json(self, report: Report[Process]) -> str:
        """A report as one line of JSON."""
        rows = [
            facts(process, self._by)
            | {
                "comms": process.comms,
                "peers": [peer_facts(address, peer, self._names) for address, peer in process.busiest()],
            }
            for process in report.rows
        ]
        return _json(report, rows)

    def _row(self, process: Process, seconds: float) -> tuple[str, ...]:
        tgid, name, last = identity(process, self._by, self._names)
        sent, received = process.by_direction[DIRECTION_OUT][1], process.by_direction[DIRECTION_IN][1]
        rates = (f"{number / seconds:,.0f}" for number in (process.packets, sent, received))
        return (tgid, name, *rates, last)


class DropRates:
    """A view of the packets that the kernel drops.

    Args:
        selection: which packets.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection

    def report(self, interval: Interval) -> Report[DropRow]:
        """Add up an interval, and close it; see `View`."""
        account = DropAccount()
        _read(interval, self._selection, account.read)
        return Report(account.rows, interval.mark, time.time())

    def lines(self, report: Report[DropRow], order: str = "packets", most: int = _ROWS) -> Iterator[str]:
        """A report for people, sorted by packets or else by bytes; see `View`."""
        seconds, packets = report.seconds, sum(row.packets for row in report.rows)
        yield f"{_clock(report)}  {packets / seconds:,.0f} dropped packets/s\n"
        if left_out := _left_out(report.mark):
            yield left_out
        rows = report.rows if order == "packets" else sorted(report.rows, key=lambda row: (not row.is_loss, -row.bytes))
        headings = ("PACKETS/S", "BYTES/S", *COLUMNS)
        rates = ((f"{row.packets / seconds:,.0f}", f"{row.bytes / seconds:,.0f}", *cells(row)) for row in rows[:most])
        yield from aligned([headings, *rates], {"PACKETS/S", "BYTES/S", "TGID"})
        if len(rows) > most:
            yield f"... and {len(rows) - most} more\n"

    def as_json(self, report: Report[DropRow]) -> str:
        """A report as one line of JSON."""
        return _json(report, [row.facts() for row in report.rows])


def _json(report: Report[_Row], rows: Sequence[dict[str, object]]) -> str:
    whole = {
        "time_s": round(report.at_s, 3),
        "seconds": report.seconds,
        "left_out": _share(report.mark),
        "rows": rows,
    }
    return json.dumps(whole) + "\n"


def _clock(report: Report[_Row]) -> str:
    return time.strftime("%H:%M:%S", time.localtime(report.at_s))


def _head(report: Report[Process]) -> str:
    sent, received = (
        sum(process.by_direction[way][1] for process in report.rows) for way in (DIRECTION_OUT, DIRECTION_IN)
    )
    packets, seconds = sum(process.packets for process in report.rows), report.seconds
    return (
        f"{_clock(report)}  {packets / seconds:,.0f} packets/s, "
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
