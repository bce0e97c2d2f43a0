"""Descriptions of network namespaces: in a file with packets of many containers, each interface
shows its namespace.

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
AHEAD_S = 0.5  # packets wait during a lookup
RUN = Path("/run/netns")
_DESCRIPTION, _INIT, _CONTAINER = "network namespace ", "of init", "of container "


class Namespaces:
    """Descriptions of network namespaces.

    Args:
        run: directory with the names of `ip netns`.
        proc: directory of procfs.
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
        """The description of a namespace, for `if_description`.

        Args:
            cookie: number of the namespace that the kernel never uses again.
            inode: its number as `ls -l /proc/PID/ns/net` shows it; a later namespace can get the
                same number.

        Returns:
            `network namespace web`, `network namespace of init`, `network namespace of container
            0123456789ab`, or `network namespace 4026532281` if nothing else is known, or if lookups
            of processes have already taken a tenth of the time.
        """
        known = self._known.get(cookie)
        if known is None:
            name = self._name(inode)
            if not name and self._budget.is_spent:
                return f"{_DESCRIPTION}{inode}"
            with self._budget.spending():
                known = f"{_DESCRIPTION}{name or self._owner(inode) or inode}"
            self._known[cookie] = known
        return known

    def _name(self, inode: int) -> str:
        """The name from `ip netns`."""
        with contextlib.suppress(OSError):
            for path in sorted(self._run.iterdir()):
                if _inode(path) == inode:
                    return escaped(path.name)
        return ""

    def _owner(self, inode: int) -> str:
        """Its owner: init, or the container of its oldest process."""
        for tgid in self._processes(inode):
            if tgid == 1:
                return _INIT
            with contextlib.suppress(OSError):
                container = container_of(cgroup_of((self._proc / str(tgid) / "cgroup").read_bytes()))
                name = short_id(container)
                return f"{_CONTAINER}{escaped(name.decode(errors='backslashreplace'))}" if name else ""
        return ""

    def _processes(self, inode: int) -> list[int]:
        """The processes in the namespace, the oldest first."""
        found: list[tuple[int, int]] = []
        with contextlib.suppress(OSError):
            for process in self._proc.iterdir():
                if process.name.isdecimal() and _inode(process / "ns/net") == inode:
                    with opened(self._proc, int(process.name)) as directory:
                        stat = read_stat(directory)
                    if stat:
                        found.append((stat.ticks, int(process.name)))
        return [tgid for _, tgid in sorted(found)]


def name_of(description: str) -> str:
    """The short name of a namespace: that of `ip netns`, `host` for the one of init, the id of its container,
    or its inode number.

    Args:
        description: from Namespaces.describe.
    """
    name = description.removeprefix(_DESCRIPTION)
    return "host" if name == _INIT else name.removeprefix(_CONTAINER)


def is_called(name: str, inode: int, run: Path = RUN) -> bool:
    """Whether a network namespace is the one that a setting names.

    Args:
        name: in `run`, or an inode number.
        inode: of the namespace.
        run: directory with the names of `ip netns`.
    """
    with contextlib.suppress(ValueError):  # NUL in the name
        return int(name) == inode if name.isdecimal() else _inode(run / name) == inode
    return False


def inode_of(name: str, run: Path = RUN) -> int:
    """The inode number of a network namespace with a name; 0 if there is none."""
    try:
        return _inode(run / name)
    except ValueError:  # NUL in the name
        return 0


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
