"""The compared tools: how each one is started, and what it prints at its end."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.wire import DEVICE
from skbcapd.output.interface import FILE_S

BUFFER = 64 << 20


@dataclass(frozen=True, slots=True)
class Tool:
    """A capture tool.

    Args:
        name: as in the tables.
        arguments: with {device} and {file} as placeholders.
        ready: matches the line that it prints when it captures.
        captured, dropped: match the totals that it prints, each with one group.
        quiet_s: a file that has not grown for this time is complete; longer than the tool buffers packets.
        is_series: {file} is a directory, in which `current.pcapng` is the file.
    """

    name: str
    arguments: Sequence[str]
    ready: re.Pattern[str]
    captured: str
    dropped: str
    quiet_s: float
    is_series: bool = False

    def command(self, file: Path, *, any_device: bool = False) -> list[str]:
        """The command that captures into a file."""
        device = "any" if any_device else DEVICE
        return [argument.replace("{device}", device).replace("{file}", str(file)) for argument in self.arguments]

    def totals(self, words: str) -> tuple[int, int]:
        """Captured and dropped packets, from its output.

        Raises:
            ValueError: they are not in its output.
        """
        found = [re.search(pattern, words) for pattern in (self.captured, self.dropped)]
        if found[0] is None:
            raise ValueError(f"{self.name} did not print how many packets it captured: {words[-300:]!r}")
        return int(found[0][1]), int(found[1][1]) if found[1] else 0


def _python(module: str) -> list[str]:
    """An installed skbcapd has compiled modules, whatever the environment of the benchmark says."""
    return ["env", "-u", "PYTHONDONTWRITEBYTECODE", sys.executable, "-m", module]


def ours(module: str = "skbcapd", *more: str) -> Tool:
    """skbcapd; `more` are additional arguments."""
    words = ("capture", "-i", "{device}", "--set", "directions=out", "-w", "{file}")
    return Tool(
        "skbcapd",
        [*_python(module), *words, *more],
        re.compile("capturing on"),
        r"(\d+) packets? captured",
        r"(\d+) packets? dropped",
        quiet_s=FILE_S + 0.3,
    )


def daemon() -> Tool:
    """The daemon with its default settings, but a full hour begins no new file in the middle of a load."""
    places = ("files.directory={file}", "control.socket={file}.socket", "files.every=0")
    sets = [word for setting in ("interfaces={device}", "directions=out", *places) for word in ("--set", setting)]
    return replace(ours(), name="skbcapd run", arguments=[*_python("skbcapd"), "run", *sets], is_series=True)


def tools() -> list[Tool]:
    """The tools that are installed here; ptcpdump if the variable PTCPDUMP has its path."""
    found = [
        ours(),
        Tool(
            "tcpdump",
            [
                *("tcpdump", "-n", "-Z", "root", "-B", str(BUFFER >> 10), "-Q", "out", "-s", "262144"),
                *("-i", "{device}", "-w", "{file}"),
            ],
            re.compile("listening on"),
            r"(\d+) packets? captured",
            r"(\d+) packets? dropped by kernel",
            quiet_s=1.3,  # its packet buffer timeout is 1 s
        ),
        Tool(
            "dumpcap",
            ["dumpcap", "-q", "-B", str(BUFFER >> 20), "-s", "262144", "-i", "{device}", "-w", "{file}"],
            re.compile("File: "),
            r"Packets captured: (\d+)",
            r"received/dropped on interface .*: \d+/(\d+)",
            quiet_s=0.6,
        ),
    ]
    if os.environ.get("PTCPDUMP"):
        found.append(
            Tool(
                "ptcpdump",
                [os.environ["PTCPDUMP"], "-i", "{device}", "-w", "{file}"],
                re.compile("capturing|tracing"),
                r"(\d+) packets? captured",
                r"(\d+) .*dropped",
                quiet_s=1.3,
            )
        )
    return [tool for tool in found if shutil.which(tool.arguments[0])]
