"""What is compared: how each tool is started, and what it says at its end."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.wire import DEVICE

BUFFER = 64 << 20


@dataclass(frozen=True, slots=True)
class Tool:
    """A capture tool.

    Args:
        name: as the tables have it.
        arguments: with {device} and {file} in them.
        ready: what it says when it captures.
        captured, dropped: what its last words are searched for, each with one group.
        quiet_s: a file that has not grown for so long has all packets: longer than the tool holds them back.
    """

    name: str
    arguments: Sequence[str]
    ready: re.Pattern[str]
    captured: str
    dropped: str
    quiet_s: float

    def command(self, file: Path, *, any_device: bool = False) -> list[str]:
        """The command that captures into a file."""
        device = "any" if any_device else DEVICE
        return [argument.replace("{device}", device).replace("{file}", str(file)) for argument in self.arguments]

    def totals(self, words: str) -> tuple[int, int]:
        """Packets captured and dropped, of what it printed.

        Raises:
            ValueError: it did not say.
        """
        found = [re.search(pattern, words) for pattern in (self.captured, self.dropped)]
        if found[0] is None:
            raise ValueError(f"{self.name} did not say how much it captured: {words[-300:]!r}")
        return int(found[0][1]), int(found[1][1]) if found[1] else 0


def ours(module: str = "skbcapd", *more: str) -> Tool:
    """Our own; `more` are arguments."""
    words = ("capture", "-i", "{device}", "--set", "directions=out", "-w", "{file}")
    return Tool(
        "skbcapd",
        [sys.executable, "-m", module, *words, *more],
        re.compile("capturing on"),
        r"(\d+) packets? captured",
        r"(\d+) packets? dropped",
        quiet_s=0.3,
    )


def tools() -> list[Tool]:
    """Those that are on this machine; ptcpdump where PTCPDUMP names it."""
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
            quiet_s=1.3,  # its packet buffer timeout is a second
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
