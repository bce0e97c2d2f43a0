"""`skbcapd status`: lines and JSON, and answers that try to harm the terminal."""

from __future__ import annotations

import contextlib
import io
import json
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import skbcapd
from skbcapd.cli.status import ANSWER_MAX, ask, lines
from skbcapd.errors import FileError
from tests.support.control import Daemon
from tests.support.deadline import DEADLINE_S
from tests.support.rig import Scene, stamped

ROOT = Path(skbcapd.__file__).parent.parent


def status(path: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The output of the command."""
    words = [sys.executable, "-m", "skbcapd", "status", "--config", "etc/skbcapd.yaml", *options]
    words += ["--set", f"control.socket={path}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)


@pytest.fixture
def facts() -> dict[str, object]:
    """The answer of a daemon."""
    scene = Scene(**{"files.size": "1MiB"})
    scene.rig.drain(*[stamped(1058)] * 4711)
    found: dict[str, object] = json.loads(json.dumps(scene.look()))
    return found


def test_people_see_packets_drops_and_processes(facts: dict[str, object], tmp_path: Path) -> None:
    """The lines have packets, drops by cause, the busiest processes and the settings that differ
    from their defaults.
    """
    daemon = Daemon(tmp_path / "s", json.dumps(facts).encode())
    done = status(daemon.path)
    daemon.end()
    assert (done.returncode, done.stderr) == (0, "")
    assert daemon.requests == [b"status\n"]
    found = [line.split() for line in done.stdout.splitlines()]
    assert ["seen", "4,711"] in found
    assert ["written", "4,711"] in found
    assert ["dropped", "0", "the", "shared", "memory", "was", "full"] in found
    assert ["1058", "101", "10,100", "chronyd"] in found or ["1058", "101", "6,060", "chronyd"] in found
    assert done.stdout.endswith("settings that differ from their defaults\n  files.size: 1048576\n")


def test_dropped_lines_of_the_log_are_shown(facts: dict[str, object], tmp_path: Path) -> None:
    """Lines of the log that could not be written are shown, with their number."""
    daemon = Daemon(tmp_path / "s", json.dumps({**facts, "log": {"dropped": 1009}}).encode())
    done = status(daemon.path)
    daemon.end()
    assert "         log          1,009  lines could not be written\n" in done.stdout


def test_programs_get_all_of_it(facts: dict[str, object], tmp_path: Path) -> None:
    """--json prints the answer of the daemon."""
    daemon = Daemon(tmp_path / "s", json.dumps(facts).encode())
    done = status(daemon.path, "--json")
    daemon.end()
    assert json.loads(done.stdout) == facts


def test_watch_continues_until_the_daemon_ends(facts: dict[str, object], tmp_path: Path) -> None:
    """--watch repeats, shows rates since the last answer, and ends with the daemon, which is reported.
    Without time between two answers, or from another daemon, there are no rates.
    """
    packets = {**facts["packets"], "seen": 4711 + 1009}  # type: ignore[dict-item]
    quiet = {"slot": 2, "name": "lo", "namespace": "", "packets": 7, "bytes": 700, "dropped": 0}
    first = {**facts, "monotonic_s": 100.5, "by_interface": [quiet]}
    busy = {"slot": 1, "name": "eth0\x1b", "namespace": "web", "packets": 5003, "bytes": 4003001, "dropped": 30}
    second = {**first, "packets": packets, "monotonic_s": 102.5, "by_interface": [quiet, busy]}
    other = {**second, "monotonic_s": 103.5, "pid": 1}
    daemon = Daemon(tmp_path / "s", *(json.dumps(each).encode() for each in (first, second, second, other)))
    done = status(daemon.path, "--watch")
    daemon.end()
    assert done.returncode == 1
    assert re.findall(r"seen +([\d,]+)(?: +([\d,]+)/s)?\n", done.stdout) == [
        ("4,711", ""),
        ("5,720", "504"),
        ("5,720", ""),
        ("5,720", ""),
    ]
    table = re.findall(r"PACKETS/S +BYTES/S +DROPS/S  INTERFACE\n(.*\n)(.*\n)\n", done.stdout)
    assert [[line.split() for line in lines] for lines in table] == [
        [["2,502", "2,001,500", "15", "eth0\\x1b", "(web)"], ["0", "0", "0", "lo"]]
    ]
    assert "expected a daemon that listens there" in done.stderr


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "0 bytes that are not an answer of skbcapd; expected JSON"),
        (b"[]\n", "not an answer of skbcapd"),
        (b"\xff\n", "not an answer of skbcapd"),
        (b"[" * 100_003, "not an answer of skbcapd"),
        (b" " * (ANSWER_MAX + (1 << 16)), "not an answer of skbcapd"),
        (b'{"version": "\\u001b[2J"}\n', "answer of another version"),
    ],
)
def test_strange_answers(answer: bytes, message: str, tmp_path: Path) -> None:
    """What is not an answer of a daemon is an error, and nothing of it is printed."""
    daemon = Daemon(tmp_path / "s", answer)
    done = status(daemon.path)
    daemon.end()
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


def test_there_is_no_daemon(tmp_path: Path) -> None:
    """A missing socket, and one without a listener, are reported with a hint."""
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead"))
    dead.close()
    for path in (tmp_path / "none", tmp_path / "dead"):
        with pytest.raises(FileError, match="expected a daemon that listens there") as error:
            ask(str(path))
        assert "--set control.socket=PATH" in error.value.hint


def test_a_daemon_that_does_not_answer(tmp_path: Path) -> None:
    """A daemon that does not answer is an error."""
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        mute.listen()
        with pytest.raises(FileError, match="no answer within 0 s"):
            ask(str(tmp_path / "mute"), patience_s=0.01)


def test_a_daemon_that_many_ask(tmp_path: Path) -> None:
    """While the queue of the socket is full, the command waits for its turn; and not for ever."""
    path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX) as daemon, contextlib.ExitStack() as others:
        daemon.bind(path)
        daemon.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                other = others.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)  # noqa: FBT003  the name of the method says what is false
                other.connect(path)
                other.shutdown(socket.SHUT_WR)  # it asks nothing
        with pytest.raises(FileError, match="no answer within 0 s"):
            ask(path, patience_s=0.2)

        def serve() -> None:
            for _ in range(10):
                with daemon.accept()[0] as client:
                    client.settimeout(DEADLINE_S)
                    if client.recv(100):
                        client.sendall(b'{"a": 1}')
                        return

        thread = threading.Timer(0.2, serve)
        thread.start()
        assert ask(path) == {"a": 1}
        thread.join()


def test_no_control_socket() -> None:
    """control.socket: none is a usage error for `status`."""
    assert status("none").returncode == 2


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=7),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=7,
)


@pytest.mark.fuzz
@given(st.data())
def test_all_answers_are_escaped(data: st.DataObject) -> None:
    """For any values in an answer, the lines are printable text, or it is an error."""
    told = json.loads(json.dumps(Scene().look()))
    for key in data.draw(st.lists(st.sampled_from(sorted(told)), min_size=1, max_size=3)):
        if isinstance(told[key], dict) and told[key] and data.draw(st.booleans()):
            told[key][data.draw(st.sampled_from(sorted(told[key])))] = data.draw(_ANYTHING)
        else:
            told[key] = data.draw(_ANYTHING)
    stream = io.StringIO()
    try:
        stream.writelines(lines("x", told))
        stream.writelines(lines("x", told, {**told, "monotonic_s": -1.0}))
    except FileError:
        return
    assert all(line.isprintable() for line in stream.getvalue().split("\n"))
