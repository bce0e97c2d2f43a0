"""`skbcapd ship`: copy indexes, and captures, to where those of many hosts are collected."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from skbcapd.fleet import ship
from skbcapd.output.naming import escaped_host


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument("directory", metavar="DIR", type=Path, help="directory of captures")
    command.add_argument(
        "remote", metavar="REMOTE", help="a remote of rclone and a path, such as fleet:bucket; or a directory"
    )
    command.add_argument("--captures", action="store_true", help="also copy finished captures that have an index")
    command.add_argument("--host", metavar="NAME", default="", help="name of the host; default: the name of this one")


def run(options: argparse.Namespace) -> int:
    """Copy what has not arrived yet."""
    host = escaped_host(options.host or socket.gethostname())
    ship.ship(options.directory, options.remote, host, captures=options.captures)
    return 0
