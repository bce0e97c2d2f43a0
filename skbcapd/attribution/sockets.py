"""Processes of sockets whose use was not seen, from /proc and the socket tables of the kernel.

In: inode numbers of sockets. Out: the processes that have such a socket open, and the existing TCP
sockets with their inodes.

The rule: the result is all of them or none. A scan that did not reach its end returns none, and so
does one that cannot see all processes (CAP_SYS_PTRACE is missing). A scan of the descriptors of all
processes takes long on a large host: it has a time limit, and scans take at most a tenth of the
time, however many lookups there are.

Not seen: a descriptor in a message, one that is registered with io_uring, descriptor tables of
single threads (unshare(2) with CLONE_FILES), those of a process whose main thread has exited, and
those that a security module hides.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from skbcapd.attribution.budget import Budget
from skbcapd.attribution.processes import NS_PER_TICK, User, opened, read_stat, sees_host
from skbcapd.worker import start_thread

SCAN_S = 0.5  # a scan that takes longer is stopped
GIVEN_UP_S = 60.0  # pause before the next try
START_S = 5.0  # for the scan at the start, when no packet waits
NAMESPACES_MAX = 1024
FLOWS_MAX = 1 << 16  # as many as the kernel program can store
_CLOCK_EVERY = 128  # descriptors between two reads of the clock

_INFO_SIZE = 512  # the needed lines come first
_CAP_SYS_PTRACE = 19
_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14
# include/uapi/linux/sock_diag.h, inet_diag.h, netlink.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2, its id left 0
_SOCKET = struct.Struct("=BBxx2s2s16s16sI8x16xI")  # struct inet_diag_msg
_ATTRIBUTE = struct.Struct("=HH")
_SKV6ONLY = 11  # INET_DIAG_SKV6ONLY: a byte
_STATES = sum(1 << state for state in (1, 2, 4, 5, 8, 9, 10, 11))  # TCP_*: those whose socket may be open
_MAPPED = bytes(10) + b"\xff\xff"


class Flow(NamedTuple):
    """The addresses and ports of a TCP socket (struct flow of bpf/layout.h); IPv4 is in the first
    four bytes.

    A listener has no remote address; bytes 8 to 12 of `remote` are the number of the interface that it
    is bound to. An IPv6 socket that is connected to an IPv4 address has an IPv4 flow, like its packets.
    """

    net: int  # cookie of its network namespace
    local: bytes  # 16 bytes
    remote: bytes  # 16 bytes
    local_port: int
    remote_port: int
    protocol: int
    family: int
    inode: int
    is_v6_only: bool = False


class Holders:
    """Finds the processes that have a socket open.

    Args:
        proc: directory of procfs.
        clock: seconds.
        wall: wall clock, ns since 1970.
        busy: CPU seconds of this thread: a scan is not stopped because other threads run.
    """

    def __init__(
        self,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
        busy: Callable[[], float] = time.thread_time,
    ) -> None:
        self._proc = proc
        self._clock, self._wall, self._busy = clock, wall, busy
        self._scanned_ns = -1  # start of the last complete scan
        self._budget = Budget(SCAN_S, clock, busy)
        self._found: dict[int, tuple[User, ...]] = {}
        self._not_before = float("-inf")

    def find(self, inode: int, seen_ns: int) -> tuple[User, ...] | None:
        """All processes that have a socket open.

        Args:
            inode: inode number of the socket.
            seen_ns: time when it was seen, in ns since 1970: a scan that began later has found it.

        Returns:
            Their main threads, empty if no process has it open; None if it is not known yet,
            because scans have already taken their share of the time. Then try again later.
        """
        begin_ns = self._wall()
        if seen_ns < self._scanned_ns <= begin_ns:  # the clock can be set back
            return self._found.get(inode, ())
        if self._clock() < self._not_before or self._budget.is_spent:
            return None  # more may have it open than the last scan has found
        with self._budget.spending():
            found = all_holders(self._proc, SCAN_S, self._busy)
        self._found, self._scanned_ns = found or {}, begin_ns
        if found is None:
            self._scanned_ns = -1
            self._not_before = self._clock() + GIVEN_UP_S
        return None if found is None else found.get(inode, ())


def all_holders(
    proc: Path = Path("/proc"), seconds: float = START_S, clock: Callable[[], float] = time.monotonic
) -> dict[int, tuple[User, ...]] | None:
    """Every open socket, of any family.

    Args:
        proc: directory of procfs.
        seconds: time limit.
        clock: seconds.

    Returns:
        Inode number -> main threads of the processes that have it open; None if it took too long,
        or if not all processes are visible.
    """
    if not (sees_host(proc) and _may_look(proc)):
        return None
    is_socket = _socket_info()
    end = clock() + seconds
    holders: dict[int, tuple[User, ...]] = {}
    for tgid in _tgids(proc):
        if clock() > end:
            return None
        with opened(proc, tgid) as directory:
            inodes = set()
            for number, inode in enumerate(_inodes(directory, is_socket), 1):
                if inode is not None:
                    inodes.add(inode)
                if number % _CLOCK_EVERY == 0 and clock() > end:  # one process can have a million descriptors
                    return None
            stat = read_stat(directory) if inodes else None
        if stat is not None:
            user = User(tgid, tgid, stat.ticks * NS_PER_TICK, stat.comm[:15], stat.comm[:15])
            for inode in inodes:
                holders[inode] = (*holders.get(inode, ()), user)
    return holders


def namespaces(proc: Path = Path("/proc"), named: Path = Path("/run/netns")) -> dict[int, Path]:
    """The network namespaces that have a process or a name, NAMESPACES_MAX at most: inode number -> file."""
    found: dict[int, Path] = {}
    for path in (*(proc / str(tgid) / "ns/net" for tgid in _tgids(proc)), *_files(named)):
        with contextlib.suppress(OSError):
            found.setdefault(path.stat().st_ino, path)
        if len(found) == NAMESPACES_MAX:
            break
    return found


def flows(proc: Path = Path("/proc"), named: Path = Path("/run/netns")) -> list[Flow]:
    """The TCP connections and listeners of all network namespaces that have a process or a name.

    Left out: namespaces that cannot be entered (CAP_SYS_ADMIN is missing), those that are not
    reached within START_S, and sockets beyond FLOWS_MAX.
    """
    end = time.monotonic() + START_S
    found: list[Flow] = []
    for path in namespaces(proc, named).values():
        if time.monotonic() > end or len(found) >= FLOWS_MAX:
            break
        # setns(2) applies to one thread.
        start_thread(_read_namespace, path, found).join()
    return found


def _may_look(proc: Path) -> bool:
    """Whether this process has CAP_SYS_PTRACE."""
    try:
        found = re.search(rb"^CapEff:\t([0-9a-f]+)$", (proc / "self/status").read_bytes(), re.MULTILINE)
    except OSError:
        return True  # this /proc is not of a kernel
    return found is not None and bool(int(found[1], 16) >> _CAP_SYS_PTRACE & 1)


def _tgids(proc: Path) -> list[int]:
    try:
        with os.scandir(proc) as entries:
            return [int(entry.name) for entry in entries if entry.name.isdecimal() and entry.name.isascii()]
    except OSError:
        return []


def _files(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _inodes(directory: int, is_socket: re.Pattern[bytes]) -> Iterator[int | None]:
    """The inode number of each descriptor of a process that is a socket; none if the process has
    ended, or cannot be read.

    /proc/PID/fd is not used, because it also needs CAP_DAC_READ_SEARCH. fdinfo needs only
    CAP_SYS_PTRACE since Linux 5.14 (commit 7bc3fa0172a4), and has the inode since then
    (3845f256a8b5).
    """
    try:
        table = os.open("fdinfo", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return
    try:
        with os.scandir(table) as entries:
            for entry in entries:
                found = None
                with contextlib.suppress(OSError):  # closed in the meantime
                    info = os.open(entry.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=table)
                    try:
                        found = is_socket.search(os.read(info, _INFO_SIZE))
                    finally:
                        os.close(info)
                yield int(found[1]) if found else None
    except OSError:
        return
    finally:
        os.close(table)


def _socket_info() -> re.Pattern[bytes]:
    """Whether /proc/PID/fdinfo/N describes a socket: it has the mount id of our own sockets."""
    with socket.socket(socket.AF_UNIX) as own:
        mount = re.search(rb"^mnt_id:\t\d+\n", Path(f"/proc/self/fdinfo/{own.fileno()}").read_bytes(), re.MULTILINE)
    return re.compile(b"^" + (mount[0] if mount else b"none") + rb"ino:\t(\d+)$", re.MULTILINE)


def _read_namespace(path: Path, found: list[Flow]) -> None:
    with contextlib.suppress(OSError):
        with path.open("rb") as there:
            is_here = os.fstat(there.fileno()).st_ino == Path("/proc/thread-self/ns/net").stat().st_ino
            if not is_here and ctypes.CDLL(None, use_errno=True).setns(there.fileno(), _CLONE_NEWNET):
                return
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
            diag.settimeout(START_S)
            net = int.from_bytes(diag.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
            for family in (socket.AF_INET, socket.AF_INET6):
                request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _STATES)
                header = _HEADER.pack(
                    _HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_REQUEST_DUMP, int(family), 0
                )
                diag.send(header + request)
                found.extend(itertools.islice(_dump(diag, net), max(0, FLOWS_MAX - len(found))))


def _dump(diag: socket.socket, net: int) -> Iterator[Flow]:
    """The replies to one request."""
    while True:
        data = diag.recv(1 << 16)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, at)
            if kind in {_NLMSG_DONE, _NLMSG_ERROR} or length < _HEADER.size:
                return
            flow = read_flow(data[at + _HEADER.size : at + length], net)
            if flow.inode:
                yield flow
            at += length + -length % 4


def read_flow(message: bytes, net: int) -> Flow:
    """The flow of one struct inet_diag_msg, and its inode number: 0 if no process has the socket
    open.

    Source: include/uapi/linux/inet_diag.h; ports and addresses are in network byte order.
    """
    family, _, local_port, remote_port, local, remote, ifindex, inode = _SOCKET.unpack_from(message)
    if family == socket.AF_INET:
        local, remote = local[:4] + bytes(12), remote[:4] + bytes(12)
    elif remote.startswith(_MAPPED) or local.startswith(_MAPPED):
        family, local, remote = socket.AF_INET, local[12:] + bytes(12), remote[12:] + bytes(12)
    ports = int.from_bytes(local_port, "big"), int.from_bytes(remote_port, "big")
    if not ports[1]:
        remote = bytes(8) + ifindex.to_bytes(4, "little") + bytes(4)
    return Flow(net, local, remote, *ports, socket.IPPROTO_TCP, family, inode, _is_v6_only(message))


def _is_v6_only(message: bytes) -> bool:
    """Whether the attributes behind a struct inet_diag_msg say that the socket takes IPv6 only."""
    at = _SOCKET.size
    while at + _ATTRIBUTE.size < len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _SKV6ONLY:
            return bool(message[at + _ATTRIBUTE.size])
        at += max(_ATTRIBUTE.size, length + -length % 4)
    return False
