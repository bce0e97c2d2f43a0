"""The descendants of a process: a stage.

In: rules with `tgid` and `children`; a packet with its process. Out: which of these processes it
descends from.

The rule: descent is a fact about forks, so the kernel program records them: /proc only knows the
parents that still run, and not those of a process that has ended. What runs when the rules begin is
read from /proc, after the program records forks, until nothing new is found.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from skbcapd.attribution.processes import NS_PER_TICK, Stat, User, opened, read_stat
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import Record, user_of
from skbcapd.kernel.program import Program

SCANS = 8  # of /proc, at most: each finds what an earlier one could not see yet
SCAN_S = 0.5  # for all scans


class Descent:
    """Finds the ancestors that rules ask for.

    Args:
        program: records forks.
        proc: directory of procfs.
    """

    def __init__(self, program: Program, proc: Path = Path("/proc")) -> None:
        self._program, self._proc = program, proc

    def watch(self, roots: Collection[int]) -> None:
        """Record the descendants of these processes, from now on; and those that they have now.

        Args:
            roots: process ids; those that do not run are ignored.
        """
        found: dict[int, Stat] = {}
        for root in roots:
            with opened(self._proc, root) as directory:
                if stat := read_stat(directory):
                    found[root] = stat
                    self._add(root, stat, root)
        origin = {root: root for root in found}
        end = time.monotonic() + SCAN_S
        for _ in range(SCANS if found else 0):
            before = len(found)
            for tgid, stat in self._running():
                parent = found.get(stat.ppid)
                if parent and tgid not in found and parent.ticks <= stat.ticks:
                    found[tgid], origin[tgid] = stat, origin[stat.ppid]
                    self._add(tgid, stat, origin[tgid])
            if len(found) == before or time.monotonic() > end:
                return

    def take(self, record: Record, plan: Plan) -> Record:
        """Stage: find the ancestors that rules ask for."""
        if plan.rules.roots:
            users = [user for user, _ in record.group] or [user_of(record.packet)]
            record.roots = {user.tgid: root for user in users if (root := self._root(user))}
        return record

    def running(self, root: int) -> list[int]:
        """The descendants of a process that run now, without itself."""
        found = []
        for tgid, stat in self._running():
            known = self._program.descendant(tgid)
            is_meant = known and known.root == root and known.start // NS_PER_TICK <= stat.ticks
            if is_meant and tgid != root and stat.state != b"Z":
                found.append(tgid)
        return sorted(found)

    def _root(self, user: User) -> int:
        """The process that a thread's process descends from; 0: none."""
        found = self._program.descendant(user.tgid) if user.tgid else None
        # A thread that began before the process belongs to an earlier one with the same id.
        return found.root if found and found.start // NS_PER_TICK <= user.start // NS_PER_TICK else 0

    def _add(self, tgid: int, stat: Stat, root: int) -> None:
        """Record a process, if it is still the one that was read."""
        self._program.set_descendant(tgid, stat.ticks * NS_PER_TICK, root)
        with opened(self._proc, tgid) as directory:
            now = read_stat(directory)
        if now and now.ticks != stat.ticks:
            self._program.remove_descendant(tgid)

    def _running(self) -> Iterator[tuple[int, Stat]]:
        """All processes."""
        with contextlib.suppress(OSError):
            for place in self._proc.iterdir():
                if place.name.isdecimal():
                    with opened(self._proc, int(place.name)) as directory:
                        if stat := read_stat(directory):
                            yield int(place.name), stat
