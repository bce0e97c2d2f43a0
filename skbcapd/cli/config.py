"""`skbcapd config`: the reference config file and its schema."""

from __future__ import annotations

import argparse

from skbcapd.cli.arguments import Commands
from skbcapd.config.reference import reference, schema


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add("config", run, "Print the reference config file, or its JSON Schema.")
    command.add_argument("--schema", action="store_true", help="print the JSON Schema, for editors")


def run(options: argparse.Namespace) -> int:
    """Print the config file or the schema."""
    print(schema() if options.schema else reference(), end="")
    return 0
