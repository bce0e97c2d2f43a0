"""Descriptions of network namespaces: in a file with packets of many containers, each interface shows its namespace.

In: the number of a namespace. Out: its name in /run/netns (`ip netns`), otherwise the container of
its oldest process, otherwise only the number. Also: whether it is the namespace that a setting
names.

The rule: this is called once per namespace or label, never per packet. /run and /proc are not
trusted: what cannot be read is left out, and nothing raises.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from skbcapd.attribution.budget import Budget
from skbcapd.attribution.processes import cgroup_of, container_of, opened, read_stat, short_id
from skbcapd.lru import Bounded
from skbcapd.text_safety import escaped

REMEMBERED = 1024
AHEAD_S = 0.5  # packets wait while names are looked for
RUN = Path("/run/netns")


class Namespaces:
    """Descriptions of network namespaces.

    Args:
        run: where `ip netns` keeps its names.
        proc: where /proc is.
        clock: seconds.
    """

    def __init__(
        self, run: Path = RUN, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run = run
        self._proc = proc
        self._budget = Budget(AHEAD_S, clock)
        self._known: Bounded[int, str] = Bounded(REMEMBERED)

    def describe(self, cookie: int, inode: int) -> str:
        """Say which namespace it is, for `if_description`.

        Args:
            cookie: the namespace's number that is never used again.
            inode: its number as `ls -l /proc/PID/ns/net` shows it; the next one may get the same.

        Returns:
            `network namespace web`, `network namespace of init`, `network namespace of container 0123456789ab`, or
            `network namespace 4026532281`: nothing is known, or many namespaces without a name came, and looking for
            their processes took more than a tenth of the time.
        """
        known = self._known.get(cookie)
        if known is None:
            name = self._name(inode)
            if not name and self._budget.is_spent:
                return f"network namespace {inode}"
            with self._budget.spending():
                known = f"network namespace {name or self._owner(inode) or inode}"
            self._known[cookie] = known
        return known

    def _name(self, inode: int) -> str:
        """The name that `ip netns` has given it."""
        with contextlib.suppress(OSError):
            for path in sorted(self._run.iterdir()):
                if _inode(path) == inode:
                    return escaped(path.name)
        return ""

    def _owner(self, inode: int) -> str:
        """Whose it is: that of init, or of the container that its oldest process is in."""
        for tgid in self._processes(inode):
            if tgid == 1:
                return "of init"
            with contextlib.suppress(OSError):
                container = container_of(cgroup_of((self._proc / str(tgid) / "cgroup").read_bytes()))
                name = short_id(container)
                return f"of container {escaped(name.decode(errors='backslashreplace'))}" if name else ""
        return ""

    def _processes(self, inode: int) -> list[int]:
        """The processes in it, the oldest first."""
        found: list[tuple[int, int]] = []
        with contextlib.suppress(OSError):
            for process in self._proc.iterdir():
                if process.name.isdecimal() and _inode(process / "ns/net") == inode:
                    with opened(self._proc, int(process.name)) as directory:
                        stat = read_stat(directory)
                    if stat:
                        found.append((stat.ticks, int(process.name)))
        return [tgid for _, tgid in sorted(found)]


def is_called(name: str, inode: int, run: Path = RUN) -> bool:
    """Whether a network namespace is the one that somebody names.

    Args:
        name: in `run`, or an inode number.
        inode: of the namespace.
        run: where `ip netns` keeps its names.
    """
    with contextlib.suppress(ValueError):  # NUL
        return int(name) == inode if name.isdecimal() else _inode(run / name) == inode
    return False


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
