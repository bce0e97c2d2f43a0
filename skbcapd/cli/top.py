"""`skbcapd top`: show which process sent and received how much."""

from __future__ import annotations

import argparse

from skbcapd.analysis import top
from skbcapd.analysis.account import BY
from skbcapd.cli import selecting


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "--by",
        choices=BY,
        default="tgid",
        help="one row for each process (tgid), name (process), systemd unit, ...",
    )
    command.add_argument(
        "--no-names",
        action="store_true",
        help="do not show names of peers, from DNS answers and TLS clients in the files",
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--csv", action="store_true", help="print one line for each process, as CSV")
    selecting.add(command)


def run(options: argparse.Namespace) -> int:
    """Add up the selected packets."""
    return top.command(options, *selecting.parse(options))
