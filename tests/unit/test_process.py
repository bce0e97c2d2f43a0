"""Records of processes, from a /proc that the test makes, and from the real one."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.attribution import processes as process
from skbcapd.attribution.fields import TABLE, comment_fields
from skbcapd.attribution.processes import NS_PER_TICK, Process, Processes, User, cgroup_of, container_of, unit_of
from tests.support.proc import TICK, Proc

ID = "0123456789abcdef" * 4
START = 5900 * TICK + 4_999_999  # the kernel has it in nanoseconds
CHRONYD = Process(
    tgid=1058,
    start=5900 * TICK,
    comm=b"chronyd",
    ppid=1,
    uid=101,
    user=b"_chrony",
    exe=b"/usr/sbin/chronyd",
    cmdline=b"/usr/sbin/chronyd\0-F\x001\0",
    cgroup=b"/system.slice/chrony.service",
)
PATHS = st.lists(
    st.sampled_from([b"user@1000.service", b"a.slice", b"x.service", b"..", b"", ID.encode(), b"machine-x.scope"])
    | st.binary(max_size=12)
).map(b"/".join)


def said(process: Process) -> dict[str, bytes | int]:
    """The fields of a comment from /proc."""
    names = [field.name for field in TABLE if field.of_process]
    return dict(comment_fields(names, (User(1058, 1058, START, b"chronyd"), process)))


class Clock:
    """A clock that the test sets, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """A /proc without a process."""
    return Proc(tmp_path)


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def processes(proc: Proc, clock: Clock) -> Processes:
    """Records from that /proc."""
    return Processes(cmdline=True, proc=proc.path, users=proc.users, clock=clock)


def test_a_process_is_read(proc: Proc, processes: Processes) -> None:
    """The record and its fields have everything in /proc about a process whose thread has the right
    start.
    """
    proc.add(1058)
    found = processes.find(1058, 1058, START, b"chronyd")

    assert found == CHRONYD
    assert said(found) == {
        "ppid": 1,
        "uid": 101,
        "user": b"_chrony",
        "exe": b"/usr/sbin/chronyd",
        "cmdline": b"/usr/sbin/chronyd -F 1",
        "cgroup": b"/system.slice/chrony.service",
        "unit": b"chrony.service",
    }


@pytest.mark.parametrize(
    ("leader", "thread", "start", "is_same"),
    [
        (5900, 5907, 5907, True),
        (5900, 5900, 5900, True),
        (5900, None, 5907, True),  # the thread has ended; the process is older than it was
        (5900, None, 5900, False),  # the same age: it can be the next process with this id
        (5901, 5901, 5900, False),
        (6000, None, 5907, False),
        (5900, 6000, 5907, True),  # the next thread with the same id, in the same process
        (6000, 6000, 5907, False),
    ],
)
def test_a_record_is_of_the_very_process(
    leader: int, thread: int | None, start: int, proc: Proc, processes: Processes, *, is_same: bool
) -> None:
    """A process is accepted if its thread started at the time from the kernel, or if it is older
    than the thread.
    """
    proc.add(1058, ticks=leader)
    if thread is not None:
        proc.thread(1058, 1059, ticks=thread)

    assert (processes.find(1058, 1059, start * TICK, b"chronyd") is not None) == is_same


@pytest.mark.parametrize("tid", [1058, 1059])
def test_this_process_and_its_threads_are_found(tid: int) -> None:
    """The record of this process has the values of the system, for its main thread and for another
    one.
    """
    ready, done = threading.Event(), threading.Event()
    ids: list[int] = []

    def work() -> None:
        ids.append(threading.get_native_id())
        ready.set()
        done.wait()

    worker = threading.Thread(target=work)
    worker.start()
    ready.wait()
    thread = os.getpid() if tid == 1058 else ids[0]
    try:
        raw = Path(f"/proc/self/task/{thread}/stat").read_bytes()
        start = int(raw.rpartition(b")")[2].split()[19]) * NS_PER_TICK
        comm = Path(f"/proc/self/task/{thread}/comm").read_bytes()[:-1]
        found = Processes(cmdline=True).find(os.getpid(), thread, start + NS_PER_TICK - 1, comm)
        after = Processes().find(os.getpid(), thread, start + NS_PER_TICK, comm)
    finally:
        done.set()
        worker.join()

    assert found is not None
    assert (found.tgid, found.ppid, found.uid) == (os.getpid(), os.getppid(), os.geteuid())
    assert found.user.decode() == pwd.getpwuid(os.geteuid()).pw_name
    assert found.exe.decode() == str(Path(sys.executable).resolve())
    assert b"pytest" in found.cmdline
    assert found.cgroup.decode() in Path("/proc/self/cgroup").read_text()
    assert (after is None) == (thread == os.getpid())  # a thread can have ended; the main thread exists


def test_command_lines_are_read_only_if_needed(proc: Proc) -> None:
    """Without the need for command lines, none is in memory."""
    proc.add(1058)
    found = Processes(proc=proc.path, users=proc.users).find(1058, 1058, START, b"chronyd")

    assert found == replace(CHRONYD, cmdline=b"")


def test_a_process_that_has_ended_is_cached(proc: Proc, processes: Processes, clock: Clock) -> None:
    """The record of a process that has ended is still used for its last packets, but not for the
    next process with its id.
    """
    shutil.rmtree(proc.add(1058))
    assert processes.find(1058, 1058, START, b"chronyd") is None
    proc.add(1058)
    processes.find(1058, 1058, START, b"chronyd")
    clock.now += 7
    shutil.rmtree(proc.path / "1058")
    assert processes.find(1058, 1058, START, b"chronyd") == CHRONYD
    proc.add(1058, ticks=6000, comm=b"next")
    assert processes.find(1058, 1058, START, b"chronyd") == CHRONYD
    found = processes.find(1058, 1058, 6000 * TICK, b"next")
    assert found is not None
    assert found.comm == b"next"


def test_a_record_is_read_again_after_a_second(proc: Proc, processes: Processes, clock: Clock) -> None:
    """Within a second a record is not read again; later, changes are seen."""
    path = proc.add(1058) / "status"
    processes.find(1058, 1058, START, b"chronyd")
    path.write_bytes(path.read_bytes().replace(b"\t101\t", b"\t0\t"))
    uids = []
    for now in (100.0, 100.9, 101.1):
        clock.now = now
        found = processes.find(1058, 1058, START, b"chronyd")
        assert found is not None
        uids.append((found.uid, found.user))

    assert uids == [(101, b"_chrony"), (101, b"_chrony"), (0, b"root")]


def test_a_new_name_may_be_a_new_program(proc: Proc, processes: Processes) -> None:
    """If the thread has another name than in the packet, program and command line are left out."""
    proc.add(1058, comm=b"nginx", exe="/usr/sbin/nginx")
    before = processes.find(1058, 1058, START, b"sh")
    now = processes.find(1058, 1058, START, b"nginx")

    assert before is not None
    assert (before.exe, before.cmdline, before.uid) == (b"", b"", 101)
    assert now is not None
    assert now.exe == b"/usr/sbin/nginx"


def test_records_are_bounded(proc: Proc, processes: Processes) -> None:
    """At most 1024 records are cached."""
    proc.add(1058)
    for tick in range(process.REMEMBERED + 7):
        assert processes.find(1058, 1059, (6000 + tick) * TICK, b"chronyd")

    assert len(processes._known) == process.REMEMBERED


def test_users_are_read_again_when_they_change(proc: Proc, processes: Processes, clock: Clock) -> None:
    """A new user in the file soon has a name; lines that are no users are ignored."""
    proc.add(1058, uid=4711)
    processes.find(1058, 1058, START, b"chronyd")
    proc.users.write_bytes(b"broken\n:x:4711:\nx:x:no:\nn\xffw:x:4711:0:::\nlater:x:4711:0:::\n")
    clock.now += 2
    found = processes.find(1058, 1058, START, b"chronyd")

    assert found is not None
    assert (found.uid, found.user) == (4711, b"n\xffw")


@pytest.mark.parametrize("name", ["status", "cmdline", "cgroup", "exe"])
@pytest.mark.parametrize("becomes", ["missing", "directory", "empty", "garbage"])
def test_files_that_disappear_or_are_wrong(name: str, becomes: str, proc: Proc, processes: Processes) -> None:
    """A file that cannot be read, or is wrong, only affects its own fields, and raises nothing."""
    path = proc.add(1058) / name
    path.unlink()
    if becomes == "directory":
        path.mkdir()
    elif becomes != "missing":
        path.write_bytes(b"" if becomes == "empty" else b"\xff\0Uid:\t1\n:::\n\n" * 7)
    found = processes.find(1058, 1058, START, b"chronyd")

    assert found is not None
    lost = {"status": {"uid", "user"}, "cgroup": {"cgroup", "unit"}}.get(name, {name})
    expected = said(CHRONYD).keys() - lost
    assert said(found).keys() - {"cmdline"} == expected - {"cmdline"}
    assert ("cmdline" in said(found)) == (name != "cmdline" or becomes == "garbage")


@pytest.mark.fuzz
@given(raw=st.binary(max_size=200) | st.tuples(st.binary(), st.binary()).map(lambda parts: b"1 (" + b") ".join(parts)))
def test_a_wrong_stat_file_never_raises(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """For any content of a stat file, there is no process, or one with numbers."""
    directory = tmp_path_factory.mktemp("proc")
    proc = Proc(directory)
    (proc.add(7) / "stat").write_bytes(raw)

    assert Processes(proc=proc.path, users=proc.users).find(7, 7, START, b"x") is None
    shutil.rmtree(directory)


@pytest.mark.parametrize("comm", [b"", b") S 1 2", b"a (b)", b"\n)\n", b"\xff\x1b[31m", b"x" * 64])
def test_a_name_cannot_forge_a_stat(comm: bytes, proc: Proc, processes: Processes) -> None:
    """The start and the parent after a hostile name are right, and the name is complete."""
    proc.add(1058, comm=comm)
    found = processes.find(1058, 1058, START, comm)

    assert found is not None
    assert (found.comm, found.ppid, found.start) == (comm, 1, 5900 * TICK)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/system.slice/ssh.service\n", "/system.slice/ssh.service"),
        ("0::/\n", "/"),
        ("12:pids:/user.slice\n1:name=systemd:/user.slice/x.scope\n0::/\n", "/user.slice/x.scope"),
        ("1:name=systemd:/a.service\n0::/b.service\n", "/b.service"),
        (f"12:pids:/docker/{ID}\n1:name=systemd:/\n", f"/docker/{ID}"),
        ("3:cpu,cpuacct:/a:b\n", "/a:b"),
        ("", ""),
        ("0:\n:\n\n0::x\nfoo\n", ""),
    ],
)
def test_the_cgroup_that_says_most(text: str, path: str) -> None:
    """Of the hierarchies of versions 1 and 2, that of systemd or of a container engine is used."""
    assert cgroup_of(text.encode()).decode() == path


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/ssh.service", "ssh.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/system.slice/systemd-udevd.service/udev", "systemd-udevd.service"),
        ("/init.scope", "init.scope"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/user.slice/user-1000.slice/session-2.scope", "session-2.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service/init.scope"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/fire.service", "user@1000.service/fire.service"),
        (
            "/user.slice/user-1000.slice/user@1000.service/a.slice/a-b.slice/x@y.service/z",
            "user@1000.service/x@y.service",
        ),
        ("/user.slice/user-1000.slice/user@1000.service/ssh.service", "user@1000.service/ssh.service"),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service"),
        (f"/system.slice/docker-{ID}.scope", f"docker-{ID}.scope"),
        (f"/kubepods.slice/kubepods-podx.slice/cri-containerd-{ID}.scope", f"cri-containerd-{ID}.scope"),
        ("/machine.slice/systemd-nspawn@web.service/payload/system.slice/x.service", "systemd-nspawn@web.service"),
        ("/system.slice/x.service (deleted)", "x.service"),
        (f"/docker/{ID}", ""),
        ("/../ssh.service", ""),
        ("/a.slice/b.slice", ""),
        ("/a/ssh.service", ""),
        ("/system.slice/a b.service", ""),
        ("/system.slice/x.service\nssh.service", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_unit(cgroup: str, unit: str) -> None:
    """The unit is the first name below the slices, as in systemd; units of a user follow his
    manager.
    """
    assert unit_of(cgroup.encode()).decode() == unit


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        (f"/system.slice/docker-{ID}.scope", ID),
        (f"/docker/{ID}", ID),
        (f"/docker/{ID}/docker/{'f' * 64}", ID),
        (f"/machine.slice/libpod-{ID}.scope/container", ID),
        (f"/libpod_parent/libpod-{ID}", ID),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", ID),
        (f"/kubepods.slice/kubepods-besteffort.slice/kubepods-podx.slice/cri-containerd-{ID}.scope", ID),
        (f"/kubepods/besteffort/pod0123/{ID}", ID),
        (f"/system.slice/containerd.service/kubepods-burstable-podx.slice:cri-containerd:{ID}", ID),
        (f"/kubepods.slice/kubepods-podx.slice/crio-{ID}.scope/container", ID),
        (f"/kubepods/burstable/podx/crio-{ID}", ID),
        ("/machine.slice/machine-web.scope", "web"),
        (r"/machine.slice/machine-my\x2dweb.scope/payload", "my-web"),
        ("/machine.slice/systemd-nspawn@web.service/payload/init.scope", "web"),
        ("/machine.slice/systemd-nspawn@web.service/supervisor", ""),
        (r"/machine.slice/machine-qemu\x2d1\x2dvm.scope", ""),
        (f"/machine.slice/libpod-conmon-{ID}.scope", ""),
        (f"/system.slice/crio-conmon-{ID}.scope", ""),
        (f"/docker/{ID[1:]}", ""),
        (f"/docker/{ID}0", ""),
        (f"/docker/{ID.upper()}", ""),
        ("/system.slice/docker.service", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_container(cgroup: str, container: str) -> None:
    """A container is recognized by the cgroup names of engines, with and without systemd; helpers
    are in no container.
    """
    assert container_of(cgroup.encode()).decode() == container


@pytest.mark.fuzz
@given(PATHS)
def test_any_path_has_a_unit_and_a_container_or_none(path: bytes) -> None:
    """For any path, nothing raises, and a unit has only letters that systemd allows."""
    container_of(path)
    unit = unit_of(path)
    assert unit.isascii()
    assert not {*unit} & {*b' \n"='}


@pytest.mark.parametrize("ticks", [-1, (1 << 63) // TICK, 10**30])
def test_an_impossible_start_is_rejected(ticks: int, proc: Proc, processes: Processes) -> None:
    """A start before the boot, or one that is no u64 in nanoseconds, is rejected."""
    proc.add(77, ticks=ticks)
    assert processes.find(77, 77, ticks * TICK, b"chronyd") is None
