"""The command line: arguments in, exit code out.

Each command is a module here: `add` adds its arguments to the parser, `run` runs it.

The rule: while packets are captured, all messages (start, totals, errors) are written to stderr, so
that stdout has only packets with `capture -w -`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from skbcapd import __version__
from skbcapd.cli import capture, check, config, doctor, dump, extcap, extract, processes, run, split, status, top
from skbcapd.cli.arguments import Commands, MixedParser
from skbcapd.daemon.log import LOG

_COMMANDS = (capture, run, check, config, dump, status, doctor, top, extract, split, extcap)


def command(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: arguments after the name of the program.

    Returns:
        The exit code.

    Raises:
        SkbcapdError: an error with a message and an exit code.
    """
    LOG.install()
    words, after = processes.split_command(arguments)
    options = parser().parse_args(words, argparse.Namespace(command=after))
    return int(options.run(options))


def parser() -> argparse.ArgumentParser:
    """All commands with their arguments; the man page and the completion are generated from it,
    too.
    """
    found = argparse.ArgumentParser(prog="skbcapd", description="Capture packets with process names.")
    found.add_argument("--version", action="version", version=f"skbcapd {__version__}")
    commands = Commands(found.add_subparsers(required=True, metavar="COMMAND", parser_class=MixedParser))
    for each in _COMMANDS:
        each.add(commands)
    return found
