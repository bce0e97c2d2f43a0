"""`skbcapd dump`: make a running daemon write its memory to a file."""

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
        "Make the daemon write the packets in its memory to a file (files.mode: ring), and print the name of the file.",
    )
    arguments.add_config(command)
    arguments.add_sets(command)


def run(options: argparse.Namespace) -> int:
    """Request a dump; print the name of its file."""
    wanted = arguments.settings(options).files
    if wanted.mode != "ring":
        raise UsageError(
            "files.mode is files, so all packets are already in files; expected ring", "set files.mode: ring"
        )
    print(directory.ask_for_dump(Path(wanted.directory)))
    return 0
