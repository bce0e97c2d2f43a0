"""`skbcapd dump`: have the packets written that a running daemon keeps in memory."""

from __future__ import annotations

import argparse
from pathlib import Path

from skbcapd.cli import arguments
from skbcapd.errors import UsageError
from skbcapd.output import directory


def add(commands: arguments.Commands) -> None:
    """Add the command to the parser."""
    command = commands.add(
        "dump",
        run,
        "Have the daemon of files.directory write the packets that it keeps in memory (mode: ring) to a file.",
    )
    arguments.add_config(command)
    arguments.add_sets(command)


def run(options: argparse.Namespace) -> int:
    """Ask for a dump; print the name of its file."""
    wanted = arguments.settings(options).files
    if wanted.mode != "ring":
        raise UsageError("files.mode is files: all packets are in files already", "only mode: ring has packets to dump")
    print(directory.ask_for_dump(Path(wanted.directory)))
    return 0
