"""`skbcapd report`: write a page about captures, for a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from skbcapd.attribution.fields import GROUPS
from skbcapd.cli import selecting
from skbcapd.report import report


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "-o", dest="file", metavar="OUT", type=Path, required=True, help="HTML file to write; -: standard output"
    )
    command.add_argument(
        "--by",
        choices=GROUPS,
        default="tgid",
        help="one row for each process (tgid), name (process), systemd unit, ...",
    )
    command.add_argument(
        "--plotly",
        metavar="FILE",
        type=Path,
        help="plotly.min.js; default: that of the installed Python package plotly",
    )
    selecting.add(command)


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    return report.command(options, *selecting.parse(options))
