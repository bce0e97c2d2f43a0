"""Who a process is: what /proc says of it, beyond the ids and the name that the kernel program has taken itself.

In: a thread as the kernel program names it (tgid, tid, start). Out: its process's record, or None. Asked for in an
upcall, once per label, and only when a setting wants more than comm, pid and tgid; never per packet.

The rule: a record counts only if it is provably of the same process, for ids are used again. The kernel's start is the
*thread's* (`start_boottime` in ns); /proc/PID/stat tells it in clock ticks. /proc/TGID is opened once and everything is
read below that descriptor, which stays with its process: when that is gone, reading fails, whoever has the number now.
Its thread of the right start proves it. So does a process that started in an earlier tick than the thread, if the
thread is gone: the next process of the same number would have started after it.

No file here can be trusted to exist, to be complete or to make sense: what cannot be read is left out, nothing raises.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
CMDLINE_MAX = 4096  # bytes of a command line that are read
REMEMBERED = 1024  # records, of 12 KiB at most
FRESH_S = 1.0  # as long a record is not read again: a process may change its user, its program, its cgroup
_INITIAL_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of include/linux/proc_ns.h
_FILE_MAX = 1 << 16
_USERS_MAX = 1 << 22

_UNIT = re.compile(rb"_?([A-Za-z0-9:_.\\@-]+\.(?:service|scope|socket|mount|swap))")
_MANAGER = re.compile(rb"user@[0-9]+\.service")
_CONTAINER = re.compile(rb"((?:[a-z0-9]+-)*)([0-9a-f]{64})(?:\.scope)?")
_MACHINE = re.compile(rb"(?:machine-(?!qemu\\x2d)(.+)\.scope|systemd-nspawn@(.+)\.service)")
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


@dataclass(frozen=True, slots=True)
class User:
    """A thread that uses a socket.

    Args:
        tgid: process; 0: nobody, or more than one.
        tid: thread.
        start: of the thread, ns since boot; hundredths of a second where /proc told it.
        comm: of the thread.
    """

    tgid: int
    tid: int
    start: int
    comm: bytes


@dataclass(frozen=True, slots=True)
class Process:
    """What is known of a process. Text is as the kernel gives it: any bytes; empty where it is not known.

    Args:
        tgid: its id.
        start: ns since boot, in whole clock ticks.
        comm: of its main thread.
        ppid: its parent; None when not known.
        uid: its effective user; None when not known.
        user: that user's name in /etc/passwd.
        exe: path of its program, if that is certain to be the one that used the socket.
        cmdline: under the same condition, and if wanted, its arguments, each ended by a NUL: CMDLINE_MAX bytes at most.
        cgroup: path of its cgroup.
        gid: its effective group; None when not known.
    """

    tgid: int
    start: int
    comm: bytes
    ppid: int | None
    uid: int | None
    user: bytes
    exe: bytes
    cmdline: bytes
    cgroup: bytes
    gid: int | None = None

    def fields(self) -> dict[str, bytes | int]:
        """What a comment may say of it beside comm, pid and tgid: key to value, without what is not known."""
        container = container_of(self.cgroup)
        found: dict[str, bytes | int | None] = {
            "ppid": self.ppid,
            "uid": self.uid,
            "user": self.user,
            "exe": self.exe,
            "cmdline": self.cmdline.rstrip(b"\0").replace(b"\0", b" "),
            "cgroup": self.cgroup,
            "unit": unit_of(self.cgroup),
            "container": container[:12] if _CONTAINER.fullmatch(container) else container,
        }
        return {key: value for key, value in found.items() if value not in {None, b""}}


class Processes:
    """Records of processes, some of them of the past.

    Args:
        cmdline: read command lines, too: they may hold secrets.
        proc: where /proc is.
        users: where names of users are. Other sources (LDAP, systemd's dynamic users) are not asked: they may answer
            late, and packets wait meanwhile.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        cmdline: bool = False,
        proc: Path = Path("/proc"),
        users: Path = Path("/etc/passwd"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cmdline = cmdline
        self._proc = proc
        self._users = _Users(users)
        self._clock = clock
        self._sees_host = sees_host(proc)
        self._known: OrderedDict[tuple[int, int, int], tuple[float, bytes, Process]] = OrderedDict()

    def find(self, tgid: int, tid: int, start: int, comm: bytes) -> Process | None:
        """The process of a thread.

        Args:
            tgid: process.
            tid: thread.
            start: of the thread, ns since boot.
            comm: of the thread: a new name is mostly a new program, so an older record is not taken.

        Returns:
            A record of not more than FRESH_S ago, or the last one of a process that has ended; None when nothing is
            known for certain.
        """
        if not self._sees_host:
            return None
        key = tgid, tid, start
        now = self._clock()
        known = self._known.get(key)
        if known is not None and now < known[0] + FRESH_S and comm == known[1]:
            return known[2]
        process = self._read(tgid, tid, start, comm)
        if process is None:
            return known[2] if known is not None and comm == known[1] else None
        self._known[key] = now, comm, process
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return process

    def parent(self, process: Process) -> Process | None:
        """The parent of a process, if it is still there; None when that is not certain."""
        if not process.ppid or not self._sees_host:
            return None
        with opened(self._proc, process.ppid) as directory:
            stat = read_stat(directory)
            if stat is None or stat.ticks * NS_PER_TICK > process.start:
                return None  # the number is another process's by now
            exe = _link(directory, "exe")
            cmdline = _read_file(directory, "cmdline", CMDLINE_MAX) if self._cmdline else b""
            return self._record(directory, process.ppid, stat, exe, cmdline)

    def _read(self, tgid: int, tid: int, start: int, comm: bytes) -> Process | None:
        with opened(self._proc, tgid) as directory:
            exe = _link(directory, "exe")
            # A process cannot hold up who reads this (CVE-2018-1120, mended in Linux 4.17).
            cmdline = _read_file(directory, "cmdline", CMDLINE_MAX) if self._cmdline else b""
            leader, thread = read_stat(directory), read_stat(directory, f"task/{tid}/")
            if leader is None or not _is_of(leader, thread, start // NS_PER_TICK, is_leader=tid == tgid):
                return None
            # A thread that has another name by now may run another program. Workers of io_uring go by their process's.
            if thread is not None and comm not in {thread.comm, leader.comm}:
                exe = cmdline = b""
            return self._record(directory, tgid, leader, exe, cmdline)

    def _record(self, directory: int, tgid: int, leader: Stat, exe: bytes, cmdline: bytes) -> Process:
        status = _read_file(directory, "status")
        uid = _effective(b"Uid", status)
        return Process(
            tgid=tgid,
            start=leader.ticks * NS_PER_TICK,
            comm=leader.comm,
            ppid=leader.ppid,
            uid=uid,
            user=b"" if uid is None else self._users.name(uid, self._clock()),
            exe=exe,
            cmdline=cmdline,
            cgroup=cgroup_of(_read_file(directory, "cgroup")),
            gid=_effective(b"Gid", status),
        )


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/PID/stat says. `ticks`: start of the thread since boot, in clock ticks."""

    comm: bytes
    ppid: int
    ticks: int


def sees_host(proc: Path) -> bool:
    """Whether processes have the numbers there that they have in the kernel: not so in a PID namespace of its own."""
    try:
        return (proc / "self/ns/pid").stat().st_ino == _INITIAL_NAMESPACE
    except OSError:
        return True  # no /proc of a kernel's


@contextlib.contextmanager
def opened(proc: Path, tgid: int) -> Iterator[int]:
    """A process's directory; -1 when there is none. What is read below it is of this process, or fails."""
    try:
        directory = os.open(proc / str(tgid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield -1
        return
    try:
        yield directory
    finally:
        os.close(directory)


def read_stat(directory: int, below: str = "") -> Stat | None:
    """Name, parent and start of a process, or of its thread in `task/TID/`; None when it is gone.

    Source: proc_pid_stat(5): the name may hold anything, also `) `; behind it stand numbers only.
    """
    before, _, after = _read_file(directory, below + "stat").rpartition(b")")
    values = after.split()
    try:
        found = Stat(before.split(b"(", 1)[1], int(values[1]), int(values[19]))
    except (IndexError, ValueError):
        return None
    is_possible = 0 <= found.ppid < 1 << 31 and 0 <= found.ticks < (1 << 63) // NS_PER_TICK
    return found if is_possible else None


def cgroup_of(text: bytes) -> bytes:
    """The path that says most, from the lines of /proc/PID/cgroup: version 2, else systemd's own, else any.

    Source: cgroups(7).
    """
    paths: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        number, controllers, path = ([*line.split(b":", 2), b"", b""])[:3]
        if path.startswith(b"/"):
            paths.setdefault(b"0" if number == b"0" else controllers, path)
    ordered = [paths.pop(key) for key in (b"0", b"name=systemd") if key in paths]
    told = [path for path in (*ordered, *paths.values()) if path != b"/"]
    return (told or ordered or [b""])[0]


def unit_of(cgroup: bytes) -> bytes:
    """The systemd unit of a cgroup, found as systemd does: the first name below the slices.

    Args:
        cgroup: a path.

    Returns:
        `ssh.service`; `user@1000.service/foo.service` for a unit of a user's own manager, so that no user can pass
        for a unit of the system; empty where there is none, or the path starts outside of our cgroup namespace.

    Source: cg_path_get_unit and cg_unescape in src/basic/cgroup-util.c of systemd.
    """
    names = _names(cgroup)
    unit, rest = _first_unit(names)
    if _MANAGER.fullmatch(unit):
        own, _ = _first_unit(rest)
        return unit + b"/" + own if own else unit
    return unit


def container_of(cgroup: bytes) -> bytes:
    """The container of a cgroup, the outermost one where they are nested.

    Args:
        cgroup: a path.

    Returns:
        The id, 64 hex digits (docker, podman, containerd, cri-o; by systemd or by themselves), or a machine's name
        (systemd-nspawn); empty where there is none. Their own helpers, such as conmon, are not in it.
    """
    names = _names(cgroup)
    if names[:1] == [b"machine.slice"] and names[2:3] != [b"supervisor"]:
        machine = _MACHINE.fullmatch(names[1]) if len(names) > 1 else None
        if machine:
            return _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), machine[1] or machine[2])
    for name in names:
        found = _CONTAINER.fullmatch(name.rpartition(b":")[2])  # containerd: SLICE:cri-containerd:ID
        if found and b"conmon-" not in found[1]:
            return found[2]
    return b""


def _names(cgroup: bytes) -> list[bytes]:
    names = [name for name in cgroup.removesuffix(b" (deleted)").split(b"/") if name]
    return [] if b".." in names else names


def _first_unit(names: list[bytes]) -> tuple[bytes, list[bytes]]:
    """The unit, and what is below it."""
    for at, name in enumerate(names):
        if not name.endswith(b".slice"):
            unit = _UNIT.fullmatch(name)
            return (unit[1], names[at + 1 :]) if unit else (b"", [])
    return b"", []


def _is_of(leader: Stat, thread: Stat | None, ticks: int, *, is_leader: bool) -> bool:
    """Whether a process is the one whose thread started at `ticks`."""
    if is_leader:
        return leader.ticks == ticks
    return leader.ticks < ticks or (thread is not None and thread.ticks == ticks)


class _Users:
    """Names of users, read again when the file has changed; looked at once a second at most."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: dict[int, bytes] = {}
        self._version: tuple[int, ...] = ()
        self._look_at = 0.0

    def name(self, uid: int, now: float) -> bytes:
        if now >= self._look_at:
            self._look_at = now + FRESH_S
            with contextlib.suppress(OSError):
                state = self._path.stat()
                version = state.st_ino, state.st_mtime_ns, state.st_size
                if version != self._version:
                    with self._path.open("rb") as file:
                        self._names = _passwd(file.read(_USERS_MAX))
                    self._version = version
        return self._names.get(uid, b"")


def _passwd(text: bytes) -> dict[int, bytes]:
    names: dict[int, bytes] = {}
    for line in text.split(b"\n"):
        parts = line.split(b":")
        if len(parts) > 2 and parts[0] and re.fullmatch(rb"[0-9]{1,10}", parts[2]):
            names.setdefault(int(parts[2]), parts[0])
    return names


def _effective(what: bytes, status: bytes) -> int | None:
    """The effective user or group: the second number (real, effective, saved, of the file system)."""
    found = re.search(rb"^" + what + rb":\t[0-9]+\t([0-9]{1,10})\t", status, re.MULTILINE)
    return int(found[1]) if found else None


def _link(directory: int, name: str) -> bytes:
    try:
        return os.fsencode(os.readlink(name, dir_fd=directory))
    except OSError:
        return b""


def _read_file(directory: int, name: str, most: int = _FILE_MAX) -> bytes:
    """Up to `most` bytes of a file; empty when it cannot be read."""
    data = b""
    try:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return data
    try:
        while len(data) < most and (more := os.read(file, most - len(data))):
            data += more
    except OSError:  # it ended meanwhile
        return b""
    finally:
        os.close(file)
    return data


def boot_ns() -> int:
    """When the machine was started, ns since 1970 UTC."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
