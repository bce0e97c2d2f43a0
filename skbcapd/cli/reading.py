"""`skbcapd capture -r`: print the packets of capture files.

In: files, selectors and a filter. Out: a line for each packet, as live.

The rule: a reader of the lines that has ended (`| head`) ends the command, without an error.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from skbcapd import standard_streams
from skbcapd.analysis import selectors
from skbcapd.analysis.sources import Sources, expand
from skbcapd.cli import selecting, tcpdump
from skbcapd.errors import UsageError
from skbcapd.frames.line import Lines
from skbcapd.pcapng.blocks import IF_NAME
from skbcapd.pcapng.reader import Interface

_LIVE = (
    ("duration", "--duration"),
    ("sets", "--set"),
    ("buffer", "-B"),
    ("payload", "--payload"),
    ("children", "--children"),
    ("command", "a command after --"),
)


def run(options: argparse.Namespace) -> int:
    """Print the selected packets; 1 if a file could not be read to its end.

    Raises:
        UsageError: an option that is for a capture only.
    """
    if options.file is not None:
        raise UsageError("-w with -r: found both; expected one of them", "skbcapd extract FILE -w OUT [FILTER]")
    for dest, name in _LIVE:
        if getattr(options, dest, None):
            raise UsageError(f"{name} with -r: found both; expected {name} without -r only")
    if options.snaplen is not None:
        print("skbcapd: -s is ignored: -r prints what is in the file", file=sys.stderr)
    files, words = selecting.leading_files(options.filter)
    sources = Sources(expand([*map(Path, options.read), *files]), _selection(options, words))
    _print(sources, Lines(tcpdump.form(options)), options.count, flushes=options.line)
    for error in sources.wrong:
        print(f"skbcapd: {error}", file=sys.stderr)
    return int(bool(sources.wrong))


def _selection(options: argparse.Namespace, words: Sequence[str]) -> selectors.Selection:
    """The selectors; -i and -Q are two of them."""
    names = [name for name in options.interfaces or () if name != "any"]
    try:
        interfaces = [selectors.pattern(name) for name in names]
    except ValueError as error:
        raise UsageError(f"-i: {error}; expected names or globs") from None
    directions = [] if options.direction in {None, "inout"} else [options.direction]
    return selecting.selection(options, tcpdump.expression(options, words), interfaces, directions)


def _print(sources: Sources, lines: Lines, count: int, *, flushes: bool) -> None:
    current, name = None, b""
    packets = sources.packets()
    for time_ns, (interface, stamp, _, wire_len, frame, _) in itertools.islice(packets, count or None):
        if interface is not current:
            current, name = interface, _name(interface)
        text = lines.line(time_ns, stamp, name, bytes(frame), interface.link_type, wire_len)
        sys.stdout.write(text.decode("ascii"))
        if flushes:
            sys.stdout.flush()
        if standard_streams.is_discarding():
            break
    packets.close()


def _name(interface: Interface) -> bytes:
    return next((value for code, value in interface.options() if code == IF_NAME), b"")
