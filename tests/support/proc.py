"""A /proc for tests: directories with the processes that a test defines."""

from __future__ import annotations

import socket
from pathlib import Path

TICK = 10_000_000  # ns


class Proc:
    """A directory like /proc, and a file like /etc/passwd.

    Args:
        root: an empty directory.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / "proc"
        self.users = root / "passwd"
        self.path.mkdir()
        self.users.write_bytes(b"root:x:0:0:root:/root:/bin/bash\n_chrony:x:101:102::/:/none\nsame:x:0:0:::\n")

    def add(
        self,
        tgid: int,
        *,
        ticks: int = 5900,
        comm: bytes = b"chronyd",
        exe: str = "/usr/sbin/chronyd",
        cmdline: bytes = b"/usr/sbin/chronyd\0-F\0001\0",
        cgroup: bytes = b"0::/system.slice/chrony.service\n",
        uid: int = 101,
    ) -> Path:
        """Add a process with its main thread."""
        process = self.path / str(tgid)
        process.mkdir()
        (process / "stat").write_bytes(stat(tgid, comm, ticks))
        (process / "status").write_bytes(b"Name:\t" + comm + b"\nTgid:\t%d\nUid:\t0\t%d\t0\t0\n" % (tgid, uid))
        (process / "cmdline").write_bytes(cmdline)
        (process / "cgroup").write_bytes(cgroup)
        (process / "exe").symlink_to(exe)
        (process / "fdinfo").mkdir()
        self.thread(tgid, tgid, ticks=ticks, comm=comm)
        return process

    def thread(self, tgid: int, tid: int, *, ticks: int = 5900, comm: bytes = b"chronyd") -> None:
        """Add a thread."""
        thread = self.path / str(tgid) / "task" / str(tid)
        thread.mkdir(parents=True)
        (thread / "stat").write_bytes(stat(tid, comm, ticks))

    def hold(self, tgid: int, *targets: str) -> None:
        """Add open descriptors; a target is the one in /proc/PID/fd."""
        for number, target in enumerate(targets):
            is_socket = target.startswith("socket:[")
            mount = socket_mount() if is_socket else socket_mount() + 1
            inode = target[8:-1] if is_socket else "107"
            (self.path / str(tgid) / "fdinfo" / str(number)).write_text(
                f"pos:\t0\nflags:\t02000002\nmnt_id:\t{mount}\nino:\t{inode}\nscm_fds: 0\n"
            )


def socket_mount() -> int:
    """The mount id of all sockets of this machine."""
    with socket.socket() as own:
        lines = Path(f"/proc/self/fdinfo/{own.fileno()}").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("mnt_id:")))


def stat(pid: int, comm: bytes, ticks: int) -> bytes:
    """The line of /proc/PID/stat; parent is 1, start is field 22."""
    return b"%d (%b) S 1 " % (pid, comm) + b"7 " * 17 + b"%d 9 9 9\n" % ticks
