"""`skbcapd dump`: make a running daemon write its memory to a file.

In: the control socket of the daemon. Out: the names of the files on stdout, when they are finished;
what they contain on stderr.

The rule not to break: the process that listens on the socket is not trusted; see `status`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from skbcapd.cli import arguments
from skbcapd.cli.status import ask
from skbcapd.config.settings import AFTER, SINCE
from skbcapd.errors import FileError, UsageError
from skbcapd.text_safety import escaped

_POLL_S = (0.05, 0.5)  # the shortest and the longest time between two questions
_PATIENCE_S = 30.0  # without progress


def add(command: argparse.ArgumentParser) -> None:
    """Add its arguments."""
    command.add_argument(
        "--after",
        metavar="DURATION",
        type=_seconds(AFTER.parse, AFTER.expected),
        help="continue to capture for DURATION (10s, 2m), then finish the file",
    )
    command.add_argument(
        "--since",
        metavar="DURATION",
        type=_seconds(SINCE.parse, SINCE.expected),
        help="only packets of the last 30s, 2m, ...; older ones stay in memory",
    )
    arguments.add_config(command)
    arguments.add_sets(command)


def run(options: argparse.Namespace) -> int:
    """Order a dump, wait until it is finished, and print the names of its files."""
    path = arguments.settings(options, {"control.socket"}).control.socket
    if path == "none":
        raise UsageError(
            "control.socket is none; expected the path of the daemon's socket",
            "set it for the daemon, too; or send SIGUSR2 to the daemon",
        )
    request = "dump"
    request += f" after={options.after}" if options.after else ""
    request += f" since={options.since}" if options.since else ""
    number = _checked(path, ask(path, request=request)).get("dump")
    if not isinstance(number, int):
        raise FileError(f"{path}: answer of another version; expected the same version")
    try:
        done = _wait(path, number)
    except KeyboardInterrupt:
        print("the daemon continues the dump", file=sys.stderr)
        return 1
    print(escaped(str(done.get("text"))), file=sys.stderr)
    for name in done.get("paths", []):
        print(escaped(str(name)))
    return 0


def _wait(path: str, number: int) -> Mapping[str, Any]:
    """Wait until a dump is finished.

    Raises:
        FileError: no file can be created, the disk does not write it, or the daemon has ended.
    """
    seen, changed_s, is_told, pause_s = "", time.monotonic(), False, _POLL_S[0]
    while True:
        try:
            found = _checked(path, ask(path, request=f"dumped {number}"))
        except FileError as error:
            raise FileError(error.message, "if the daemon has ended, its log says what it has dumped") from None
        state, left_s, now = found.get("state"), found.get("left_s"), f"{found}"
        if state == "done":
            return found
        if state == "refused":
            raise FileError(f"no dump: {found.get('refusal')}; the packets stay in memory")
        if state == "capturing" and not is_told:
            is_told = True
            print(f"capturing for {left_s} s more (trigger: {escaped(str(found.get('trigger')))})", file=sys.stderr)
        if now != seen:
            seen, changed_s = now, time.monotonic()
        elif time.monotonic() > changed_s + _PATIENCE_S:
            raise FileError(
                f"the dump is not finished: nothing was written for {_PATIENCE_S:.0f} s; expected a disk that writes",
                "the daemon continues; its log says when the dump is finished",
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _POLL_S[1])


def _checked(path: str, answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """An answer that is not an error.

    Raises:
        FileError: it is one.
    """
    if "error" in answer:
        raise FileError(f"{path}: {answer['error']}", str(answer.get("hint", "")))
    return answer


def _seconds(parse: Callable[[str], int], expected: str) -> Callable[[str], int]:
    """A reader of a duration, such as 10s."""

    def read(text: str) -> int:
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}; expected {expected}") from None

    return read
