"""Where measurements come from: the machine, the compared programs, and the load of the machine before."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bench.tools import Tool
from skbcapd import __version__
from skbcapd.kernel import program


def processor(cpuinfo: str) -> str:
    """Name of the processor from the text of /proc/cpuinfo, and whether it is virtual; arm64 has no name there."""
    name = re.search(r"model name\s*: (.+)", cpuinfo)
    virtual = re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)
    return (name[1] if name else os.uname().machine) + (", virtual" if virtual else "")


def version(words: str) -> str:
    """The first number with dots in the version text of a program."""
    found = re.search(r"\d+(\.\d+)+", words)
    return found[0] if found else "of unknown version"


def _words(*command: str) -> str:
    """The output of a command; empty if the command is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def place(directory: Path, tools: Sequence[Tool]) -> str:
    """One line that describes where the measurements come from.

    Args:
        directory: where capture files are written.
        tools: those compared, skbcapd first.
    """
    file_system = _words("findmnt", "-n", "-o", "FSTYPE", "-T", str(directory))
    commit = _words("git", "-C", str(directory), "describe", "--always", "--dirty") or "no git"
    hooks = "tracepoints and kprobes" if program.has_kprobes() else "tracepoints"
    others = [f"{tool.name} {version(_words(tool.arguments[0], '--version'))}" for tool in tools[1:]]
    return (
        f"Linux {os.uname().release}, {os.cpu_count()} processors ({processor(Path('/proc/cpuinfo').read_text())}), "
        f"{file_system}; skbcapd {__version__} ({commit}) with {hooks}, {', '.join(others)}; "
        f"load average {os.getloadavg()[0]:.1f} before the run; {time.strftime('%Y-%m-%d')}"
    )
