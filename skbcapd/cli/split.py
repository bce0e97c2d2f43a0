"""`skbcapd split`: one file for each process, name, unit, container, interface or link type."""

from __future__ import annotations

import argparse
from pathlib import Path

from skbcapd.analysis import split
from skbcapd.cli import selecting


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "--by",
        choices=split.BY,
        required=True,
        help="one file for each process (tgid), name (process), systemd unit, ...",
    )
    command.add_argument(
        "-d",
        "--directory",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="directory for the files, made if it is missing; default: the current directory",
    )
    selecting.add_changes(command)
    selecting.add(command)


def run(options: argparse.Namespace) -> int:
    """Split the selected packets."""
    return split.command(options, *selecting.parse(options))
