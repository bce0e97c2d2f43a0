"""`skbcapd index`: write an index beside each capture file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from skbcapd.analysis.sources import expand
from skbcapd.errors import FileError, UsageError
from skbcapd.fleet import index_file
from skbcapd.output.naming import escaped_host
from skbcapd.pcapng.source import STDIN


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="capture file, also compressed with gzip or zstd; a directory: all its finished captures",
    )
    command.add_argument(
        "--host", metavar="NAME", default="", help="name of the host in the index; default: the name of this one"
    )


def run(options: argparse.Namespace) -> int:
    """Write indexes that are missing or stale; 1 if a file could not be read to its end."""
    if STDIN in options.files:
        raise UsageError("- is standard input; expected files: an index stands beside each")
    named = set(options.files)
    # In a directory, .part is what is being written.
    paths = [path for path in expand(options.files) if path in named or path.suffix != ".part"]
    host = escaped_host(options.host) if options.host else ""  # as `skbcapd ship` names it
    wrong = 0
    for path in paths:
        if index_file.is_fresh(path):
            continue
        try:
            found = index_file.write(path, host)
        except FileError as error:
            found = error
        if found is not None:
            wrong += 1
            print(f"skbcapd: {found}", file=sys.stderr)
    return int(bool(wrong))
