"""`skbcapd top --drops`: which packets the kernel has dropped, why, where, and whose they were.

In: packets of the interfaces `drops@NAME` in capture files; packets of other interfaces are passed over. Out: a table,
JSON or CSV.

The rules: names are escaped, whatever is in the file. Memory is bounded: beyond the limit below, new rows are added up
as "others".
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skbcapd.analysis.selectors import Selection
from skbcapd.analysis.sources import Timed
from skbcapd.analysis.top import aligned, defused, print_all, read_all, utc
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT, IF_NAME
from skbcapd.pcapng.interface import NO_LOSS
from skbcapd.pcapng.reader import Interface, Stamp
from skbcapd.text_safety import escaped_bytes

_ROWS_MAX = 1 << 16
_TEXT_MAX = 64  # characters of a name in the table; JSON and CSV have all
_DIRECTIONS = {DIRECTION_IN: "in", DIRECTION_OUT: "out"}
COLUMNS = ("REASON", "DIRECTION", "INTERFACE", "TGID", "PROCESS", "AT")
"""The headings of `cells`."""
_HEADINGS = ("PACKETS", "BYTES", *COLUMNS, "FIRST (UTC)", "LAST (UTC)")
_NUMBERS = {"PACKETS", "BYTES", "TGID"}
_OTHERS = Stamp(via=b"others")


@dataclass(eq=False, slots=True)
class DropRow:
    """Dropped packets with the same reason, interface, direction, process and function.

    Args:
        stamp: of the first one.
        interface: name of the interface in the file, which has the network namespace: drops@host.
        packets: their number.
        bytes: of complete frames.
        first_ns: time of the first one, nanoseconds since 1970 UTC.
        last_ns: time of the last one.
    """

    stamp: Stamp
    interface: bytes
    packets: int
    bytes: int
    first_ns: int
    last_ns: int

    @property
    def is_loss(self) -> bool:
        """Whether somebody has lost them."""
        return self.stamp.drop is None or escaped_bytes(self.stamp.drop) not in NO_LOSS

    def facts(self) -> dict[str, object]:
        """The values of JSON and CSV; docs/tools.md has the keys."""
        stamp = self.stamp
        return {
            "reason": _text(stamp.drop),
            "loss": self.is_loss,
            "interface": escaped_bytes(self.interface),
            "direction": _DIRECTIONS.get(stamp.direction),
            "tgid": stamp.tgid,
            "process": _text(stamp.name),
            "via": _text(stamp.via),
            "at": _text(stamp.at),
            "packets": self.packets,
            "bytes": self.bytes,
            "first": utc(self.first_ns),
            "last": utc(self.last_ns),
        }


def command(options: argparse.Namespace, files: Sequence[Path], selection: Selection) -> int:
    """Print the rows; 1 if a file could not be read to its end."""
    account = DropAccount()
    wrong = read_all(files, selection, account.read)
    write = as_json if options.json else as_csv if options.csv else as_table
    print_all(write(account.rows))
    for error in wrong:
        print(f"skbcapd: {error}", file=sys.stderr)
    return int(bool(wrong))


class DropAccount:
    """Adds up dropped packets.

    Args:
        rows_max: number of rows; the packets of further ones are added up in one.
    """

    def __init__(self, rows_max: int = _ROWS_MAX) -> None:
        self._rows: dict[object, DropRow] = {}
        self._rows_max = rows_max

    @property
    def rows(self) -> list[DropRow]:
        """All rows: losses first, then those with most packets."""
        return sorted(self._rows.values(), key=lambda row: (not row.is_loss, -row.packets, row.first_ns))

    def read(self, packets: Iterable[Timed]) -> None:
        """Add the dropped ones of these packets."""
        current, name = None, b""
        for time_ns, (interface, stamp, _, wire_len, _, _) in packets:
            if not interface.is_of_drops:
                continue
            if interface is not current:
                current, name = interface, _name(interface)
            row = self._row(stamp, name, time_ns)
            row.packets += 1
            row.bytes += wire_len
            row.first_ns, row.last_ns = min(row.first_ns, time_ns), max(row.last_ns, time_ns)

    def _row(self, stamp: Stamp, interface: bytes, time_ns: int) -> DropRow:
        """The row of a packet; new if needed."""
        key: object = (stamp.drop, interface, stamp.direction, stamp.tgid, stamp.name, stamp.via, stamp.at)
        row = self._rows.get(key)
        if row is None and len(self._rows) >= self._rows_max:
            stamp, interface, key = _OTHERS, b"", None
            row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = DropRow(stamp, interface, 0, 0, time_ns, time_ns)
        return row


def as_table(rows: Sequence[DropRow]) -> Iterator[str]:
    """Write a table."""
    whole = ((str(row.packets), str(row.bytes), *cells(row), *_times(row)) for row in rows)
    yield from aligned([_HEADINGS, *whole], _NUMBERS)


def as_json(rows: Sequence[DropRow]) -> Iterator[str]:
    """Write a list with one object per row."""
    yield "["
    for number, row in enumerate(rows):
        yield (",\n" if number else "\n") + json.dumps(row.facts())
    yield "\n]\n" if rows else "]\n"


def as_csv(rows: Sequence[DropRow]) -> Iterator[str]:
    """Write a line of headings, and a line per row; text as in `top.as_csv`."""
    line = io.StringIO()
    headings = list(DropRow(Stamp(), b"", 0, 0, 0, 0).facts())
    yield ",".join(headings) + "\n"
    writer = csv.DictWriter(line, headings, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for row in rows:
        facts = row.facts() | {"loss": int(row.is_loss)}
        writer.writerow({key: defused(value) for key, value in facts.items()})
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def cells(row: DropRow) -> tuple[str, ...]:
    """What distinguishes a row, for people."""
    stamp = row.stamp
    name = f"via={escaped_bytes(stamp.via)}" if stamp.name is None and stamp.via is not None else _text(stamp.name)
    return (
        _short(_text(stamp.drop)) + ("" if row.is_loss else " (no loss)"),
        _DIRECTIONS.get(stamp.direction, "-"),
        _short(escaped_bytes(row.interface)),
        "-" if stamp.tgid is None else str(stamp.tgid),
        _short(name),
        _short(_text(stamp.at)),
    )


def _times(row: DropRow) -> Iterator[str]:
    return (utc(time_ns)[:-4].replace("T", " ") for time_ns in (row.first_ns, row.last_ns))


def _text(value: bytes | None) -> str | None:
    return None if value is None else escaped_bytes(value)


def _short(text: str | None) -> str:
    if text is None:
        return "-"
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 3] + "..."


def _name(interface: Interface) -> bytes:
    return next((value for code, value in interface.options() if code == IF_NAME), b"")
