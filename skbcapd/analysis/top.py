"""`skbcapd top`: which process sent and received how much, as a table, JSON or CSV.

In: capture files, which `account` adds up. Out: text. Errors in a file are printed after the
result, on stderr; the packets before an error count.

The rules not to break: names and addresses are escaped (printable ASCII), whatever is in the file;
no cell of CSV is a formula for a spreadsheet; and output is written piece by piece.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from skbcapd.analysis.account import PEER, Account, Peer, Process
from skbcapd.analysis.names import Names
from skbcapd.analysis.peers import service_name
from skbcapd.analysis.progress import Progress
from skbcapd.analysis.selectors import Selection
from skbcapd.analysis.sources import Sources, Timed, expand
from skbcapd.errors import FileError
from skbcapd.output.block_writer import StandardOutput
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.flows import Counted
from skbcapd.text_safety import escaped_bytes

_HEADINGS = ("TGID", "PROCESS", "PACKETS", "BYTES", "SENT", "RECEIVED", "FIRST (UTC)", "LAST (UTC)", "PEERS")
_NUMBERS = {"TGID", "PACKETS", "BYTES", "SENT", "RECEIVED"}
_TABLE_PEERS, _CSV_PEERS = 3, 10  # the busiest ones; JSON has all
_TABLE_SERVICES = 2
_TABLE_NAME_MAX = 64  # characters; JSON and CSV have all
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def command(options: argparse.Namespace, files: Sequence[Path], selection: Selection) -> int:
    """Print which process sent and received how much; 1 if a file could not be read to its end."""
    names = None if options.no_names else Names()
    account = Account(options.by, names, has_drops=selection.is_of_drops)
    wrong = read_all(files, selection, account.read, account.counted)
    processes = account.processes
    write = as_json if options.json else as_csv if options.csv else as_table
    print_all(write(processes, options.by, names))
    for error in wrong:
        print(f"skbcapd: {error}", file=sys.stderr)
    if account.left_out:
        print(f"skbcapd: {account.left_out} dropped packets are left out: skbcapd top --drops", file=sys.stderr)
    elif processes and not any(process.says_anything for process in processes):
        print("skbcapd: no packet has a process; check that skbcapd wrote the files", file=sys.stderr)
    return int(bool(wrong))


def read_all(
    files: Sequence[Path],
    selection: Selection,
    read: Callable[[Iterable[Timed]], None],
    counted: Counted | None = None,
) -> Sequence[FileError]:
    """Have the selected packets of files read, with a progress bar, without those that are counted; returns the errors
    in files.
    """
    paths = expand(files)
    with Progress(paths, sys.stderr) as progress:
        sources = Sources(paths, selection, progress.next_file, counted=counted)
        read(sources.unordered())
    return sources.wrong


def print_all(texts: Iterable[str]) -> None:
    """Write a result to standard output."""
    output = StandardOutput()
    try:
        for text in texts:
            output.text.write(text)
    except BrokenPipeError:
        pass  # `top | head`: `close` reports no error, either
    finally:
        output.close()


def as_table(processes: Sequence[Process], by: str = "tgid", names: Names | None = None) -> Iterator[str]:
    """Write a table: sent and received bytes, and the busiest peers."""
    first, _, *others, last = _HEADINGS
    headings = (first, "PROCESS" if by == "tgid" else by.upper(), *others, "PROCESSES" if by == PEER else last)
    yield from aligned([headings, *(_row(process, by, names) for process in processes)], _NUMBERS)


def aligned(rows: Sequence[Sequence[str]], numbers: AbstractSet[str]) -> Iterator[str]:
    """Rows as lines of a table; numbers stand at the right.

    Args:
        rows: the headings, then the others.
        numbers: the headings of numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(rows[0], row, widths, strict=True)
        line = "  ".join(text.rjust(width) if head in numbers else text.ljust(width) for head, text, width in cells)
        yield line.rstrip() + "\n"


def identity(process: Process, by: str, names: Names | None) -> tuple[str, str, str]:
    """The texts of a row: process id, name, and peers; `--by peer` has the peer as the name, and its processes."""
    peers = [peer_text(address, peer, names) for address, peer in process.busiest(_TABLE_PEERS)]
    others = process.processes
    last = " ".join(others[:_TABLE_PEERS]) + more(len(others), _TABLE_PEERS)
    if by != PEER:
        last = ", ".join(peers) + more(len(process.peers), _TABLE_PEERS)
    return (
        "-" if process.tgid is None else str(process.tgid),
        (peers[0] if by == PEER and peers and process.via is None else label(process, by)) or "-",
        last,
    )


def _row(process: Process, by: str, names: Names | None) -> tuple[str, ...]:
    tgid, name, last = identity(process, by, names)
    return (
        tgid,
        name,
        str(process.packets),
        str(process.bytes),
        str(process.by_direction[DIRECTION_OUT][1]),
        str(process.by_direction[DIRECTION_IN][1]),
        utc(process.first_ns)[:-4].replace("T", " "),
        utc(process.last_ns)[:-4].replace("T", " "),
        last,
    )


def peer_text(address: bytes, peer: Peer, names: Names | None) -> str:
    """A peer for people: address, services, and its names."""
    known = names.of(address) if names else []
    services = [service_name(service) for service in peer.services]
    text = " ".join([str(ip_address(address)), *services[:_TABLE_SERVICES]]) + more(len(services), _TABLE_SERVICES)
    return text + (f" ({_short(known[0])}{more(len(known), 1)})" if known else "")


def label(process: Process, by: str) -> str:
    """The label of a row for people; empty if it has none."""
    if process.via is not None:
        return _short(f"via={escaped_bytes(process.via)}")
    if by != "tgid":
        return "" if process.value is None else _short(escaped_bytes(process.value))
    names = process.processes
    return _short(names[0]) + more(len(names), 1) if names else ""


def _short(text: str) -> str:
    return text if len(text) <= _TABLE_NAME_MAX else text[: _TABLE_NAME_MAX - 3] + "..."


def more(count: int, named: int) -> str:
    """How many there are besides those that are named: ` +2`; empty: none."""
    return f" +{count - named}" if count > named else ""


def as_json(processes: Sequence[Process], by: str = "tgid", names: Names | None = None) -> Iterator[str]:
    """Write a list with one object per process; docs/tools.md has its keys."""
    yield "["
    for number, process in enumerate(processes):
        text = json.dumps(facts(process, by) | {"comms": process.comms, "peers": []}, indent=2)
        yield (",\n" if number else "\n") + _indented(text.removesuffix("]\n}"))
        # A process can have very many peers.
        for place, (address, peer) in enumerate(process.busiest()):
            yield (",\n" if place else "\n") + _indented(json.dumps(peer_facts(address, peer, names), indent=2), 6)
        yield "\n    ]\n  }" if process.peers else "]\n  }"
    yield "\n]\n" if processes else "]\n"


def peer_facts(address: bytes, peer: Peer, names: Names | None) -> dict[str, object]:
    """A peer for JSON."""
    return {
        "address": str(ip_address(address)),
        "packets": peer.packets,
        "bytes": peer.bytes,
        "services": [service_name(service) for service in peer.services],
        "names": names.of(address) if names else [],
    }


def _indented(text: str, spaces: int = 2) -> str:
    return textwrap.indent(text, " " * spaces)


def as_csv(processes: Sequence[Process], by: str = "tgid", _names: Names | None = None) -> Iterator[str]:
    """Write a line of headings, and a line per process (RFC 4180, but with Unix line ends).

    Text is quoted; an apostrophe is put before text that a spreadsheet would read as a formula.

    Source: OWASP, "CSV Injection".
    """
    line = io.StringIO()
    headings = [*facts(Process(None, None, 0, 0), by), "peers", "busiest"]
    yield ",".join(headings) + "\n"
    writer = csv.DictWriter(line, headings, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    for process in processes:
        peers = " ".join(str(ip_address(address)) for address, _ in process.busiest(_CSV_PEERS))
        row = facts(process, by) | {"peers": len(process.peers), "busiest": peers}
        writer.writerow({key: defused(value) for key, value in row.items()})
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def defused(value: object) -> object:
    """A cell that no spreadsheet reads as a formula: an apostrophe is put before it if needed."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def facts(process: Process, by: str) -> dict[str, object]:
    """The values that JSON and CSV both have."""
    sent, received = process.by_direction[DIRECTION_OUT], process.by_direction[DIRECTION_IN]
    value = {by: None if process.value is None else escaped_bytes(process.value)} if by != "tgid" else {}
    return {
        "tgid": process.tgid,
        "process": next(iter(process.processes), None),
        "comm": next(iter(process.comms), None),
        "via": None if process.via is None else escaped_bytes(process.via),
        "unit": None if process.unit is None else escaped_bytes(process.unit),
        "packets": process.packets,
        "bytes": process.bytes,
        "sent_packets": sent[0],
        "sent_bytes": sent[1],
        "received_packets": received[0],
        "received_bytes": received[1],
        "first": utc(process.first_ns),
        "last": utc(process.last_ns),
        **value,
    }


def utc(time_ns: int) -> str:
    """A time in ISO 8601, UTC, with nanoseconds; outside of the calendar in seconds since 1970."""
    seconds, fraction = divmod(time_ns, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09}Z"
    except (ValueError, OverflowError, OSError):
        return f"{seconds}.{fraction:09}s"
