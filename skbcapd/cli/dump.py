"""`skbcapd dump`: make a running daemon write its memory to a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from skbcapd.cli import arguments
from skbcapd.cli.status import ask
from skbcapd.errors import FileError, UsageError
from skbcapd.output import directory

_ANSWER_S = 1.0


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    arguments.add_config(command)
    arguments.add_sets(command)


def run(options: argparse.Namespace) -> int:
    """Request a dump; print the name of its file."""
    settings = arguments.settings(options, {"files.mode", "files.directory", "control.socket"})
    wanted = settings.files
    if wanted.mode != "ring":
        raise UsageError(
            "files.mode is files, so all packets are already in files; expected ring", "set files.mode: ring"
        )
    refusals = Refusals(settings.control.socket, wanted.directory)
    print(directory.ask_for_dump(Path(wanted.directory), refusals.last))
    return 0


class Refusals:
    """Why the daemon does not dump, as its status says.

    Args:
        socket: its control socket; without an answer there, only its log says why.
        directory: files.directory of the daemon.
    """

    def __init__(self, socket: str, directory: str) -> None:
        self._socket, self._directory = socket, directory
        self._before = self._ask()

    def last(self) -> str:
        """The reason of a refusal since the start; empty if there is none."""
        count, why = self._ask()
        return why if count > self._before[0] else ""

    def _ask(self) -> tuple[int, str]:
        """How many dumps were refused, and why the last one."""
        try:
            files = ask(self._socket, _ANSWER_S)["files"]
            if files["directory"] == self._directory:
                return int(files["dumps_refused"]), str(files["dump_refusal"])
        except (FileError, LookupError, TypeError, ValueError):
            pass
        return 0, ""
