"""`skbcapd config`: the reference config file and its schema."""

from __future__ import annotations

import argparse

from skbcapd.config.reference import reference, schema


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument("--schema", action="store_true", help="print the JSON Schema, for editors")


def run(options: argparse.Namespace) -> int:
    """Print the config file or the schema."""
    print(schema() if options.schema else reference(), end="")
    return 0
