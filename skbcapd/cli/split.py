"""`skbcapd split`: one file for each process, name or unit."""

from __future__ import annotations

from pathlib import Path

from skbcapd.analysis import split
from skbcapd.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add(
        "split", split.command, "Write the packets of each process, name or unit into a file of its own."
    )
    command.add_argument("file", metavar="FILE", type=Path, help="pcapng, also compressed by gzip or zstd")
    command.add_argument("--by", choices=split.KEYS, required=True, help="what the packets of one file have in common")
    command.add_argument(
        "-d", "--directory", metavar="DIR", type=Path, default=Path(), help="where the files are written, default here"
    )
