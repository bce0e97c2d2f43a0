"""`skbcapd extract`: write selected packets of capture files to one file."""

from __future__ import annotations

import argparse
from pathlib import Path

from skbcapd.analysis import extract
from skbcapd.analysis.writers import FORMATS, UNITS
from skbcapd.cli import selecting


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    output = command.add_mutually_exclusive_group(required=True)
    output.add_argument("-w", dest="file", metavar="OUT", type=Path, help="file to write; -: standard output")
    output.add_argument("--count", action="store_true", help="print the number of selected packets, write nothing")
    command.add_argument("--format", choices=FORMATS, default="pcapng", help="pcap: one file for each link type")
    command.add_argument("--time", choices=UNITS, default="ns", help="unit of time stamps")
    command.add_argument(
        "--secrets",
        choices=("none", "all"),
        default="none",
        help="all: copy the TLS secrets of the files, also those of connections that are not selected",
    )
    selecting.add_changes(command)
    selecting.add(command)


def run(options: argparse.Namespace) -> int:
    """Write or count the selected packets."""
    return extract.command(options, *selecting.parse(options))
