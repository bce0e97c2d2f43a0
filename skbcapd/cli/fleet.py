"""`skbcapd fleet`: one table of the indexes of many hosts: make it, ask it, get the packets.

The rule: its libraries are imported when a command runs. Who does not use it needs none of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.cli import selecting
from skbcapd.errors import SkbcapdError, UsageError

if TYPE_CHECKING:
    from skbcapd.fleet.engines import Engine

_LIBRARIES = ("duckdb", "fsspec", "pyarrow")
_ACTIONS = ("compact", "query", "extract")
_FORMATS = ("table", "json", "csv")
_NAMES = ("sums", "rows", "ecs", "ocsf", "zeek")


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "action",
        choices=_ACTIONS,
        help="compact: add the index files that have arrived to the table. query: print which processes exchanged "
        "packets with whom. extract: write the selected packets of all hosts to one file",
    )
    command.add_argument(
        "storage", metavar="URL", help="where index/raw and index/day are: a directory, or s3://BUCKET"
    )
    command.add_argument(
        "--replace", action="store_true", help="compact: an index file that has changed replaces what is in the table"
    )
    command.add_argument("--format", choices=_FORMATS, default=None, help="query: default table")
    command.add_argument(
        "--names",
        choices=_NAMES,
        default=None,
        help="query: sums for each process and peer (default); rows; or rows with the names of ECS, OCSF or Zeek",
    )
    command.add_argument("-w", dest="file", metavar="OUT", type=Path, help="extract: file to write; -: standard output")
    command.add_argument(
        "--captures",
        metavar="TEMPLATE",
        default=None,
        help="extract: URL of a capture file, with {host}, {directory} and {file}; default: "
        "URL/captures/{directory}/{file}",
    )
    command.add_argument("--filter", metavar="FILTER", default=None, help="extract: packet filter as in tcpdump")
    group = command.add_argument_group(
        "selectors", "query, extract: each can be repeated: one must match. Of different ones, all must."
    )
    selecting.add_host(group)
    selecting.add_all(group)
    added = group._group_actions  # noqa: SLF001  argparse has no other list of them
    command.set_defaults(selectors={action.dest: action.option_strings[0] for action in added})


def run(options: argparse.Namespace) -> int:
    """Run an action; 1 if a file could not be used.

    Raises:
        UsageError: an option is for another action.
        SkbcapdError: the libraries are not installed.
    """
    for dest, name, *actions in (
        ("replace", "--replace", "compact"),
        ("format", "--format", "query"),
        ("names", "--names", "query"),
        ("file", "-w", "extract"),
        ("captures", "--captures", "extract"),
        ("filter", "--filter", "extract"),
        *((dest, name, "query", "extract") for dest, name in options.selectors.items()),
    ):
        if getattr(options, dest) and options.action not in actions:
            raise UsageError(f"{name} with fleet {options.action}; expected it with fleet {' or '.join(actions)} only")
    if options.action == "extract" and options.file is None:
        raise UsageError("fleet extract without -w; expected a file to write", "-w OUT.pcapng; -w - is standard output")
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise SkbcapdError(f"fleet: {', '.join(missing)} not installed", "docs/fleet.md shows how to install them")
    return {"compact": _compact, "query": _query, "extract": _extract}[options.action](options)


def _compact(options: argparse.Namespace) -> int:
    from skbcapd.fleet.compaction import compact  # noqa: PLC0415  as said above
    from skbcapd.fleet.storage import Storage  # noqa: PLC0415

    report = compact(Storage(options.storage), replaces=options.replace)
    for line in (*report.said, *report.wrong):
        print(f"skbcapd: {line}", file=sys.stderr)
    print(
        f"skbcapd: {report.files} index files with {report.rows} rows added; {report.parts} parts written "
        f"({report.bytes} bytes)",
        file=sys.stderr,
    )
    return int(bool(report.wrong))


def _engine(url: str, selectors: Selectors) -> Engine:
    from skbcapd.fleet import table  # noqa: PLC0415
    from skbcapd.fleet.engines import DuckDB  # noqa: PLC0415
    from skbcapd.fleet.questions import span_us  # noqa: PLC0415
    from skbcapd.fleet.storage import Storage  # noqa: PLC0415

    storage = Storage(url)
    storage.expect_there()
    return DuckDB(storage, table.parts(storage, *span_us(selectors)))


def _query(options: argparse.Namespace) -> int:
    from skbcapd.fleet import answer  # noqa: PLC0415
    from skbcapd.fleet.names import NAMES  # noqa: PLC0415
    from skbcapd.fleet.questions import Questions  # noqa: PLC0415

    chosen = selecting.selectors_of(options)
    with Questions(_engine(options.storage, chosen), chosen, options.hosts) as questions:
        columns, lines = questions.answer(NAMES[options.names or "sums"])
    answer.write(options.format or "table", columns, lines, sys.stdout)
    return 0


def _extract(options: argparse.Namespace) -> int:
    from skbcapd.fleet import extraction  # noqa: PLC0415
    from skbcapd.fleet.questions import Questions  # noqa: PLC0415

    chosen = replace(selecting.selectors_of(options), expression=options.filter or "")
    # Names of interfaces have the host in front in the result; the rows are those of the selected ones.
    selection = Selection(replace(chosen, interfaces=()))
    base = options.storage.rstrip("/").replace("{", "{{").replace("}", "}}")
    captures = extraction.Captures(options.captures or f"{base}/{extraction.CAPTURES}")
    with Questions(_engine(options.storage, chosen), chosen, options.hosts) as questions:
        rows = questions.rows()
    said, wrong = extraction.extract(rows, captures, selection, options.file)
    counts = captures.counts
    said.append(f"{counts.opened} ranges, {counts.bytes} of {captures.size} bytes read")
    if str(options.file) == "-":
        said = []
    for line in (*said, *wrong):
        print(f"skbcapd: {line}", file=sys.stderr)
    return int(bool(wrong))
