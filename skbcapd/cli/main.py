"""The command line: arguments in, exit code out.

Each command is a module here: `add` adds its arguments to the parser, `run` runs it. It is imported
when it is the chosen one: a command starts without what only the others need.

The rule: while packets are captured, all messages (start, totals, errors) are written to stderr, so
that stdout has only packets with `capture -w -`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

from skbcapd import __version__
from skbcapd.daemon.log import LOG
from skbcapd.errors import UsageError

# The commands in the order of the help: name of the module, and help text.
COMMANDS = {
    "capture": "Capture now: print packets, or write them to a pcapng file.",
    "run": "Run as a service in the foreground.",
    "check": "Check a config file and exit.",
    "config": "Print the reference config file, or its JSON Schema.",
    "dump": "Make the daemon write the packets in its memory to a file (files.mode: ring), and print the name of the "
    "file.",
    "status": "Show the status of the running daemon (it listens at control.socket).",
    "doctor": "Check whether this system can capture, and how to fix what is missing.",
    "top": "Show which process sent and received how much, from capture files; without files, what each sends and "
    "receives now, from the running daemon.",
    "extract": "Write selected packets of capture files to one file, in the order of time.",
    "split": "Write the packets of capture files to several files: one for each process, name, user, systemd "
    "unit, container, pod, interface or link type.",
    "report": "Write a page about captures for a browser: charts and tables of processes, peers and connections.",
    "index": "Write an index beside each capture file: which process exchanged packets with whom, when, and where in "
    "the file.",
    "ship": "Copy indexes, and captures, from a directory of captures to where those of many hosts are collected. "
    "rclone must be installed.",
    "fleet": "Search the indexes of many hosts, and get the packets. Needs Python packages from PyPI: docs/fleet.md.",
    "extcap": "Implement the extcap protocol of Wireshark. Only Wireshark uses this command.",
}


class _Command(Protocol):
    """What the module of a command has."""

    def add(self, command: argparse.ArgumentParser, /) -> None:
        """Add its arguments."""

    def run(self, options: argparse.Namespace, /) -> int:
        """Run it; returns the exit code."""


class _CommandParser(argparse.ArgumentParser):
    """The parser of one command. It gets its arguments when it is used.

    It takes options also between words that belong together: `extract FILE -w OUT tcp port 443`.
    """

    _is_inside = False
    _is_complete = False

    def complete(self) -> None:
        """Add the arguments of the command."""
        if self._is_complete:
            return
        self._is_complete = True
        module = cast("_Command", importlib.import_module(f"skbcapd.cli.{self.prog.split()[-1]}"))
        self.add_argument("--version", action="version", version=f"skbcapd {__version__}")
        self.set_defaults(run=module.run)
        module.add(self)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # overloads
        if self._is_inside:
            return super().parse_known_args(args, namespace)
        self.complete()
        self._is_inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inside = False


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
    words, after = split_command(arguments)
    options = parser().parse_args(words, argparse.Namespace(command=after))
    return int(options.run(options))


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    return _parsers()[0]


def commands() -> Mapping[str, argparse.ArgumentParser]:
    """The parser of each command with its arguments: the man page and the completion are generated from them."""
    found = _parsers()[1]
    for each in found.values():
        each.complete()
    return found


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, _CommandParser]]:
    whole = argparse.ArgumentParser(prog="skbcapd", description="Capture packets with process names.")
    whole.add_argument("--version", action="version", version=f"skbcapd {__version__}")
    added = whole.add_subparsers(required=True, metavar="COMMAND", parser_class=_CommandParser)
    return whole, {name: added.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """The arguments of `capture`, and the command after `--`; None: there is none.

    Raises:
        UsageError: nothing is after `--`.
    """
    words = list(arguments)
    if words[:1] != ["capture"] or "--" not in words:
        return words, None
    at = words.index("--")
    if not words[at + 1 :]:
        raise UsageError(
            "found nothing after --, expected a command", "for example: skbcapd capture -- curl https://..."
        )
    return words[:at], words[at + 1 :]
