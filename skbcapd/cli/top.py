"""`skbcapd top`: show which process sent and received how much."""

from __future__ import annotations

import argparse

from skbcapd.analysis import top
from skbcapd.attribution.fields import GROUPS
from skbcapd.cli import selecting
from skbcapd.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add("top", run, "Show which process sent and received how much, from capture files.")
    command.add_argument(
        "--by",
        choices=GROUPS,
        default="tgid",
        help="one row for each process (tgid), name (process), systemd unit, ...",
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    form.add_argument("--csv", action="store_true", help="print one line for each process, as CSV")
    selecting.add(command)


def run(options: argparse.Namespace) -> int:
    """Add up the selected packets."""
    return top.command(options, *selecting.parse(options))
