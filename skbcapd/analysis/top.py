"""`skbcapd top`: which process sent and received how much, as a table, JSON or CSV.

In: capture files, which `account` adds up. Out: text. Errors in a file are printed after the result, on stderr; the
part that could be read counts.

The rule not to break: names and addresses are escaped (printable ASCII), whatever is in the file.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from skbcapd.analysis.account import Account, Process
from skbcapd.analysis.progress import Progress
from skbcapd.errors import FileError
from skbcapd.output.block_writer import StandardOutput
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.reader import Reader
from skbcapd.text_safety import escaped_bytes

_HEADINGS = ("TGID", "COMM", "PACKETS", "BYTES", "SENT", "RECEIVED", "FIRST (UTC)", "LAST (UTC)", "PEERS")
_NUMBERS = {"TGID", "PACKETS", "BYTES", "SENT", "RECEIVED"}
_TABLE_PEERS, _CSV_PEERS = 3, 10  # the busiest; JSON has all


def command(options: argparse.Namespace) -> int:
    """Print which process sent and received how much; 1 if a file could not be read to its end."""
    account = Account()
    wrong = read(account, options.files)
    processes = account.processes
    write = as_json if options.json else as_csv if options.csv else as_table
    output = StandardOutput()
    try:
        output.text.write(write(processes))
    except BrokenPipeError:
        pass  # `top | head`: close says nothing of it either
    finally:
        output.close()
    for error in wrong:
        print(f"skbcapd: {error}", file=sys.stderr)
    if processes and not any(process.is_named for process in processes):
        print("skbcapd: no packet says which process it belongs to; check that skbcapd captured them", file=sys.stderr)
    return int(bool(wrong))


def read(account: Account, files: Sequence[Path]) -> list[FileError]:
    """Add up files.

    Args:
        account: takes their packets.
        files: their paths.

    Returns:
        What is wrong with them.
    """
    wrong = []
    with Progress(files, sys.stderr) as progress:
        for path in files:
            try:
                with Reader(path, progress.next_file()) as reader:
                    account.read(reader)
            except FileError as error:
                wrong.append(error)
    return wrong


def as_table(processes: Sequence[Process]) -> str:
    """Write lines for people: sent and received in bytes, and the busiest peers."""
    rows = [_HEADINGS, *map(_row, processes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(_HEADINGS, row, widths, strict=True)
        line = "  ".join(text.rjust(width) if head in _NUMBERS else text.ljust(width) for head, text, width in cells)
        lines.append(line.rstrip() + "\n")
    return "".join(lines)


def _row(process: Process) -> tuple[str, ...]:
    comms, peers = process.comms, [address for address, _, _ in process.busiest]
    name = comms[0] + _more(comms, 1) if comms else "" if process.via is None else f"via={escaped_bytes(process.via)}"
    return (
        "-" if process.tgid is None else str(process.tgid),
        name or "-",
        str(process.packets),
        str(process.bytes),
        str(process.ways[DIRECTION_OUT][1]),
        str(process.ways[DIRECTION_IN][1]),
        _when(process.first_ns)[:-4].replace("T", " "),
        _when(process.last_ns)[:-4].replace("T", " "),
        " ".join(peers[:_TABLE_PEERS]) + _more(peers, _TABLE_PEERS),
    )


def _more(items: Sequence[str], count: int) -> str:
    return f" +{len(items) - count}" if len(items) > count else ""


def as_json(processes: Sequence[Process]) -> str:
    """Write a list with an object for each process; docs/tools.md has its keys."""
    found = [
        _facts(process)
        | {"comms": process.comms}
        | {"peers": [dict(zip(("address", "packets", "bytes"), peer, strict=True)) for peer in process.busiest]}
        for process in processes
    ]
    return json.dumps(found, indent=2) + "\n"


def as_csv(processes: Sequence[Process]) -> str:
    """Write a line of headings and one for each process (RFC 4180, but lines end as Unix has it)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*_facts(Process(None, None, 0, 0)), "peers", "busiest"], lineterminator="\n")
    writer.writeheader()
    for process in processes:
        peers = [address for address, _, _ in process.busiest]
        writer.writerow(_facts(process) | {"peers": len(peers), "busiest": " ".join(peers[:_CSV_PEERS])})
    return text.getvalue()


def _facts(process: Process) -> dict[str, object]:
    """What JSON and CSV both say."""
    sent, received = process.ways[DIRECTION_OUT], process.ways[DIRECTION_IN]
    return {
        "tgid": process.tgid,
        "comm": process.comms[0] if process.comms else None,
        "via": None if process.via is None else escaped_bytes(process.via),
        "unit": None if process.unit is None else escaped_bytes(process.unit),
        "packets": process.packets,
        "bytes": process.bytes,
        "sent_packets": sent[0],
        "sent_bytes": sent[1],
        "received_packets": received[0],
        "received_bytes": received[1],
        "first": _when(process.first_ns),
        "last": _when(process.last_ns),
    }


def _when(time_ns: int) -> str:
    """A time as ISO 8601 has it, in UTC, with nanoseconds; as seconds since 1970 outside of the calendar."""
    seconds, fraction = divmod(time_ns, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09}Z"
    except (ValueError, OverflowError, OSError):
        return f"{seconds}.{fraction:09}s"
