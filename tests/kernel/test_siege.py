"""The daemon, with attempts to end its capture: a closed terminal, signals, no free process, no
readers.

In each case frames are sent before and after; all of them are in files, and the end is a clean one.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.capture import ATTACH, ROOT, Daemon, Ended, read, with_value
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.kernel.test_disk import frozen, status
from tests.kernel.test_faults import finished, in_work, outgoing, send
from tests.support import faults
from tests.support.captures import SECTION
from tests.support.deadline import DEADLINE_S, until

pytestmark = pytest.mark.faults

CGROUPS = Path("/sys/fs/cgroup")
BEFORE, AFTER = 101, 103
STORM = """
import os, sys
pid, number = map(int, sys.argv[1:])
try:
    while True:
        os.kill(pid, number)
except ProcessLookupError:
    pass
"""
# Sends a signal to the program that it starts, as soon as the program blocks it.
EARLY = """
import os, re, sys
number, program = int(sys.argv[1]), os.getpid()
if os.fork():
    os.execv(sys.argv[2], sys.argv[2:])
blocked = 0
while not blocked >> (number - 1) & 1:
    blocked = int(re.search(r"SigBlk:\\t(\\w+)", open(f"/proc/{program}/status").read())[1], 16)
os.kill(program, number)
"""
# A thread waits for a disk in a page fault, another one to change the memory map, the third one
# sends.
LOCKED = """
import ctypes, os, socket, sys, threading, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 1 << 16)
at = libc.mmap(None, 1 << 16, 3, 1, file, 0)
sender = socket.socket(type=socket.SOCK_DGRAM)
sender.connect((sys.argv[2], int(sys.argv[3])))
turns = [threading.Event() for _ in range(3)]
def fault(): turns[0].wait(); libc.memset(at, 1, 4096)
def unmap(): turns[1].wait(); libc.munmap(at, 1 << 16)
def send():
    turns[2].wait()
    sender.send(b"locked")
    os.write(1, b"stuck\\n")
    while True:
        time.sleep(0.05)
        sender.send(b"locked")
threads = [threading.Thread(target=each, daemon=True) for each in (fault, unmap, send)]
for thread in threads:
    thread.start()
print(*(thread.native_id for thread in threads[:2]), flush=True)
for turn in turns:
    os.read(0, 1)
    turn.set()
os.read(0, 1)
os._exit(0)
"""
SEND_FEW = """
import socket, sys
sender = socket.socket(type=socket.SOCK_DGRAM)
for _ in range(101):
    sender.sendto(b"other", (sys.argv[1], int(sys.argv[2])))
sys.stdin.read()
"""


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end (this process)."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


def paced(control: Path) -> dict[str, Any]:
    """The status, not more often than the daemon accepts connections: 32 per second."""
    time.sleep(0.1)
    return status(control)


def check(fault: str, ended: Ended, marker: Marker, directory: Path, more: str = "") -> None:
    """All frames are in files, and the exit code is 0."""
    found = outgoing(*finished(directory))
    faults.compare(fault, 1, f"exit code {ended.exit_code}, {len(found)} of {len(marker.sent)} packets in files{more}")
    assert ended.exit_code == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert found == marker.sent


@contextmanager
def few_processes() -> Iterator[Path]:
    """A control group with a limit of processes and threads."""
    version_2 = (CGROUPS / "cgroup.controllers").exists()
    place = CGROUPS / ("" if version_2 else "pids") / f"skbcapd-{uuid.uuid4().hex[:8]}"
    try:
        place.mkdir()
        (place / "pids.max").read_text()
    except OSError:
        pytest.skip("no control group with a limit of processes can be made here")
    try:
        yield place
    finally:
        place.rmdir()


def test_no_process_is_left(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """If no thread and no process can be started, as with a fork bomb, nothing ends and no packet
    is dropped.
    """
    directory, control = tmp_path / "captures", tmp_path / "control"
    settings = {"control__socket": str(control), "files__compress": "gzip", "files__keep_free": "0"}
    settings |= {"metrics__textfile": str(tmp_path / "skbcapd.prom")}
    with few_processes() as group, closing(Daemon(wire.near, directory, **settings)) as daemon:
        (group / "cgroup.procs").write_text(str(daemon.process.pid))
        (group / "pids.max").write_text("1")
        send(marker, BEFORE)
        daemon.process.send_signal(signal.SIGUSR1)
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded: Resource temporarily unavailable" in daemon.said(), "the reload is refused")
        until(lambda: "it is not compressed" in daemon.said(), "the compressor is refused")
        send(marker, AFTER)
        until(lambda: paced(control)["packets"]["written"] >= BEFORE + AFTER, "all is written")
        ended = daemon.stop()
    check("no process or thread left", ended, marker, directory)


def test_a_terminal_that_is_closed(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """When the terminal is closed the daemon continues: that signal requests a reload."""
    directory, control = tmp_path / "captures", tmp_path / "control"
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    chosen = {"interfaces": wire.near.device, "files.directory": directory, "control.socket": control}
    words = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
    process = wire.near.namespace.do(
        subprocess.Popen,
        [sys.executable, "-m", "skbcapd", "run", *words, "--set", f"attach={ATTACH}", "--set", "files.keep_free=0"],
        cwd=ROOT,
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    try:
        while b" packets, " not in said:  # the status line was printed
            said += os.read(ours, 4096)
        send(marker, BEFORE)
        os.close(ours)
        uptime = status(control)["uptime_s"]
        until(lambda: paced(control)["uptime_s"] > uptime + 2, "it has tried to write the status line")
        send(marker, AFTER)
        process.terminate()
        ended = Ended(process.wait(DEADLINE_S), b"", "")
    finally:
        process.kill()
        process.wait()
    check("the terminal is closed", ended, marker, directory)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_before_it_is_ready(number: signal.Signals, wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """A signal during compiling and loading waits, and is handled when packets are captured."""
    said = {signal.SIGHUP: "settings reloaded", signal.SIGUSR2: "SIGUSR2 ignored"}
    through = (sys.executable, "-E", "-s", "-S", "-c", EARLY, str(int(number)))
    with closing(Daemon(wire.near, tmp_path, through, files__keep_free="0")) as daemon:
        if number in said:
            until(lambda: said[number] in daemon.said(), "it is obeyed")
        else:
            until(lambda: len(finished(tmp_path)) == 1, "a file is finished")
        send(marker, AFTER)
        ended = daemon.stop()
    check("a signal while it starts", ended, marker, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_storm_of_signals(number: signal.Signals, wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """With very many signals the daemon answers, makes few files, and ends on SIGTERM with exit
    code 0.
    """
    directory, control = tmp_path / "captures", tmp_path / "control"
    with closing(Daemon(wire.near, directory, control__socket=str(control), files__keep_free="0")) as daemon:
        words = [sys.executable, "-E", "-s", "-S", "-c", STORM, str(daemon.process.pid), str(int(number))]
        with subprocess.Popen(words) as storm:
            try:
                send(marker, BEFORE)
                for _ in range(3):
                    until(lambda: paced(control)["packets"]["written"] >= len(marker.sent), "all is written")
                    send(marker, AFTER)
                begun = time.monotonic()
                ended = daemon.stop(signal.SIGTERM)
                took_s = time.monotonic() - begun
            finally:
                storm.kill()
    check("a storm of signals", ended, marker, directory, f", {len(finished(directory))} files")
    assert took_s < DEADLINE_S / 2
    assert len(finished(directory)) < 100


def test_a_directory_that_cannot_be_reached(wire: Wire, marker: Marker) -> None:
    """While a directory above may not be entered by the service's user, nothing ends; then files
    are written again.
    """
    place = Path(tempfile.mkdtemp(prefix="skbcapd-"))  # pytest's own are closed to other users
    directory, user = place / "above" / "captures", 61_235
    directory.mkdir(parents=True)
    for each in (place, directory):
        os.chown(each, user, user)
    caps = "-all,+sys_admin,+sys_ptrace"
    who = (f"--reuid={user}", f"--regid={user}", "--clear-groups")
    through = ("setpriv", *who, f"--inh-caps={caps}", f"--ambient-caps={caps}")
    try:
        with closing(Daemon(wire.near, directory, through, files__keep_free="0")) as daemon:
            send(marker, BEFORE)
            until(lambda: marker.sent[-1] in in_work(directory), "what was sent before is written")
            directory.parent.chmod(0)
            until(lambda: "packets are dropped until files can be written again" in daemon.said(), "it is noticed")
            directory.parent.chmod(0o755)
            until(lambda: "writing again" in daemon.said(), "files are written again")
            send(marker, AFTER)
            ended = daemon.stop()
        for part in directory.glob("*.part"):  # the file of before, unless it has been finished as after a crash
            part.rename(directory / "skbcapd-0.pcapng")
        check("a directory that cannot be reached for a while", ended, marker, directory)
    finally:
        directory.parent.chmod(0o755)
        shutil.rmtree(place)


def test_thousands_of_files_left_by_crashes(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """Beside more unfinished files than it may open, a daemon starts; it finishes them meanwhile."""
    for number in range(1, 1009):
        (tmp_path / f"skbcapd-vm-20261101T000000.000Z-{number:06}.pcapng.part").write_bytes(SECTION)
    with closing(Daemon(wire.near, tmp_path, ("prlimit", "--nofile=256"), files__keep_free="0")) as daemon:
        send(marker, AFTER)
        ended = daemon.stop()
    for file in tmp_path.glob("*-20261101T*"):
        file.unlink()
    check("thousands of files left by crashes", ended, marker, tmp_path)


def test_a_limit_for_the_size_of_files(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """Where the process may write less to a file than files.size, the next file begins in time, and it is said."""
    with closing(Daemon(wire.near, tmp_path, ("prlimit", "--fsize=100000"), files__keep_free="0")) as daemon:
        send(marker, 1009)
        ended = daemon.stop()
    check("a limit for the size of files", ended, marker, tmp_path)
    assert "may write 100000 bytes to a file" in ended.stderr
    assert len(finished(tmp_path)) > 1


def test_the_cache_hangs(wire: Wire, marker: Marker, place: Path, tmp_path: Path) -> None:
    """While the disk of the compiler's cache takes no write, a reload is done, and the end is not
    delayed.
    """
    directory, config = tmp_path / "captures", tmp_path / "skbcapd.yaml"
    config.write_text("snaplen: 96\n")
    through = ("env", f"CACHE_DIRECTORY={place}")
    with closing(Daemon(wire.near, directory, through, config, files__keep_free="0")) as daemon:
        with frozen(place):
            send(marker, BEFORE)
            config.write_text("filter: ether proto 0x88b5 or udp port 4711\n")
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda: "settings reloaded" in daemon.said(), "it is reloaded")
            send(marker, AFTER)
            config.write_text("filter: ether proto 0x88b5 or udp port 4712\n")
            before = children(daemon.process.pid)
            daemon.process.send_signal(signal.SIGHUP)
            until(lambda: bool(children(daemon.process.pid) - before), "another child is at work")
            begun = time.monotonic()
            daemon.process.terminate()
            daemon.process.wait(DEADLINE_S)
            took_s = time.monotonic() - begun
        ended = daemon.wait()
    check("the disk of the compiler's cache hangs", ended, marker, directory, f", SIGTERM obeyed after {took_s:.1f} s")


def children(pid: int) -> set[str]:
    """The processes that a process has started, and not reaped."""
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def waits_for_disk(pid: int, thread: int) -> bool:
    """Whether a thread waits, and signals do not end that."""
    return Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0] == "D"


def test_a_process_that_delays_its_readers(wire: Wire, place: Path, tmp_path: Path) -> None:
    """A process whose command line cannot be read, as its memory map is locked, delays no packet of
    others.
    """
    directory, control = tmp_path / "captures", tmp_path / "control"
    settings = {"comment": "cmdline", "control__socket": str(control), "files__keep_free": "0"}
    # On a busy machine, a thread that reads another command line can be late, too.
    through = with_value("skbcapd.attribution.command_lines", "PATIENCE_S", 0.5)
    with (
        closing(Sink(wire.far.namespace)),
        closing(Daemon(wire.near, directory, through, **settings)) as daemon,
        wire.near.namespace.do(
            subprocess.Popen,
            [sys.executable, "-E", "-s", "-S", "-c", LOCKED, str(place / "file"), wire.far.ipv4, str(DISCARD_PORT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as locked,
    ):
        assert locked.stdout is not None
        assert locked.stdin is not None
        threads = list(map(int, locked.stdout.readline().split()))
        assert len(threads) == 2
        with frozen(place):
            for thread in threads:
                os.write(locked.stdin.fileno(), b"\n")
                until(lambda thread=thread: waits_for_disk(locked.pid, thread), "it waits")  # type: ignore[misc]
            os.write(locked.stdin.fileno(), b"\n")
            assert locked.stdout.readline() == b"stuck\n"
            for count in (101, 202, 303):
                words = [sys.executable, "-E", "-s", "-S", "-c", SEND_FEW, wire.far.ipv4, str(DISCARD_PORT)]
                with wire.near.namespace.do(subprocess.Popen, words, stdin=subprocess.PIPE) as other:
                    until(lambda count=count: paced(control)["packets"]["written"] >= count, "others are captured")  # type: ignore[misc]
                    other.communicate()
        locked.stdin.close()
        ended = daemon.stop()
    found = [packet for file in finished(directory) for packet in read(file) if packet.direction == "out"]
    of_others = [packet for packet in found if packet.data.endswith(b"other")]
    with_words = sum("cmdline=" in packet.comment for packet in of_others)
    now = f"status within 1 s; {len(of_others)} packets of others captured, {with_words} with their command lines"
    faults.compare("a process that delays who reads its command line", 1, now)
    assert ended.exit_code == 0, ended.stderr
    assert len(of_others) == with_words == 303
    mine = [packet.comment for packet in found if packet.data.endswith(b"locked")]
    assert mine
    assert not any("cmdline=" in comment for comment in mine)


@pytest.mark.parametrize("what", ["metrics.textfile", "control.socket"])
def test_a_file_system_that_does_not_respond(what: str, wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """Where the metrics' file or the control socket is on a file system that hangs, the end is not
    delayed.
    """
    directory, place, file = tmp_path / "captures", tmp_path / "hung", tmp_path / "hung" / "file.prom"
    place.mkdir()
    with closing(Daemon(wire.near, directory, files__keep_free="0", **{what.replace(".", "__"): str(file)})) as daemon:
        until(file.exists, "it is there")
        send(marker, BEFORE)
        with hung(place):
            ended = daemon.stop(signal.SIGTERM)
    check("a file system that does not respond", ended, marker, directory)


@contextmanager
def hung(place: Path) -> Iterator[None]:
    """A file system over a directory whose server never answers (FUSE)."""
    server = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={server},rootmode=40755,user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        assert libc.mount(b"skbcapd-test", bytes(place), b"fuse", 0, options.encode()) == 0, ctypes.get_errno()
        try:
            yield
        finally:
            os.close(server)  # who waits gets ENOTCONN
            server = -1
            libc.umount2(bytes(place), 2)
    finally:
        if server >= 0:
            os.close(server)


def test_a_service_manager_that_does_not_read(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """A service manager that is stopped delays nothing: the daemon answers, captures, and ends."""
    directory, control, notify = tmp_path / "captures", tmp_path / "control", tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notify))
        through = ("env", f"NOTIFY_SOCKET={notify}", "WATCHDOG_USEC=28000000")
        with closing(
            Daemon(wire.near, directory, through, control__socket=str(control), files__keep_free="0")
        ) as daemon:
            send(marker, BEFORE)
            # Each second has a message; the socket takes ten, or what net.unix.max_dgram_qlen says.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
                filler.setblocking(False)  # noqa: FBT003  the name of the method says what is false
                with suppress(BlockingIOError):
                    while filler.sendto(b"X=1", str(notify)):
                        pass
            uptime = status(control)["uptime_s"]
            until(lambda: paced(control)["uptime_s"] > uptime + 3, "three seconds of its time have passed")
            send(marker, AFTER)
            ended = daemon.stop()
    check("the service manager hangs", ended, marker, directory)
