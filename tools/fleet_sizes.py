"""The computed section of docs/fleet.md, and what it is computed from.

    python3 -m tools.fleet_sizes               prints the section; a test compares it with the page
    python3 -m tools.fleet_sizes --measure     measures the constants below, in two minutes and 1 GB of TMPDIR

In: what was measured, below. Out: sizes, files and times of fleets that nobody has here.

The rule: no number of that section is written by hand.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# Measured (--measure) on one of two busy processors, 29 Nov 2026: captures in blocks of 750 bytes, of hosts with 150
# flows at a time.
FILE_BYTES = 107.6e6
ROWS_OF_FILE = 15_400
INDEX_BYTES_OF_ROW = 34  # in an index file
TABLE_BYTES_OF_ROW = 18  # in the table
SOURCE_BYTES = 77  # of an index file in the list of sources of a manifest
ROWS_PER_CPU_S = 80_000  # that are compacted
# Of the code; tests compare them.
PART_BYTES = 192 << 20  # after which the next part begins

HOURS, DAYS = 24, 365
FLEETS = ((100, 1), (100, 10), (1_000, 1), (1_000, 10), (10_000, 1), (10_000, 10), (10_000, 100))
"""Hosts, and GB of capture per host and day."""
HEADS = (
    *("hosts", "capture per host and day", "captures a day", "index files a day", "index a day"),
    *("table a day", "table a year", "parts of an hour", "compaction a day"),
)
TEXT = """\
Computed by `tools/fleet_sizes.py` from what was measured with captures of {file} each, in blocks of
750 bytes, of hosts with 150 flows at a time: {rows:,} rows of index for each capture; a row has
{index_row} bytes in an index file ({index:.2f} % of the capture) and {table_row} bytes in the table
({table:.2f} %); {rate:,} rows are compacted per CPU second, on a busy machine. What is kept for a
year is the table, not the captures. The trial above has smaller captures, whose index is larger.

{lines}

What to change when:

- A query of some minutes opens the parts of one or two hours, and reads the row groups that can
  have the peer. A query of a year opens all parts: {year:,} or more, {parts_year:,} at 10,000 hosts
  and 1 GB per host and day. Query one day at a time, or give the parts to an engine that plans with
  their statistics ([Iceberg](#other-engines)).
- Only one compaction runs at a time, mostly on one processor. At 10,000 hosts, it is busy for
  {busy:.0f} % of the time with 1 GB per host and day, and for {busy_10:.0f} % with 10 GB. Before 50 %,
  split the hosts into several storages ({storages} for the last line of the table), and query each
  of them.
- Each compaction reads and writes the list of sources of the day, with {sources_1} for {files_1}
  index files, and {sources_10} for {files_10}: compact once an hour, not each minute.
- At 100 GB per host and day, capture less: [rules](recipes.md) and headers only (`payload`).
"""


class Day(NamedTuple):
    """What a fleet makes each day.

    Args:
        captures: bytes.
        files: index files.
        rows: of the index.
        index_bytes: of the index files.
        table: bytes of the parts.
        parts_of_hour: at least one; more if an hour has more than a part can have.
        compaction_s: seconds of CPU time.
        sources: bytes of the list of sources.
    """

    captures: float
    files: float
    rows: float
    index_bytes: float
    table: float
    parts_of_hour: int
    compaction_s: float
    sources: float


def day(hosts: int, gigabytes: float) -> Day:
    """Compute a day.

    Args:
        hosts: how many.
        gigabytes: of capture per host and day.
    """
    captures = hosts * gigabytes * 1e9
    files = captures / FILE_BYTES
    rows = files * ROWS_OF_FILE
    table = rows * TABLE_BYTES_OF_ROW
    parts = math.ceil(table / HOURS / PART_BYTES)
    index, sources = rows * INDEX_BYTES_OF_ROW, files * SOURCE_BYTES
    return Day(captures, files, rows, index, table, parts, rows / ROWS_PER_CPU_S, sources)


def size(of: float) -> str:
    """Bytes as text, with two digits."""
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if of >= 0.95 * unit:
            return f"{digits(of / unit)} {name}"
    return f"{of:.0f} B"


def duration(seconds: float) -> str:
    """CPU time as text."""
    return f"{digits(seconds / 60)} CPU minutes" if seconds < 5400 else f"{digits(seconds / 3600)} CPU hours"


def digits(number: float) -> str:
    """A number with two digits."""
    if number < 10:
        return f"{number:.1f}".removesuffix(".0")
    return f"{round(number, 1 - math.floor(math.log10(number))):,.0f}"


def section() -> str:
    """The section, as Markdown."""
    lines = [f"| {' | '.join(HEADS)} |", "|" + "-|" * len(HEADS)]
    for hosts, gigabytes in FLEETS:
        made = day(hosts, gigabytes)
        cells = [f"{hosts:,}", f"{gigabytes} GB", size(made.captures), digits(made.files), size(made.index_bytes)]
        cells += [size(made.table), size(made.table * DAYS), str(made.parts_of_hour), duration(made.compaction_s)]
        lines.append(f"| {' | '.join(cells)} |")
    one, ten, most = day(10_000, 1), day(10_000, 10), day(*FLEETS[-1])
    return TEXT.format(
        file=size(FILE_BYTES),
        rows=ROWS_OF_FILE,
        index_row=INDEX_BYTES_OF_ROW,
        index=100 * one.index_bytes / one.captures,
        table_row=TABLE_BYTES_OF_ROW,
        table=100 * one.table / one.captures,
        rate=ROWS_PER_CPU_S,
        lines="\n".join(lines),
        year=HOURS * DAYS,
        parts_year=HOURS * DAYS * one.parts_of_hour,
        busy=100 * one.compaction_s / 86_400,
        busy_10=100 * ten.compaction_s / 86_400,
        storages=math.ceil(2 * most.compaction_s / 86_400),  # half of the time is left for what arrives late
        sources_1=size(one.sources),
        files_1=digits(one.files),
        sources_10=size(ten.sources),
        files_10=digits(ten.files),
    )


def measure(place: Path, hosts: int = 4, files: int = 2, packets: int = 139_000) -> dict[str, float]:
    """Measure the constants.

    Args:
        place: an empty directory.
        hosts: of the fleet that is made.
        files: of each host.
        packets: of each file.
    """
    # The libraries of `skbcapd fleet`, which the section does not need.
    from skbcapd.fleet import index_file, table  # noqa: PLC0415
    from skbcapd.fleet.compaction import compact  # noqa: PLC0415
    from skbcapd.fleet.intake import RAW  # noqa: PLC0415
    from skbcapd.fleet.storage import Storage  # noqa: PLC0415
    from tools import synthetic_fleet  # noqa: PLC0415

    synthetic_fleet.make(place, hosts, files, packets, flows=150)
    captures = sorted((place / "captures").rglob("*.pcapng"))
    storage = Storage(str(place))
    index, reports = 0, []
    for capture in captures:
        error = index_file.write(capture, capture.parts[-3].removeprefix("host="))
        if error:
            raise error
        made = index_file.path_of(capture)
        target = place / RAW / capture.parent.relative_to(place / "captures") / made.name
        target.parent.mkdir(parents=True, exist_ok=True)
        index += made.stat().st_size
        made.replace(target)
        if capture == captures[0]:  # not measured: libraries are loaded
            reports.append(compact(storage))
    begin_s = time.process_time()
    reports.append(compact(storage))
    seconds = time.process_time() - begin_s
    rows = sum(report.rows for report in reports)
    sources = max((place / table.TABLE / "manifest").glob("*.sources-*")).read_bytes()
    return {
        "FILE_BYTES": sum(capture.stat().st_size for capture in captures) / len(captures),
        "ROWS_OF_FILE": rows / len(captures),
        "INDEX_BYTES_OF_ROW": index / rows,
        "TABLE_BYTES_OF_ROW": reports[-1].bytes / rows,
        "SOURCE_BYTES": len(sources) / len(captures),
        "ROWS_PER_CPU_S": reports[-1].rows / seconds,
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.fleet_sizes")
    parser.add_argument("--measure", action="store_true")
    if not parser.parse_args().measure:
        print(section(), end="")
        return
    with tempfile.TemporaryDirectory(prefix="skbcapd-fleet-") as place:
        for name, value in measure(Path(place)).items():
            print(f"{name} = {value:,.1f}")


if __name__ == "__main__":
    main()
