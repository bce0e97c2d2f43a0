"""`skbcapd top`: who sent and received what."""

from __future__ import annotations

from pathlib import Path

from skbcapd.analysis import top
from skbcapd.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add(
        "top", top.command, "Show who sent and received what: the packets of capture files, by process."
    )
    command.add_argument("files", metavar="FILE", type=Path, nargs="+", help="pcapng, also compressed by gzip or zstd")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all that is known, as JSON")
    form.add_argument("--csv", action="store_true", help="a line for each process, for a spreadsheet")
