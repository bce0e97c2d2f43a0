"""Processes that have a socket open, from a /proc of the test and the real one; the TCP sockets of
the kernel.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.attribution import sockets
from skbcapd.attribution.processes import Processes, User
from skbcapd.attribution.sockets import Flow, Holders, all_holders, flows, read_flow
from tests.support.proc import TICK, Proc


class Clock:
    """Seconds; each read of the clock adds `step`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.step = 0.0

    def __call__(self) -> float:
        """The time."""
        self.now += self.step
        return self.now


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """A /proc with three processes: one has its own socket, two share one."""
    made = Proc(tmp_path)
    made.add(7, comm=b"one")
    made.add(11, comm=b"two")
    made.add(13, comm=b"three")
    (made.path / "irq").mkdir()
    made.hold(7, "socket:[101]", "/dev/null", "socket:[101]", "pipe:[102]", "socket:[x]", "socket:[103]")
    made.hold(11, "socket:[103]", "anon_inode:[eventpoll]")
    return made


ONE = User(7, 7, 5900 * TICK, b"one", b"one")
TWO = User(11, 11, 5900 * TICK, b"two", b"two")
THREE = User(13, 13, 5900 * TICK, b"three", b"three")


def test_all_processes_with_open_sockets(proc: Proc) -> None:
    """A socket has the processes that have it open, each once; other files are ignored."""
    found = all_holders(proc.path)

    assert found is not None
    assert {inode: set(users) for inode, users in found.items()} == {101: {ONE}, 103: {ONE, TWO}}
    assert len(found[101]) == 1


def test_processes_that_disappear_have_nothing_open(proc: Proc) -> None:
    """A process without descriptors, or without a start, is ignored."""
    (proc.path / "7" / "stat").unlink()
    (proc.path / "13" / "fdinfo").rmdir()

    assert all_holders(proc.path) == {103: (TWO,)}
    assert all_holders(proc.path / "none") == {}


def test_without_permission_no_process_is_named() -> None:
    """Without permission to read the descriptors of others, as for ordinary users, no process is
    named.
    """
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)
        assert all_holders() is None
    finally:
        os.seteuid(user)


def test_a_pid_namespace_has_other_numbers(proc: Proc) -> None:
    """In a /proc of a PID namespace no process is named: its ids are not those of the kernel
    program.
    """
    (proc.path / "self" / "ns").mkdir(parents=True)
    (proc.path / "self" / "ns" / "pid").touch()

    assert all_holders(proc.path) is None
    proc.add(1058)
    assert Processes(proc=proc.path, users=proc.users).find(1058, 1058, 5900 * TICK, b"chronyd") is None


LATE = 1 << 62  # seen after all scans


def test_many_lookups_use_a_limited_time(proc: Proc) -> None:
    """Scans take at most a first amount, then a tenth of the time; in between nothing is known: other
    processes can have the socket open since the last one.
    """
    clock, busy = Clock(), Clock()
    holders = Holders(proc.path, clock, busy=busy)
    assert [holders.find(inode, LATE) for inode in (101, 109)] == [(ONE,), ()]
    busy.step = sockets.SCAN_S / 17
    for question in range(1009):
        if holders.find(107, LATE) is None:
            break
        assert question < 5
    proc.hold(13, "socket:[107]")
    assert {holders.find(inode, LATE) for inode in (101, 107) for _ in range(1009)} == {None}
    clock.now += 20 * sockets.SCAN_S
    assert holders.find(107, LATE) == (THREE,)


def test_sockets_seen_before_a_scan_need_no_other(proc: Proc) -> None:
    """A scan is used for all sockets seen before it began, and for no later one; also not if the
    clock was set back.
    """
    wall = iter((100, 200, 300, 400, 150))
    holders = Holders(proc.path, Clock(), lambda: next(wall))
    assert holders.find(101, 90) == (ONE,)
    proc.hold(13, "socket:[107]")

    assert [holders.find(inode, 99) for inode in (101, 107)] == [(ONE,), ()]
    assert holders.find(107, 100) == (THREE,)
    proc.hold(11, "socket:[109]")
    assert holders.find(109, 99) == (TWO,)


def test_a_scan_that_takes_too_long_names_no_process(proc: Proc) -> None:
    """A scan that was stopped names no process, not even one that it has found, and is not tried
    again for a minute.
    """
    clock = Clock()
    holders = Holders(proc.path, clock, busy=clock)
    clock.step = sockets.SCAN_S / 2
    assert holders.find(101, 0) is None
    clock.step = 0.0
    clock.now += 59
    assert holders.find(101, 0) is None
    clock.now += 2
    assert holders.find(101, LATE) == (ONE,)


def test_this_process_has_its_sockets_open(tmp_path: Path) -> None:
    """In the real /proc, our socket belongs to us, and one that a child inherited also to the
    child.
    """
    ours, shared = socket.socket(), socket.socket()
    with closing(ours), closing(shared):
        inodes = [os.fstat(end.fileno()).st_ino for end in (ours, shared)]
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[shared.fileno()]) as child:
            # Other processes can belong to others, and be unreadable.
            for tgid in (os.getpid(), child.pid):
                (tmp_path / str(tgid)).symlink_to(f"/proc/{tgid}")
            found = all_holders(tmp_path)
    assert found is not None
    assert [(one.tgid, one.tid) for one in found[inodes[0]]] == [(os.getpid(), os.getpid())]
    assert {one.tgid for one in found[inodes[1]]} == {os.getpid(), child.pid}


@pytest.mark.parametrize(
    ("family", "address", "family_of_flow"),
    [
        (socket.AF_INET, "127.0.0.1", socket.AF_INET),
        (socket.AF_INET6, "::1", socket.AF_INET6),
        (socket.AF_INET6, "::ffff:127.0.0.1", socket.AF_INET),
    ],
)
def test_the_kernel_tells_listeners_and_connections(family: int, address: str, family_of_flow: int) -> None:
    """A listener and both ends of a connection are found with their addresses, ports and inodes."""
    with closing(socket.socket(family)) as server:
        server.bind((address, 0))
        server.listen()
        with closing(socket.create_connection(server.getsockname()[:2])) as client:
            accepted, _ = server.accept()
            with closing(accepted):
                found = {flow.inode: flow for flow in flows()}
                inodes = [os.fstat(end.fileno()).st_ino for end in (server, client, accepted)]
            here, there = server.getsockname()[1], client.getsockname()[1]
        net = int.from_bytes(server.getsockopt(socket.SOL_SOCKET, 71, 8), "little")
    raw = socket.inet_pton(family_of_flow, address.removeprefix("::ffff:")).ljust(16, b"\0")
    assert [found[inode] for inode in inodes[1:]] == [
        Flow(net, raw, raw, there, here, socket.IPPROTO_TCP, family_of_flow, inodes[1]),
        Flow(net, raw, raw, here, there, socket.IPPROTO_TCP, family_of_flow, inodes[2]),
    ]
    listener = found[inodes[0]]
    assert (listener.local_port, listener.remote_port, listener.remote) == (here, 0, bytes(16))


@given(st.binary(min_size=72, max_size=72))
def test_any_message_is_a_flow(message: bytes) -> None:
    """The fields are at the offsets of include/uapi/linux/inet_diag.h."""
    flow = read_flow(message, 5)

    assert flow.inode == struct.unpack_from("<I", message, 68)[0]
    assert (flow.local_port, flow.remote_port) == struct.unpack_from(">HH", message, 4)
    assert len(flow.local) == len(flow.remote) == 16


@pytest.mark.parametrize(("value", "is_v6_only"), [(b"\1", True), (b"\0", False), (None, False)])
def test_a_listener_says_what_it_takes(value: bytes | None, *, is_v6_only: bool) -> None:
    """A listener has its device in place of a remote address, and an attribute says whether it takes IPv6 only."""
    message = bytearray(72)
    message[0] = socket.AF_INET6
    message[40:44] = (7).to_bytes(4, "little")
    attributes = struct.pack("<HHBxxx", 5, 8, 1)  # INET_DIAG_SHUTDOWN
    if value is not None:
        attributes += struct.pack("<HH", 5, 11) + value + bytes(3)

    flow = read_flow(bytes(message) + attributes, 5)

    assert flow.remote == bytes(8) + (7).to_bytes(8, "little")
    assert flow.is_v6_only is is_v6_only


def test_a_process_with_many_descriptors_is_not_waited_for(proc: Proc) -> None:
    """A scan ends in time also in the middle of one process, and then names no process."""
    proc.hold(11, *[f"socket:[{inode}]" for inode in range(1000, 3000)])
    clock = Clock()
    clock.step = sockets.SCAN_S / 11
    assert all_holders(proc.path, sockets.SCAN_S, clock) is None
    assert clock.now < 1.5 * sockets.SCAN_S
    assert all_holders(proc.path, sockets.SCAN_S, Clock()) is not None


def test_flows_are_bounded() -> None:
    """More connections than the kernel program can store are not read."""
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0)):
        for room in (0, 1):
            found = [Flow(0, b"", b"", 0, 0, 0, 0, 0)] * (sockets.FLOWS_MAX - room)
            sockets._read_namespace(Path("/proc/self/ns/net"), found)
            assert len(found) == sockets.FLOWS_MAX
