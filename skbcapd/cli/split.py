"""`skbcapd split`: one file for each process, name, unit or container."""

from __future__ import annotations

from pathlib import Path

from skbcapd.analysis import split
from skbcapd.attribution.fields import GROUPS
from skbcapd.cli.arguments import Commands


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add(
        "split",
        split.command,
        "Write the packets of a capture file to several files: one for each process, name, systemd unit or container.",
    )
    command.add_argument("file", metavar="FILE", type=Path, help="pcapng file, also compressed with gzip or zstd")
    command.add_argument(
        "--by",
        choices=GROUPS,
        required=True,
        help="one file for each process (tgid), name (process), systemd unit, ...",
    )
    command.add_argument(
        "-d",
        "--directory",
        metavar="DIR",
        type=Path,
        default=Path(),
        help="directory for the files; default: the current directory",
    )
