"""Whose packets `capture` keeps: selectors of processes, or a command that it runs.

In: the command line. Out: rules.

The rule: selectors mean the same as for capture files (`selecting`), and are only rules: one rule
for each combination of values, then one that drops all other packets.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

from skbcapd.analysis.selectors import TEXTS
from skbcapd.attribution.processes import sees_host
from skbcapd.cli import selecting
from skbcapd.config.pattern import TextPattern
from skbcapd.config.settings import Rule, Settings
from skbcapd.errors import UsageError

RULES_MAX = 1000  # combinations of selectors


def add(command: argparse.ArgumentParser) -> None:
    """Add the selectors to a command."""
    command.description = (
        f"{command.description} With `-- COMMAND ARGUMENT...` as its last words, run a command, and capture the "
        "packets of the command and of its descendants, until it ends."
    )
    add_selectors(command)


def add_selectors(command: argparse.ArgumentParser) -> None:
    """Add the selectors to a command that runs no other command."""
    group = command.add_argument_group(
        "processes",
        "Keep only the packets of these processes. Each can be repeated: one must match. Of different ones, all must.",
    )
    selecting.add_processes(group)
    group.add_argument(
        "--children", action="store_true", help="also their descendants, those of now and those that they start later"
    )


def chosen(settings: Settings, options: argparse.Namespace, proc: Path = Path("/proc")) -> Settings:
    """Settings with the rules of the selectors; those of a command follow, see of_command.

    Args:
        settings: of the command line.
        options: the command line.
        proc: directory of procfs.

    Raises:
        UsageError: the selectors cannot be used.
    """
    wanted: dict[str, list[TextPattern | int]] = {
        name: getattr(options, name) for name in TEXTS if getattr(options, name)
    }
    if options.tgids:
        wanted["tgid"] = [_process(tgid, proc) for tgid in dict.fromkeys(options.tgids)]
    if options.command is not None:
        if wanted or options.children:
            raise UsageError(
                "found selectors of processes beside a command after --, expected one or the other",
                "the command and its descendants are captured",
            )
        _need_host(proc)
    elif not wanted:
        if options.children:
            raise UsageError(
                "found --children alone, expected a selector with it", "for example: --pid 1234 --children"
            )
        return settings
    if settings.rules:
        raise UsageError("found --set rules beside selectors of processes, expected one or the other")
    if options.command is not None:
        return settings
    combinations = list(itertools.islice(itertools.product(*wanted.values()), RULES_MAX + 1))
    if len(combinations) > RULES_MAX:
        raise UsageError(f"found more than {RULES_MAX} combinations of selectors, expected fewer", "use globs")
    children = options.children or None
    kept = [Rule(dict(zip(wanted, values, strict=True)), children=children, is_option=True) for values in combinations]
    return replace(settings, rules=(*kept, Rule(action="drop")))


def of_command(settings: Settings, tgid: int) -> Settings:
    """Settings that keep only the packets of a process and its descendants."""
    return replace(settings, rules=(Rule({"tgid": tgid}, children=True), Rule(action="drop")))


def _process(tgid: int, proc: Path) -> int:
    """Check that a process runs."""
    _need_host(proc)
    try:
        status = (proc / str(tgid) / "status").read_text(errors="replace").split()
        found = int(status[status.index("Tgid:") + 1])
    except (OSError, ValueError, IndexError):
        raise UsageError(f"--pid {tgid}: no such process", "`ps -e` lists them") from None
    if found != tgid:
        raise UsageError(f"--pid {tgid}: found a thread of process {found}, expected a process", f"--pid {found}")
    return tgid


def _need_host(proc: Path) -> None:
    if not sees_host(proc):
        raise UsageError(
            "found another PID namespace, expected that of the host: the kernel has other process ids",
            "run skbcapd on the host, or its container with --pid=host; --process NAME works in both",
        )
