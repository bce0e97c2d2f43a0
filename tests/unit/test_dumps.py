"""`skbcapd dump`: its requests at the control socket, and what the command makes of the answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import skbcapd
from skbcapd.daemon.dumps import Dumps
from skbcapd.output.dump import Orders
from tests.support.control import Daemon
from tests.support.deadline import DEADLINE_S

ROOT = Path(skbcapd.__file__).parent.parent
US = os.geteuid()


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """The signals that this process gets."""
    got: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: got.append(number))
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})  # an earlier test may have blocked it
    yield got
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGUSR2, before)


def test_an_order_does_what_the_signal_does(signals: list[int]) -> None:
    """The daemon sends itself the signal, once for all orders that wait, and the order has the times
    of the request.
    """
    orders = Orders(lambda: 1000.0)
    assert Dumps(orders).answer(b"dump after=10 since=120", US) == {"dump": 1}
    assert Dumps(orders).answer(b"dump", 0) == {"dump": 2}
    assert signals == [signal.SIGUSR2]
    first, second = orders.take().values()
    assert (first.end_s, first.from_s) == (1010.0, 880.0)
    assert (second.end_s, second.from_s) == (1000.0, float("-inf"))
    assert Dumps(orders).answer(b"dump", 0) == {"dump": 3}
    assert signals == [signal.SIGUSR2] * 2
    found = Dumps(orders).answer(b"dumped 1", 65534)
    assert found
    assert (found["state"], found["trigger"]) == ("waiting", "command")


@pytest.mark.parametrize(
    ("line", "user", "message"),
    [
        (b"dump", 65534 if US != 65534 else 1, "only root and the user of the daemon"),
        (b"dump", -1, "only root and the user of the daemon"),
        (b"dump after=3601", 0, "expected after: a duration from 1s to 1h"),
        (b"dump after=0", 0, "expected after: a duration from 1s to 1h"),
        (b"dump since=999999999", 0, "since: a duration from 1s to 366d"),
        (b"dumped 3", 0, "no such dump"),
    ],
)
def test_wrong_orders_do_nothing(line: bytes, user: int, message: str, signals: list[int]) -> None:
    """Other users, and times outside of the limits, get an error; there is no order and no signal."""
    orders = Orders(lambda: 1000.0)
    found = Dumps(orders).answer(line, user)
    assert found
    assert message in found["error"]
    assert not signals
    assert not orders.take()


@pytest.mark.parametrize("line", [b"dump ", b"dump x", b"dump since=1 after=1", b"dump after=-1", b"dumped", b"dumpe"])
def test_other_lines_are_no_orders(line: bytes) -> None:
    """Everything else is unknown."""
    assert Dumps(Orders(lambda: 0.0)).answer(line, 0) is None


def dump(path: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The output of the command."""
    words = [sys.executable, "-m", "skbcapd", "dump", "--config", "etc/skbcapd.yaml", *options]
    words += ["--set", f"control.socket={path}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)


def answers(*facts: dict[str, object]) -> list[bytes]:
    """What a daemon says."""
    return [json.dumps(each).encode() for each in facts]


def test_the_command_waits_for_the_files(tmp_path: Path) -> None:
    """It asks until the dump is done, says once how long that takes, and prints the files on stdout; all is escaped."""
    capturing: dict[str, object] = {"state": "capturing", "left_s": 7.5, "trigger": "rules[1]\x1b"}
    done: dict[str, object] = {"state": "done", "text": "dumped 3 packets to /a\x1b", "paths": ["/a\x1b", "/b"]}
    daemon = Daemon(tmp_path / "s", *answers({"dump": 7}, {"state": "waiting"}, capturing, capturing, done))
    found = dump(daemon.path, "--after", "10s", "--since", "2m")
    daemon.end()
    assert (found.returncode, found.stdout) == (0, "/a\\x1b\n/b\n")
    assert found.stderr.splitlines() == [
        "capturing for 7.5 s more (trigger: rules[1]\\x1b)",
        "dumped 3 packets to /a\\x1b",
    ]
    assert daemon.requests == [b"dump after=10 since=120\n", *[b"dumped 7\n"] * 4]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([{"error": "no\x1b", "hint": "do"}], "no\\x1b\n  (hint) do"),
        ([{"dump": "x"}], "answer of another version"),
        ([{"dump": 1}, {"state": "refused", "refusal": "no space"}], "no dump: no space; the packets stay in memory"),
        ([{"dump": 1}, {"error": "no such dump"}], "no such dump"),
        ([{"dump": 1}], "if the daemon has ended, its log says what it has dumped"),
    ],
)
def test_a_dump_that_is_refused(facts: list[dict[str, object]], message: str, tmp_path: Path) -> None:
    """The reason of the daemon, or its end, ends the command at once."""
    daemon = Daemon(tmp_path / "s", *answers(*facts))
    found = dump(daemon.path)
    daemon.end()
    assert (found.returncode, found.stdout) == (1, "")
    assert message in found.stderr
    assert "\x1b" not in found.stderr


@pytest.mark.parametrize("words", [["--after", "0s"], ["--after", "2h"], ["--since", "x"], ["--since", "400d"]])
def test_wrong_times(words: list[str]) -> None:
    """Times outside of the limits are usage errors, with the limits."""
    found = dump("/none", *words)
    assert found.returncode == 2
    assert "expected a duration from 1s to" in found.stderr


def test_no_control_socket() -> None:
    """control.socket: none is a usage error that names the signal."""
    found = dump("none")
    assert found.returncode == 2
    assert "send SIGUSR2 to the daemon" in found.stderr
