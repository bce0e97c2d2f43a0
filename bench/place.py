"""Where figures are from: the machine, the programs compared, and how busy the machine was before."""

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
    """Its name, of the text of /proc/cpuinfo, and whether it is a virtual machine's; arm64 has no name there."""
    name = re.search(r"model name\s*: (.+)", cpuinfo)
    virtual = re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)
    return (name[1] if name else os.uname().machine) + (", virtual" if virtual else "")


def version(words: str) -> str:
    """The first number with dots in what a program says of itself."""
    found = re.search(r"\d+(\.\d+)+", words)
    return found[0] if found else "of unknown version"


def _words(*command: str) -> str:
    """What a command prints; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def place(directory: Path, tools: Sequence[Tool]) -> str:
    """One line to stand beside figures.

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
