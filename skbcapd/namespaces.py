"""What a network namespace is called: a file of packets from many containers should say which is which.

In: a namespace's number. Out: its name in /run/netns (`ip netns`), else the container of its oldest process, else only
the number.

The rule: asked once per namespace, never per packet, and any answer of /run and /proc is taken as it comes: what cannot
be read is left out, nothing raises.
"""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

REMEMBERED = 1024

# docker, podman, containerd and cri-o name a container's cgroup by 64 hex digits, with words before and behind.
_CONTAINER = re.compile(rb"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_MACHINE = re.compile(rb"/machine-([^/\n]+)\.scope")


class Namespaces:
    """Descriptions of network namespaces.

    Args:
        run: where `ip netns` keeps its names.
        proc: where /proc is.
    """

    def __init__(self, run: Path = Path("/run/netns"), proc: Path = Path("/proc")) -> None:
        self._run = run
        self._proc = proc
        self._known: OrderedDict[int, str] = OrderedDict()

    def describe(self, cookie: int, inode: int) -> str:
        """Say which namespace it is, for `if_description`.

        Args:
            cookie: the namespace's number that is never used again.
            inode: its number as `ls -l /proc/PID/ns/net` shows it; the next one may get the same.

        Returns:
            `network namespace web`, `network namespace of init`, `network namespace of container 0123456789ab`, or
            `network namespace 4026532281`.
        """
        known = self._known.get(cookie)
        if known is None:
            known = f"network namespace {self._name(inode) or self._owner(inode) or inode}"
            self._known[cookie] = known
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return known

    def _name(self, inode: int) -> str:
        """The name that `ip netns` has given it."""
        with contextlib.suppress(OSError):
            for path in sorted(self._run.iterdir()):
                if _inode(path) == inode:
                    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in path.name)
        return ""

    def _owner(self, inode: int) -> str:
        """Whose it is: that of init, or of a container's first process."""
        for process in self._processes(inode):
            if process.name == "1":
                return "of init"
            with contextlib.suppress(OSError):
                cgroup = (process / "cgroup").read_bytes()
                found = _CONTAINER.search(cgroup) or _MACHINE.search(cgroup)
                return f"of container {found[1].decode(errors='backslashreplace')}" if found else ""
        return ""

    def _processes(self, inode: int) -> Iterator[Path]:
        """The processes in it, the oldest first."""
        found: list[tuple[int, Path]] = []
        with contextlib.suppress(OSError):
            for process in self._proc.iterdir():
                if process.name.isdecimal() and _inode(process / "ns/net") == inode:
                    with contextlib.suppress(OSError, IndexError, ValueError):
                        # The start, in clock ticks; a name may hold anything, also `) `. Source: proc_pid_stat(5).
                        start = (process / "stat").read_bytes().rpartition(b")")[2].split()[19]
                        found.append((int(start), process))
        return (process for _, process in sorted(found))


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0
