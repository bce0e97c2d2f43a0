"""Any fault of stdin, stdout or stderr: no traceback, and the right exit code."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deadline import DEADLINE_S
from tests.support.descriptors import CASES, ROOT, Faulty
from tests.support.strangers import interface, packet, process, section, udp

FILE = section() + interface() + packet(udp("192.0.2.1", "192.0.2.2"), opts=process(7, "ping"))

# Commands, their exit code, and whether they write to stdout: what cannot be written there is an
# error.
COMMANDS: dict[str, tuple[list[str], int, bool]] = {
    "help": (["--help"], 0, True),
    "usage": (["run", "eth0"], 2, False),
    "config": (["config"], 0, True),
    "check": (["check", "--config", "etc/skbcapd.yaml"], 0, False),
    "bad config": (["check", "--set", "snaplen=1"], 2, False),
    "dump": (["dump", "--set", "control.socket=/nonexistent"], 1, False),
    "status": (["status", "--set", "control.socket=/nonexistent/control"], 1, False),
    "top": (["top", "{file}"], 0, True),
    "split": (["split", "{file}", "--by", "comm", "-d", "{directory}"], 0, False),
    "index": (["index", "{file}"], 0, False),
    "extcap": (["extcap", "--extcap-interfaces"], 0, True),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_every_fault(name: str, tmp_path: Path) -> None:
    """A command ends with its own exit code, or with 1 if its output could not be written, and says
    why.
    """
    arguments, expected, answers = COMMANDS[name]
    file = tmp_path / "a.pcapng"
    file.write_bytes(FILE)
    running = []
    for number, (descriptor, fault) in enumerate(CASES):
        directory = tmp_path / str(number)
        directory.mkdir()
        words = [word.format(file=file, directory=directory) for word in arguments]
        running.append((descriptor, fault, Faulty(descriptor, fault, words)))
    for descriptor, fault, command in running:
        said = command.wait()
        fails = answers and descriptor == 1 and fault != "broken"
        assert said.exit_code == (1 if fails else expected), (descriptor, fault, said)
        assert "Traceback" not in said.stdout + said.stderr
        assert "Exception ignored" not in said.stderr
        if fails:
            reason = {"closed": "it is closed", "full": "No space left on device"}[fault]
            assert said.stderr.startswith("skbcapd: standard output: ")
            assert reason in said.stderr or "Bad file descriptor" in said.stderr
        elif expected and descriptor != 2:
            assert "skbcapd: " in said.stderr


def test_a_file_never_gets_a_standard_descriptor() -> None:
    """If all three are closed at the start, later files get other numbers."""
    program = (
        "import os, sys; from skbcapd import standard_streams as streams; streams.install(); "
        "sys.exit(os.open('/dev/null', os.O_RDONLY))"
    )
    closing = f"import os, sys; os.closerange(0, 3); os.execv(sys.executable, [sys.executable, '-c', {program!r}])"
    done = subprocess.run([sys.executable, "-c", closing], cwd=ROOT, check=False, timeout=DEADLINE_S)
    assert done.returncode == 3


def test_a_reader_of_stderr_that_is_stopped_does_not_stop_a_capture() -> None:
    """While a capture runs, lines that a full pipe does not accept soon are dropped and counted."""
    program = (
        "import sys; from skbcapd import standard_streams as streams; streams.install(); streams.limit_patience()\n"
        "for number in range(1009): print('x' * 63, file=sys.stderr)\n"
        "print(streams.dropped())"
    )
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=writer, timeout=DEADLINE_S, check=True
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as end:
        written = end.read()
    lines = written.splitlines(keepends=True)
    assert lines
    assert set(lines) == {b"x" * 63 + b"\n"}
    assert int(done.stdout) == 1009 - len(lines) > 0


def test_a_reader_that_continues_gets_lines_again() -> None:
    """Lines are written again as soon as the reader reads."""
    program = (
        "import sys; from skbcapd import standard_streams as streams; streams.install(); streams.limit_patience()\n"
        "for number in range(1009): print('x' * 63, file=sys.stderr)\n"
        "print('full', flush=True); sys.stdin.readline()\n"
        "print('again', file=sys.stderr)"
    )
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writer
    ) as process:
        os.close(writer)
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == b"full\n"
        with os.fdopen(reader, "rb", buffering=0) as end:
            end.read(4096)
            process.stdin.write(b"\n")
            process.stdin.close()
            assert end.read(4096) == b"again\n"
        assert process.wait(DEADLINE_S) == 0
