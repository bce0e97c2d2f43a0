"""Processes: what /proc says about them, beyond the ids and names that the kernel program has read.

In: a thread from the kernel program (tgid, tid, start). Out: the record of its process, or None.
This is called in an upcall, once per label, and only if a setting needs more than the kernel
program knows; never per packet.

The rule: a record counts only if it is provably of the same process, because ids are reused. The
kernel gives the start of the *thread* (`start_boottime` in ns); /proc/PID/stat gives it in clock
ticks. /proc/TGID is opened once, and everything is read below that descriptor. It stays with its
process: when that has exited, reading fails, even if the id is used again. The process is proven by
its thread with the right start. If the thread has exited, it is proven by an earlier start than
that of the thread, in ticks: the next process with the same id would have started later.

No file here is trusted to exist, to be complete or to make sense: what cannot be read is left out,
and nothing raises.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from skbcapd import clocks
from skbcapd.attribution.command_lines import CommandLines
from skbcapd.attribution.containers import NOTHING, Containers, Names
from skbcapd.lru import Bounded

NS_PER_TICK = clocks.NS_PER_TICK
boot_ns = clocks.boot_ns
CMDLINE_MAX = 4096  # bytes of a command line that are read
REMEMBERED = 1024  # records, of 12 KiB at most
FRESH_S = 1.0  # a record is valid for this time: a process can change its user, program and cgroup
_INITIAL_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of include/linux/proc_ns.h
_FILE_MAX = 1 << 16
_STATUS_MAX = 4096  # without the list of groups
_GROUPS = re.compile(rb"^Groups:.*\n", re.MULTILINE)
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
        tgid: process id; 0: no process, or several.
        tid: thread id.
        start: start of the thread, ns since boot; in steps of 10 ms if it comes from /proc.
        comm: name of the thread.
        process: name of the process (of the thread group leader); empty if not known.
    """

    tgid: int
    tid: int
    start: int
    comm: bytes
    process: bytes = b""


@dataclass(frozen=True, slots=True)
class Process:
    """The record of a process. Texts are bytes from the kernel, not escaped; empty if not known.

    Args:
        tgid: process id.
        start: ns since boot, in whole clock ticks.
        comm: name of its main thread.
        ppid: process id of the parent; None if not known.
        uid: effective user id; None if not known.
        user: name of this user in /etc/passwd.
        exe: path of its program, if it is certainly the program that used the socket.
        cmdline: its arguments under the same condition, if a setting needs them: each ends with a
            NUL, at most CMDLINE_MAX bytes.
        cgroup: path of its cgroup.
        gid: effective group id; None if not known.
        names: names of its container.
        status: text of /proc/PID/status, for other fields; ignored when records are compared.
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
    names: Names = NOTHING
    status: bytes = field(default=b"", compare=False, repr=False)


class Processes:
    """Reads and caches records of processes, including processes that have ended.

    Args:
        cmdline: whether to read command lines, which can contain passwords.
        proc: directory of procfs.
        users: file with the names of users. Other sources (LDAP, dynamic users of systemd) are not
            used: they can be slow, and packets wait for the answer.
        containers: finds the names of containers.
        clock: seconds.
    """

    def __init__(
        self,
        *,
        cmdline: bool = False,
        proc: Path = Path("/proc"),
        users: Path = Path("/etc/passwd"),
        containers: Containers | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cmdline = cmdline
        self._command_lines = CommandLines(_read_command_line, clock)
        self._proc = proc
        self._users = _Users(users)
        self._containers = containers or Containers()
        self._clock = clock
        self._sees_host = sees_host(proc)
        self._known: Bounded[tuple[int, int, int], tuple[float, bytes, Process]] = Bounded(REMEMBERED)

    def find(self, tgid: int, tid: int, start: int, comm: bytes) -> Process | None:
        """The record of the process of a thread.

        Args:
            tgid: process id.
            tid: thread id.
            start: start of the thread, ns since boot.
            comm: name of the thread. A new name usually means a new program, so an older record is
                not used.

        Returns:
            A record that is at most FRESH_S old, or the last record of a process that has ended;
            None if nothing is certain.
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
        return process

    def parent(self, process: Process) -> Process | None:
        """The parent of a process, if it still runs; None if that is not certain."""
        if not process.ppid or not self._sees_host:
            return None
        with opened(self._proc, process.ppid) as directory:
            stat = read_stat(directory)
            if stat is None or stat.ticks * NS_PER_TICK > process.start:
                return None  # the id belongs to another process now
            exe = _link(directory, "exe")
            cmdline = self._command_lines.get(directory, process.ppid) if self._cmdline else b""
            return self._record(directory, process.ppid, stat, exe, cmdline)

    def _read(self, tgid: int, tid: int, start: int, comm: bytes) -> Process | None:
        with opened(self._proc, tgid) as directory:
            exe = _link(directory, "exe")
            cmdline = self._command_lines.get(directory, tgid) if self._cmdline else b""
            leader, thread = read_stat(directory), read_stat(directory, f"task/{tid}/")
            if leader is None or not _is_of(leader, thread, start // NS_PER_TICK, is_leader=tid == tgid):
                return None
            # A thread that has changed its name may run another program. Workers of io_uring have
            # the name of their process.
            if thread is not None and comm not in {thread.comm, leader.comm}:
                exe = cmdline = b""
            return self._record(directory, tgid, leader, exe, cmdline)

    def _record(self, directory: int, tgid: int, leader: Stat, exe: bytes, cmdline: bytes) -> Process:
        status = _GROUPS.sub(b"", _read_file(directory, "status"))[:_STATUS_MAX]
        uid = _effective(b"Uid", status)
        cgroup = cgroup_of(_read_file(directory, "cgroup"))
        return Process(
            tgid=tgid,
            start=leader.ticks * NS_PER_TICK,
            comm=leader.comm,
            ppid=leader.ppid,
            uid=uid,
            user=b"" if uid is None else self._users.name(uid, self._clock()),
            exe=exe,
            cmdline=cmdline,
            cgroup=cgroup,
            gid=_effective(b"Gid", status),
            names=self._containers.find(container_of(cgroup), cgroup),
            status=status,
        )


@dataclass(frozen=True, slots=True)
class Stat:
    """The content of /proc/PID/stat. `ticks`: start of the thread since boot, in clock ticks of the
    kernel. `state`: one letter; Z: it has ended, and its parent has not noticed.
    """

    comm: bytes
    ppid: int
    ticks: int
    state: bytes = b""


def sees_host(proc: Path = Path("/proc")) -> bool:
    """Whether /proc shows the process ids of the initial PID namespace."""
    try:
        return (proc / "self/ns/pid").stat().st_ino == _INITIAL_NAMESPACE
    except OSError:
        return True  # this /proc is not of a kernel


@contextlib.contextmanager
def opened(proc: Path, tgid: int) -> Iterator[int]:
    """Open the directory of a process; -1 if there is none. Reading below it gives data of this
    process, or fails.
    """
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
    """Name, parent and start of a process, or of its thread in `task/TID/`; None if it has ended.

    Source: proc_pid_stat(5): the name can contain any bytes, also `) `; only numbers follow it.
    """
    before, _, after = _read_file(directory, below + "stat").rpartition(b")")
    values = after.split()
    try:
        ticks = int(values[19]) - clocks.offsets().boottime_ticks
        found = Stat(before.split(b"(", 1)[1], int(values[1]), ticks, values[0])
    except (IndexError, ValueError):
        return None
    is_possible = 0 <= found.ppid < 1 << 31 and 0 <= found.ticks < (1 << 63) // NS_PER_TICK
    return found if is_possible else None


def cgroup_of(text: bytes) -> bytes:
    """The most useful path in /proc/PID/cgroup: of version 2, otherwise of systemd, otherwise any.

    Source: cgroups(7).
    """
    paths: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        number, controllers, path = ([*line.split(b":", 2), b"", b""])[:3]
        if path.startswith(b"/"):
            paths.setdefault(b"0" if number == b"0" else controllers, path)
    ordered = [paths.pop(key) for key in (b"0", b"name=systemd") if key in paths]
    useful = [path for path in (*ordered, *paths.values()) if path != b"/"]
    return (useful or ordered or [b""])[0]


def unit_of(cgroup: bytes) -> bytes:
    """The systemd unit of a cgroup: the first name below the slices, as in systemd itself.

    Args:
        cgroup: a path.

    Returns:
        `ssh.service`; `user@1000.service/foo.service` for a unit of a user manager, so no user can
        imitate a system unit; empty if there is none, or if the path starts outside of our cgroup
        namespace.

    Source: cg_path_get_unit and cg_unescape in src/basic/cgroup-util.c of systemd.
    """
    names = _names(cgroup)
    unit, rest = _first_unit(names)
    if _MANAGER.fullmatch(unit):
        own, _ = _first_unit(rest)
        return unit + b"/" + own if own else unit
    return unit


def container_of(cgroup: bytes) -> bytes:
    """The container of a cgroup; of nested containers the outermost one.

    Args:
        cgroup: a path.

    Returns:
        The id, 64 hex digits (docker, podman, containerd, cri-o), or the name of a machine
        (systemd-nspawn); empty if there is none. Helper processes of an engine, such as conmon, are
        in no container.
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


def short_id(container: bytes) -> bytes:
    """The short form of a container id: its first twelve digits; a name is unchanged."""
    return container[:12] if _CONTAINER.fullmatch(container) else container


def _names(cgroup: bytes) -> list[bytes]:
    names = [name for name in cgroup.removesuffix(b" (deleted)").split(b"/") if name]
    return [] if b".." in names else names


def _first_unit(names: list[bytes]) -> tuple[bytes, list[bytes]]:
    """The unit, and the path below it."""
    for at, name in enumerate(names):
        if not name.endswith(b".slice"):
            unit = _UNIT.fullmatch(name)
            return (unit[1], names[at + 1 :]) if unit else (b"", [])
    return b"", []


def _is_of(leader: Stat, thread: Stat | None, ticks: int, *, is_leader: bool) -> bool:
    """Whether this is the process whose thread started at `ticks`."""
    if is_leader:
        return leader.ticks == ticks
    return leader.ticks < ticks or (thread is not None and thread.ticks == ticks)


class _Users:
    """Names of users; the file is checked once a second at most, and read again if it has changed."""

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
    """The effective user or group: the second number (real, effective, saved, file system)."""
    found = re.search(rb"^" + what + rb":\t[0-9]+\t([0-9]{1,10})\t", status, re.MULTILINE)
    return int(found[1]) if found else None


def _read_command_line(directory: int) -> bytes:
    return _read_file(directory, "cmdline", CMDLINE_MAX)


def _link(directory: int, name: str) -> bytes:
    try:
        return os.fsencode(os.readlink(name, dir_fd=directory))
    except OSError:
        return b""


def _read_file(directory: int, name: str, most: int = _FILE_MAX) -> bytes:
    """Up to `most` bytes of a file; empty if it cannot be read."""
    data = b""
    try:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return data
    try:
        while len(data) < most and (more := os.read(file, most - len(data))):
            data += more
    except OSError:  # the process has ended
        return b""
    finally:
        os.close(file)
    return data
