"""`skbcapd top` without files: what it makes of the stream of a daemon, on paper and on a screen."""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from skbcapd.analysis.live import Intervals
from skbcapd.analysis.rates import Rates
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.cli.main import parser
from skbcapd.errors import SkbcapdError
from skbcapd.pcapng import live
from skbcapd.pcapng.blocks import PACKET
from skbcapd.pcapng.comment import label
from skbcapd.pcapng.interface import DROPS, Interface
from skbcapd.pcapng.live import HEAD, Mark
from skbcapd.pcapng.writer import PcapngWriter
from tests.support.deadline import DEADLINE_S
from tests.support.writer import block

ROOT = Path(__file__).parents[2]


def frame(size: int, *, peer: str, way: int, port: int = 443) -> bytes:
    """An IPv4 frame with TCP, between us and a peer."""
    ours, theirs = ip_address("192.168.178.24").packed, ip_address(peer).packed
    ends = (ours, theirs) if way == 2 else (theirs, ours)
    ports = (40_001, port) if way == 2 else (port, 40_001)
    head = b"\x45\0" + (size - 14).to_bytes(2, "big") + bytes(4) + b"\x40\x06\0\0" + b"".join(ends)
    tcp = b"".join(number.to_bytes(2, "big") for number in ports) + bytes(16)
    return (bytes(12) + b"\x08\0" + head + tcp).ljust(size, b"\0")


def packet(comm: bytes, tgid: int, way: int, size: int, peer: str = "10.9.9.9", port: int = 443) -> bytes:
    """A packet of a process, as a block; direction 1 in, 2 out."""
    options = label([("comm", comm), ("pid", tgid), ("tgid", tgid), ("unit", b"a.service")], way, tgid, tgid).options
    return block(PACKET, 0, frame(size, peer=peer, way=way, port=port), options)


def interval(blocks: bytes, *, seconds: float = 1.0, left_out: int = 0, name: bytes = b"eth0") -> bytes:
    """The messages of an interval with these packets."""
    data = b""
    if blocks:
        parts: list[bytes] = []

        class Sink:
            def write(self, part: bytes | memoryview) -> None:
                parts.append(bytes(part))

            def flush(self) -> None: ...

        writer = PcapngWriter(Sink())
        writer.write_section("x86_64", "Linux", "skbcapd")
        writer.write_interface(
            Interface(name, "web: dropped packets" if name.startswith(DROPS) else "", 1, 0, None, None, None)
        )
        whole = b"".join(parts) + blocks
        # In two messages, cut anywhere.
        data = b"".join(HEAD.pack(live.BLOCKS, len(part)) + part for part in (whole[:101], whole[101:]))
    return data + Mark(int(seconds * 1e9), len(blocks), left_out).message()


FIRST = (
    packet(b"nginx", 1058, 2, 1000) * 3
    + packet(b"nginx", 1058, 1, 100)
    + packet(b"curl", 1061, 1, 2000, "10.9.9.7", 80) * 2
    + packet(b"\x1b[31m", 1063, 2, 60)
)


class Daemon:
    """Listens, and sends a stream to whoever asks to watch; keeps the connection until the viewer ends.

    Args:
        path: of the socket.
        stream: what it sends after the request.
        stays: whether it waits for the end of the viewer.
    """

    def __init__(self, path: Path, stream: bytes, *, stays: bool = True) -> None:
        self.path, self.request = path, b""
        self._stream, self._stays = stream, stays
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        """Wait until it has served its client, if there was one."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends accept
        self._thread.join(DEADLINE_S)
        self._socket.close()

    def _serve(self) -> None:
        with suppress(OSError), self._socket.accept()[0] as client:
            client.settimeout(DEADLINE_S)
            self.request = client.recv(100)
            client.sendall(self._stream)
            if self._stays:
                client.recv(1)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes a daemon; all are closed at the end."""
    made = []

    def make(stream: bytes, *, stays: bool = True) -> Daemon:
        made.append(Daemon(tmp_path / "control", stream, stays=stays))
        return made[-1]

    yield make
    for one in made:
        one.close()


def command(path: Path, *arguments: str) -> list[str]:
    """The command of a user."""
    return [sys.executable, "-m", "skbcapd", "top", "--set", f"control.socket={path}", *arguments]


class Done(NamedTuple):
    """How the command ended."""

    code: int
    stdout: str
    stderr: str


Top = Callable[..., Done]


@pytest.fixture
def top(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Top:
    """Runs the command in this process, with the daemon's socket of this test, or with the words of the test."""

    def run(*arguments: str, words: Sequence[str] | None = None) -> Done:
        chosen = ["--set", f"control.socket={tmp_path / 'control'}", *arguments] if words is None else words
        try:
            options = parser().parse_args(["top", *chosen], argparse.Namespace(command=None))
            code = options.run(options)
        except SkbcapdError as error:
            print(f"skbcapd: {error}", file=sys.stderr)
            code = error.exit_code
        except SystemExit as error:
            code = error.code
        return Done(code, *capfd.readouterr())

    return run


def test_a_report_a_second(daemon: Callable[..., Daemon], top: Top) -> None:
    """Each interval is one report, with rates by its real duration, the busiest first; then the command ends."""
    served = daemon(live.ACCEPTED + interval(FIRST, seconds=2.0) + interval(b"") + interval(FIRST))
    done = top("--count", "2")
    assert (done.code, done.stderr) == (0, "")
    assert served.request == b"watch\n"
    assert re.sub(r"(?m)^\d\d:\d\d:\d\d", "10:11:12", done.stdout) == (
        "10:11:12  4 packets/s, 1,530 bytes/s sent, 2,050 bytes/s received\n"
        "TGID  PROCESS   PACKETS/S  SENT/S  RECEIVED/S  PEERS\n"
        "1061  curl              1       0       2,000  10.9.9.7 tcp/80\n"
        "1058  nginx             2   1,500          50  10.9.9.9 tcp/443\n"
        "1063  \\x1b[31m          0      30           0  10.9.9.9 tcp/443\n"
        "\n"
        "10:11:12  0 packets/s, 0 bytes/s sent, 0 bytes/s received\n"
        "TGID  PROCESS  PACKETS/S  SENT/S  RECEIVED/S  PEERS\n"
    )


def rows(stdout: str) -> list[list[str]]:
    """The words of each row of a report, without the numbers' commas."""
    return [line.replace(",", "").split() for line in stdout.splitlines()[2:]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--by", "peer"], [["-", "10.9.9.9"], ["1061", "10.9.9.7"]]),
        (["--by", "unit"], [["-", "a.service"]]),
        (["--by", "process", "--comm", "ng*"], [["1058", "nginx"]]),
        (["--direction", "out"], [["1058", "nginx"], ["1063", "\\x1b[31m"]]),
        (["--pid", "1061"], [["1061", "curl"]]),
        (["--peer", "10.9.9.7"], [["1061", "curl"]]),
        (["--port", "80"], [["1061", "curl"]]),
        (["--interface", "eth1"], []),
        (["tcp", "port", "443", "and", "greater", "100"], [["1058", "nginx"]]),
    ],
)
def test_selectors_as_with_files(
    arguments: list[str], expected: list[list[str]], daemon: Callable[..., Daemon], top: Top
) -> None:
    """`--by`, selectors and a filter without a file mean the same as with files."""
    daemon(live.ACCEPTED + interval(FIRST))
    done = top("-n", "1", *arguments)
    assert (done.code, done.stderr) == (0, "")
    found = [row[:2] for row in rows(done.stdout)]
    assert sorted(found) == sorted(expected)


def test_json_is_a_line_each_second(daemon: Callable[..., Daemon], top: Top) -> None:
    """A line has the sums of its interval, with the keys of files, the time it took, and the part that was left out."""
    stream = interval(FIRST, seconds=1.25, left_out=3 * len(FIRST)) + interval(b"")
    daemon(live.ACCEPTED + stream)
    done = top("--json", "--count", "2")
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["seconds"], first["left_out"]) == (1.25, 0.75)
    assert [(row["tgid"], row["sent_bytes"], row["received_bytes"]) for row in first["rows"]] == [
        (1061, 0, 4000),
        (1058, 3000, 100),
        (1063, 60, 0),
    ]
    assert first["rows"][0]["peers"][0]["address"] == "10.9.9.7"
    assert abs(first["time_s"] - time.time()) < DEADLINE_S
    assert second["rows"] == []


def dropped(comm: bytes, tgid: int, reason: bytes, size: int) -> bytes:
    """A dropped packet of a process, as a block."""
    fields: list[tuple[str, bytes | int]] = [("comm", comm), ("pid", tgid), ("tgid", tgid), ("drop", reason)]
    options = label([*fields, ("at", b"nft_do_chain")], 2, tgid, tgid).options
    return block(PACKET, 0, frame(size, peer="10.9.9.9", way=2), options)


def test_drops_of_now(daemon: Callable[..., Daemon], top: Top) -> None:
    """`--drops` has a row for each reason and process, with rates; without it, dropped packets are no traffic."""
    blocks = dropped(b"curl", 1061, b"NETFILTER_DROP", 100) * 6 + dropped(b"\x1b[31m", 1063, b"QDISC_DROP", 1000) * 2
    stream = live.ACCEPTED + interval(blocks, seconds=2.0, left_out=len(blocks), name=b"drops@host")
    daemon(stream)
    done = top("--drops", "-n", "1")
    assert (done.code, done.stderr) == (0, "")
    assert re.sub(r"(?m)^\d\d:\d\d:\d\d", "10:11:12", done.stdout) == (
        "10:11:12  4 dropped packets/s\n"
        "left out: 50.0 % of the captured bytes, because they came too fast: rates are too low\n"
        "PACKETS/S  BYTES/S  REASON          DIRECTION  INTERFACE   TGID  PROCESS   AT\n"
        "        3      300  NETFILTER_DROP  out        drops@host  1061  curl      nft_do_chain\n"
        "        1    1,000  QDISC_DROP      out        drops@host  1063  \\x1b[31m  nft_do_chain\n"
    )


@pytest.mark.parametrize(("words", "expected"), [(("--drops",), [2, 6]), ((), []), (("--dropped", "Q*"), [2])])
def test_drops_of_now_as_json(
    words: tuple[str, ...], expected: list[int], daemon: Callable[..., Daemon], top: Top
) -> None:
    """JSON has the same rows; selected drops are counted by process."""
    blocks = dropped(b"curl", 1061, b"NETFILTER_DROP", 100) * 6 + dropped(b"ping", 1063, b"QDISC_DROP", 1000) * 2
    daemon(live.ACCEPTED + interval(blocks, name=b"drops@host"))
    done = top("--json", "-n", "1", *words)
    assert (done.code, done.stderr) == (0, "")
    assert sorted(row["packets"] for row in json.loads(done.stdout)["rows"]) == expected


def test_what_was_left_out_is_said(daemon: Callable[..., Daemon], top: Top) -> None:
    """If the daemon has left packets out, the report says how much, and that rates are too low."""
    daemon(live.ACCEPTED + interval(FIRST, left_out=len(FIRST)))
    done = top("-n", "1")
    assert "left out: 50.0 % of the captured bytes" in done.stdout


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b'{"error": "only root \\u001b may", "hint": "sudo"}\n', "only root \\x1b may\n  (hint) sudo"),
        (b'{"error": "unknown request; expected: status"}\n', "unknown request; expected: status"),
        (b"", "0 bytes that are not an answer of skbcapd"),
        (b"x" * 5000, "4096 bytes that are not an answer of skbcapd"),
        (live.ACCEPTED, "the connection was closed"),
        (live.ACCEPTED + HEAD.pack(7, 3), "message 7 of 3 bytes"),
        (live.ACCEPTED + HEAD.pack(live.BLOCKS, 1 << 31), "message 1 of 2147483648 bytes"),
        (live.ACCEPTED + HEAD.pack(live.BLOCKS, 24) + b"x" * 24 + Mark(1, 24, 0).message(), "expected pcapng or pcap"),
    ],
)
def test_another_answer_is_an_error(stream: bytes, expected: str, daemon: Callable[..., Daemon], top: Top) -> None:
    """A daemon that refuses, ends, or is something else ends the command with one message, escaped."""
    daemon(stream, stays=False)
    done = top("-n", "3")
    assert done.code == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_no_daemon(top: Top) -> None:
    """Without a daemon the error says so, and what can be done."""
    done = top()
    assert done.code == 1
    assert "expected a daemon that listens there" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--csv"], "--csv, --from and --to are for files"),
        (["--from", "3h ago"], "--csv, --from and --to are for files"),
        (["--count", "0"], "not a positive number"),
        (["/dev/null", "--count", "3"], "--count, --config and --set are for the running daemon"),
        (["gone.pcapng"], "No such file"),
        (["there is no such primitive"], "expected a filter as in tcpdump, or a file"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments: list[str], expected: str, top: Top) -> None:
    """Options for files without a file, and the other way round, are errors."""
    done = top(words=arguments)
    assert done.code != 0
    assert expected in done.stderr


class Terminal:
    """The command on a terminal of 24 lines.

    Args:
        arguments: the command.
        term: its kind.
    """

    def __init__(self, arguments: Sequence[str], term: str = "xterm") -> None:
        self.shown = ""
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *arguments],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": term, "LINES": "24", "COLUMNS": "100"},
        )
        os.close(theirs)

    def until(self, text: str) -> None:
        """Read until it has shown a text since the last call."""
        end = time.monotonic() + DEADLINE_S
        self.shown = ""
        with selectors.DefaultSelector() as selector:
            selector.register(self._ours, selectors.EVENT_READ)
            while text not in self.shown:
                assert selector.select(end - time.monotonic()), f"no {text!r} in {self.shown!r}"
                self.shown += os.read(self._ours, 1 << 16).decode()

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Opens a terminal, closed at the end."""
    made: list[Terminal] = []

    def make(*arguments: str, term: str = "xterm") -> Terminal:
        made.append(Terminal(arguments, term))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("bytes", ["1061", "1058", "1063"]),
        ("sent", ["1058", "1063", "1061"]),
        ("received", ["1061", "1058", "1063"]),
        ("packets", ["1058", "1061", "1063"]),
    ],
)
def test_orders(order: str, expected: list[str]) -> None:
    """Rows are sorted by the chosen number, the largest first; a screen that is too small has the first ones."""
    rates = Rates("tgid", Selection(Selectors()), has_names=False)
    ours, theirs = socket.socketpair()
    with theirs, Intervals(ours, "the test") as intervals:
        theirs.sendall(interval(FIRST))
        received = intervals.next(DEADLINE_S)
        assert received is not None
        report = rates.report(received)
    assert [line.split()[0] for line in rates.lines(report, order)][2:] == expected
    assert [line.split()[0] for line in rates.lines(report, order, most=1)][2:] == [expected[0], "..."]


def test_the_screen(daemon: Callable[..., Daemon], terminal: Callable[..., Terminal]) -> None:
    """On a terminal, the report fills the screen; keys sort it, stop it and quit, and the terminal is restored."""
    served = daemon(live.ACCEPTED + interval(FIRST))
    screen = terminal(*command(served.path))
    screen.until("nginx")
    assert "sorted by bytes" in screen.shown
    assert screen.shown.index("curl") < screen.shown.index("nginx")
    screen.press("s")
    screen.until("sent")
    screen.press(" ")
    screen.until("(stopped)")
    screen.press("q")
    screen.until("\x1b[?1049l")  # rmcup of xterm: the former content
    assert screen.process.wait(DEADLINE_S) == 0


def test_a_terminal_without_a_screen(daemon: Callable[..., Daemon], terminal: Callable[..., Terminal]) -> None:
    """A terminal that curses does not know gets one report a second, and a message."""
    served = daemon(live.ACCEPTED + interval(FIRST))
    screen = terminal(*command(served.path, "-n", "1"), term="no-such-terminal")
    screen.until("nginx")
    assert "no screen for the terminal" in screen.shown
    assert screen.process.wait(DEADLINE_S) == 0


def test_ctrl_c_ends_it(daemon: Callable[..., Daemon], terminal: Callable[..., Terminal]) -> None:
    """Ctrl-C quits like the key, without a message."""
    screen = terminal(*command(daemon(live.ACCEPTED + interval(FIRST)).path))
    screen.until("nginx")
    screen.press("\x03")
    screen.until("\x1b[?1049l")
    assert screen.process.wait(DEADLINE_S) == 0
    assert "Traceback" not in screen.shown
