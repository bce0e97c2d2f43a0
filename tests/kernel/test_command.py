"""`skbcapd capture -- COMMAND`, and captures of chosen processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import Capture, read
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.kernel.reference import Reference
from tests.kernel.sink import TCP_PORT, Sink
from tests.support.blocks import packets as parse
from tests.support.deadline import DEADLINE_S, until

COUNT = 23
PING = ["ping", "-nq", "-c", "3", "-i", "0.002"]
PYTHON = [sys.executable, "-E", "-s", "-S", "-c"]
# A connection of the command, of a child that ends at once, and of a grandchild whose parent has ended.
FAMILY = """
import os, signal, socket, sys

def connect():
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
        connection.sendall(b"x" * 1009)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

print("began", flush=True)
sys.stdin.readline()
connect()
child = os.fork()
if not child:
    connect()
    os._exit(0)
os.waitpid(child, 0)
reader, writer = os.pipe()
child = os.fork()
if not child:
    os.close(reader)
    if os.fork():
        os._exit(0)
    os.setsid()
    while os.getppid() == child:
        pass
    connect()
    os._exit(0)
os.close(writer)
os.waitpid(child, 0)
os.read(reader, 1)
print("ends", flush=True)
if not os.fork():  # it runs longer than the command
    os.closerange(0, 3)
    signal.alarm(600)
    signal.pause()
sys.exit(29)
"""
# Sends a datagram, and another one when it is told to by a signal or a line.
ASKED = """
import os, signal, socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.connect((sys.argv[1], 9))

def end(number, frame):
    sender.send(b"last")
    sys.exit(31)

signal.signal(signal.SIGINT, end)
sender.send(b"first")
print("began", os.getuid(), os.getgid(), os.environ["HOME"], flush=True)
sys.stdin.readline()
sender.send(b"later")
sys.exit(37)
"""


@pytest.fixture(autouse=True)
def _sink(wire: Wire) -> Iterator[None]:
    """Somebody who takes what is sent."""
    with closing(Sink(wire.far.namespace)):
        yield


def line(capture: Capture, number: int = 1) -> bytes:
    """The next line of the command, from stdout (1) or stderr (2)."""
    if number == 2:
        until(lambda: "\nbegan" in capture.said(), "the command has begun")
        return capture.said().encode()
    assert capture.process.stdout
    return capture.process.stdout.readline()


def tell(capture: Capture) -> None:
    """Write a line to the command."""
    assert capture.process.stdin
    capture.process.stdin.write(b"\n")
    capture.process.stdin.flush()


def payloads(file: Path) -> list[bytes]:
    """What the datagrams of a file say."""
    return [packet.data[42:] for packet in read(file)]


@pytest.mark.vm
def test_the_command_and_its_descendants_from_first_to_last_packet(wire: Wire, tmp_path: Path) -> None:
    """Exactly the frames of their connections are in the file, from the first SYN to the last ACK,
    as an AF_PACKET socket sees them; those of another process are not. stdin, stdout and the exit
    code are those of the command. A process that runs longer is said.
    """
    file = tmp_path / "command.pcapng"
    with (
        closing(Marker(wire.near.namespace, wire.near.device)) as marker,
        closing(Reference(wire.near.namespace, wire.near.device)) as reference,
        closing(
            Capture(
                *(wire.near.namespace, "-i", wire.near.device, "-w", str(file)),
                running=[*PYTHON, FAMILY, wire.far.ipv4, str(TCP_PORT)],
            )
        ) as capture,
    ):
        assert line(capture) == b"began\n"
        for _ in range(COUNT):
            marker.send()
        tell(capture)
        ended = capture.wait()
        reference.collect()
    longer = re.search(r"^1 processes of the command still run \((\d+)\)", ended.stderr, re.MULTILINE)
    assert longer, ended.stderr
    os.kill(int(longer[1]), signal.SIGKILL)
    packets = read(file)

    assert (ended.exit_code, ended.stdout) == (29, b"ends\n"), ended.stderr
    assert ended.lost == 0
    is_ipv4 = b"\x08\x00"  # no reports of multicast groups
    wanted = [one.data for one in reference.frames if one.data not in marker.sent and one.data[12:14] == is_ipv4]
    assert len(wanted) >= 3 * 8  # SYN, SYN-ACK, ACK, data, ACK, FIN, FIN, ACK
    assert Counter(packet.data for packet in packets) == Counter(wanted)
    assert len({packet.label.tgid for packet in packets if packet.label}) == 3
    assert ended.totals["captured"] == len(wanted)
    assert ended.totals["filtered"] == COUNT


def test_a_signal_is_passed_on(wire: Wire, tmp_path: Path) -> None:
    """A signal goes to the command; after signal n ended it, the exit code is 128 + n. The file belongs to the user who
    called sudo.
    """
    file = tmp_path / "signal.pcapng"
    arguments = ("-i", wire.near.device, "-w", str(file))
    running, sudo = [*PYTHON, ASKED, wire.far.ipv4], ("env", "SUDO_UID=65534", "SUDO_GID=65533")
    with closing(Capture(wire.near.namespace, *arguments, running=running, through=sudo)) as capture:
        assert line(capture).startswith(b"began")
        capture.process.send_signal(signal.SIGTERM)
        capture.process.wait(DEADLINE_S)  # stdin stays open
        ended = capture.wait()
    assert ended.exit_code == 128 + signal.SIGTERM
    assert (file.stat().st_uid, file.stat().st_gid) == (65534, 65533)
    assert payloads(file) == [b"first"]
    assert "ended by SIGTERM" in ended.stderr


def test_ctrl_c_on_a_terminal_reaches_the_command_once(wire: Wire, tmp_path: Path) -> None:
    """Ctrl-C on their terminal ends the command, not the capture: the last packet is in the file."""
    file = tmp_path / "terminal.pcapng"
    terminal, theirs = os.openpty()
    words = [sys.executable, "-m", "skbcapd", "capture", "-i", wire.near.device, "-w", str(file), "--"]
    try:
        process = wire.near.namespace.do(
            subprocess.Popen,
            ["setsid", "--ctty", "--wait", *words, *PYTHON, ASKED, wire.far.ipv4],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        said = b""
        while b"began" not in said:
            said += os.read(terminal, 4096)
        os.write(terminal, b"\x03")
        _, stderr = process.communicate(timeout=DEADLINE_S)
    finally:
        os.close(theirs)
        os.close(terminal)
    assert process.returncode == 31, stderr
    assert payloads(file) == [b"first", b"last"]


def test_a_capture_that_ends_first(wire: Wire) -> None:
    """With -c the capture ends before the command, which continues: its exit code is that of
    skbcapd. It runs as the user who called sudo. With -w -, its output goes to stderr.
    """
    caller = ("SUDO_UID=65534", "SUDO_GID=65533")
    with closing(
        Capture(
            *(wire.near.namespace, "-i", wire.near.device, "-w", "-", "-c", "1"),
            running=[*PYTHON, ASKED, wire.far.ipv4],
            through=("env", *caller),
        )
    ) as capture:
        assert b"began 65534 65533 /nonexistent" in line(capture, 2)
        until(lambda: "continues (process" in capture.said(), "the capture has ended")
        tell(capture)
        ended = capture.wait()
    assert ended.exit_code == 37
    assert [packet.data[42:] for packet in parse(ended.stdout)] == [b"first"]


def test_chosen_processes(wire: Wire, tmp_path: Path) -> None:
    """--pid with --children keeps the packets of a process, of the child that it has, and of one
    that it forks later; the packets of others, and of nobody, are counted.
    """
    file = tmp_path / "chosen.pcapng"
    program = """
import os, socket, sys
reader, writer = os.pipe()

def send(text):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(int(sys.argv[2])):
            sender.sendto(text, (sys.argv[1], 9))

if not os.fork():  # a child that runs before the capture
    os.close(writer)
    os.read(reader, 1)
    send(b"child")
    os._exit(0)
print("began", flush=True)
sys.stdin.readline()
send(b"itself")
if not os.fork():
    send(b"later")
    os._exit(0)
os.wait()
os.close(writer)
os.wait()
"""
    command = [*PYTHON, program, wire.far.ipv4, str(COUNT)]
    with (
        closing(Marker(wire.near.namespace, wire.near.device)) as marker,
        wire.near.namespace.do(subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout
        assert process.stdout.readline() == b"began\n"
        arguments = ("-i", wire.near.device, "-w", str(file), "--pid", str(process.pid), "--children")
        with closing(Capture(wire.near.namespace, *arguments, directions="out")) as capture:
            for _ in range(COUNT):
                marker.send()
            wire.far.namespace.do(subprocess.run, [*PING, wire.near.ipv4], capture_output=True, check=True)
            process.communicate(b"\n", DEADLINE_S)
            ended = capture.stop()
    found = Counter(payloads(file))
    assert found == {b"itself": COUNT, b"child": COUNT, b"later": COUNT}
    assert ended.totals["filtered"] == COUNT
    assert ended.totals["left out, because their process is not known"] == 3  # the kernel's answers to ping
