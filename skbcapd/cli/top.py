"""`skbcapd top`: show which process sends and receives how much: in capture files, or now.

In: files, or the control socket of a running daemon. Out: a table, JSON or CSV; without files a screen,
or one report a second.
"""

from __future__ import annotations

import argparse
import contextlib
import curses
import json
import os
import socket
import sys
from typing import TypeVar

from skbcapd.analysis import drops, screen, top
from skbcapd.analysis.account import BY
from skbcapd.analysis.live import Intervals
from skbcapd.analysis.rates import DropRates, Rates, View
from skbcapd.cli import arguments, selecting
from skbcapd.cli.status import no_answer, reach
from skbcapd.errors import FileError, UsageError
from skbcapd.output.block_writer import StandardOutput
from skbcapd.pcapng import live
from skbcapd.text_safety import escaped

_Row = TypeVar("_Row")
_LINE_MAX = 4096  # bytes of the daemon's first line


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "--by",
        choices=BY,
        default="tgid",
        help="one row for each process (tgid), name (process), systemd unit, ...",
    )
    command.add_argument(
        "--drops",
        action="store_true",
        help="show the packets that the kernel has dropped, by reason, interface, process and function",
    )
    command.add_argument(
        "--no-names",
        action="store_true",
        help="do not show names of peers, from DNS answers and TLS clients in the files",
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON; without files, a line each second")
    form.add_argument("--csv", action="store_true", help="print one line for each process, as CSV")
    command.add_argument(
        "-n", "--count", metavar="N", type=_count, help="without files: end after N reports, one each second"
    )
    arguments.add_config(command)
    arguments.add_sets(command)
    selecting.add(command, needs_files=False)


def run(options: argparse.Namespace) -> int:
    """Add up the selected packets of files, or those that the running daemon captures now."""
    files, selection = selecting.parse(options, needs_files=False)
    if options.drops and options.by != "tgid":
        raise UsageError(f"--drops with --by {options.by}: found both; expected one of them", "--dropped REASON")
    if files:
        if options.count is not None or options.config is not None or options.sets:
            raise UsageError("--count, --config and --set are for the running daemon; found a file")
        show = drops.command if options.drops else top.command
        return show(options, files, selection)
    if options.csv or options.begin is not None or options.end is not None:
        raise UsageError("--csv, --from and --to are for files; found no file", "skbcapd top FILE ...")
    path = arguments.settings(options, {"control.socket"}).control.socket
    if path == "none":
        raise UsageError("control.socket is none; expected the path of the daemon's socket", "or name capture files")
    with Intervals(_accepted(path), path) as intervals:
        if options.drops:
            return _watch(options, intervals, DropRates(selection))
        return _watch(options, intervals, Rates(options.by, selection, has_names=not options.no_names))


def _watch(options: argparse.Namespace, intervals: Intervals, view: View[_Row]) -> int:
    """Show reports on a screen if there is one, otherwise print them."""
    has_terminal = not options.json and sys.stdout.isatty() and sys.stdin.isatty()
    with contextlib.suppress(KeyboardInterrupt):
        if not (has_terminal and _show(options, intervals, view)):
            _print(options, intervals, view)
    return 0


def _show(options: argparse.Namespace, intervals: Intervals, view: View[_Row]) -> bool:
    """Show reports on a screen; returns False if the terminal can have none."""
    try:
        with screen.opened() as window:
            screen.show(window, intervals, view, options.count)
    except curses.error as error:
        term = escaped(os.environ.get("TERM", ""))
        print(f"skbcapd: no screen for the terminal {term!r}: {error}", file=sys.stderr)
        return False
    return True


def _print(options: argparse.Namespace, intervals: Intervals, view: View[_Row]) -> None:
    """Print one report each second."""
    output = StandardOutput()
    printed = 0
    try:
        while options.count is None or printed < options.count:
            interval = intervals.next()
            if interval is None:
                continue
            report = view.report(interval)
            if options.json:
                output.text.write(view.as_json(report))
            else:
                output.text.writelines(["\n" if printed else "", *view.lines(report)])
            output.text.flush()
            printed += 1
    except BrokenPipeError:
        pass
    finally:
        output.close()


def _accepted(path: str) -> socket.socket:
    """A connection to the daemon, which has accepted to send packets.

    Raises:
        FileError: there is no daemon, or it does not accept.
    """
    sock = reach(path, live.REQUEST)
    try:
        line = b""
        while not line.endswith(b"\n") and len(line) < _LINE_MAX and (byte := sock.recv(1)):
            line += byte
    except OSError as error:
        sock.close()
        raise no_answer(path, error) from None
    if line != live.ACCEPTED:
        sock.close()
        raise _refusal(path, line)
    return sock


def _refusal(path: str, line: bytes) -> FileError:
    """The error for another first line of the daemon."""
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict) and "error" in found:
            return FileError(f"{path}: {escaped(str(found['error']))}", escaped(str(found.get("hint", ""))))
    return FileError(f"{path}: {len(line)} bytes that are not an answer of skbcapd; expected the same version")


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 0 < value < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value
