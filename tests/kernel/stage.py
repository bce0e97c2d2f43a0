"""Where scenarios of attribution play: two namespaces joined by a wire, one capture at the near
end, programs that act.

Scenarios go in; what was captured during each comes out, judged. Whoever acts at the near end is a
program of its own (tests/kernel/send), in a process of its own; the far end is this very process,
so that its name on a packet shows. As starting a capture is what costs, one serves many scenarios:
a marker frame stands between two of them, sent when no connection is in motion any more.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.kernel.capture import ATTACH, ROOT, Capture, Ended, read
from tests.kernel.comparison import ETH_P_802_EX1, Marker, between
from tests.kernel.namespace import Namespace, Wire
from tests.kernel.reference import Reference
from tests.kernel.verdict import ETHERNET, Frame, Judge, Verdicts, judge
from tests.support.blocks import Label
from tests.support.deadline import DEADLINE_S, until

SLOWNESS = float(os.environ.get("SKBCAPD_SLOWNESS", "1"))

# What a kernel offers to record users of sockets, see docs/attribution.md.
KPROBES = "kprobes"
TRACEPOINTS = "tracepoints"
FEW_TRACEPOINTS = "tracepoints before 6.3"
OFFERS = (KPROBES, TRACEPOINTS, FEW_TRACEPOINTS)
HAS_LENGTH_TRACEPOINTS = (6, 3)
KPROBE_EVENTS = Path("/sys/bus/event_source/devices/kprobe")

PUT_OFF = 3  # packets that pass while the search through /proc is put off, on a slow machine
FILE = "people.pcapng"
NUDGE = (b"\x02skb00\x02skb01" + ETH_P_802_EX1.to_bytes(2, "big") + b"nudge").ljust(60, b"\0")
TCP_ESTABLISHED, TCP_TIME_WAIT, TCP_LISTEN = "01", "06", "0A"


def scaled(count: int, few: int) -> int:
    """A number of packets or processes: fewer on an emulated machine."""
    return count if SLOWNESS == 1 else few


class Player:
    """A running program of tests/kernel/send; killed by `close` if it still runs."""

    def __init__(self, namespace: Namespace, *command: str | int) -> None:
        self._process = namespace.do(
            subprocess.Popen,
            [sys.executable, "-E", "-s", "-S", "-m", f"tests.kernel.send.{command[0]}", *map(str, command[1:])],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._said = b""

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def says(self) -> list[Label]:
        """Wait for its next report.

        Raises:
            AssertionError: it ended, or said nothing in time.
        """
        assert self._process.stdout is not None
        end = time.monotonic() + DEADLINE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._said:
                assert selector.select(end - time.monotonic()), "the program said nothing"
                more = os.read(self._process.stdout.fileno(), 1 << 16)
                assert more, f"the program ended: {self._errors()}"
                self._said += more
        line, self._said = self._said.split(b"\n", 1)
        return [Label(**sender) for sender in json.loads(line)]

    def go(self) -> None:
        """Tell it to continue."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def tell(self, order: str, *arguments: object) -> list[Label]:
        """Give it an order (tests/kernel/send/acting.py), and wait for its report."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([order, *arguments]).encode() + b"\n")
        self._process.stdin.flush()
        return self.says()

    def end(self) -> list[Label]:
        """Wait for its end; give its last report.

        Raises:
            AssertionError: it failed.
        """
        stdout, stderr = self._process.communicate(timeout=DEADLINE_S)
        assert self._process.returncode == 0, stderr.decode()
        lines = (self._said + stdout).splitlines()
        return [Label(**sender) for sender in json.loads(lines[-1])] if lines else []

    def close(self) -> None:
        """Kill it and all processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(ValueError):  # already closed by `end`
            self._process.communicate()

    def _errors(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().decode()


@dataclass
class Stage:
    """The two ends, and what acts there; all that is started is gone when the stage is."""

    wire: Wire
    directory: Path
    stack: ExitStack
    early: dict[str, tuple[Player, list[socket.socket]]] = field(default_factory=dict)
    """The programs that run since before the capture, and the sockets of the far end for them, by
    scenario.
    """
    capture: Capture | None = None
    others: dict[str, Namespace] = field(default_factory=dict)
    """Namespaces besides the two ends, by the interface of the near end that leads to them."""
    standing: set[tuple[str, str]] = field(default_factory=set)
    """Connections that exist all the time."""

    @property
    def near(self) -> Namespace:
        """The end where frames are captured."""
        return self.wire.near.namespace

    @property
    def far(self) -> Namespace:
        """The other end."""
        return self.wire.far.namespace

    def start(self, *command: str | int, at: Namespace | None = None) -> Player:
        """Start a program, at the near end by default."""
        player = Player(at or self.near, *command)
        self.stack.callback(player.close)
        return player

    def play(self, *command: str | int, at: Namespace | None = None) -> list[Label]:
        """Run a program, at the near end by default; returns its last report."""
        return self.start(*command, at=at).end()

    def add_namespace(self, device: str) -> Namespace:
        """Make a namespace behind one of the interfaces of the near end."""
        self.others[device] = there = Namespace()
        self.stack.callback(there.close)
        return there

    @contextlib.contextmanager
    def watch(self) -> Iterator[Callable[[Callable[[Frame], bool], int], None]]:
        """A function that waits until so many frames of a kind have passed the near end since now."""
        with closing(Reference(self.near, self.wire.near.device)) as reference:

            def wait_for(accepts: Callable[[Frame], bool], times: int = 1) -> None:
                reference.wait_for(lambda frame: accepts(Frame(frame.data, ETHERNET, frame.outgoing)), times)

            yield wait_for

    def wait_until_written(self, content: bytes) -> None:
        """Wait until a packet with this content is in the file: then the lookups in /proc that it
        has caused are done. Frames of nobody keep the capture at work meanwhile.
        """
        file = self.directory / FILE

        def is_written() -> bool:
            nudge.send(NUDGE)
            with file.open("rb") as opened:
                opened.seek(max(0, file.stat().st_size - (1 << 20)))
                return content in opened.read()

        with self.near.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as nudge:
            nudge.bind((self.wire.near.device, 0))
            until(is_written, f"{content!r} is in the file")

    def moving(self) -> set[tuple[str, str]]:
        """The TCP connections that can still send something."""
        return _connections(self) - self.standing

    def capture_memory_kib(self) -> int:
        """Private memory of the capture, without memory shared with the kernel."""
        assert self.capture is not None
        status = Path(f"/proc/{self.capture.process.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
        assert found
        return int(found[1])


@dataclass(frozen=True)
class Scenario:
    """One way in which packets come into being, and who may stand on them.

    Args:
        name: for the table.
        play: makes the packets; gives their judge.
        packets: how many there are at least, so that an empty scenario fails.
        unknown: how many of them may be unknown.
        unknown_by: the same where what the kernel offers makes a difference.
        early: starts what has to run before the capture.
        vm: also for emulated machines.
        many: it has all its tries in `make test-many` only.
        needs: what the kernel must have (tests/kernel/scene.py: is_makeable).
        searched: names come from /proc: if the machine is busy, any number is unknown before that search.
    """

    name: str
    play: Callable[[Stage], Judge]
    packets: int = 1
    unknown: int = 0
    unknown_by: Mapping[str, int] = field(default_factory=dict)
    early: Callable[[Stage], tuple[Player, list[socket.socket]]] | None = None
    vm: bool = False
    many: bool = False
    needs: str = ""
    searched: bool = False

    def allowed(self, offers: str) -> int:
        """How many packets can be unknown on a kernel."""
        return self.unknown_by.get(offers, self.unknown)


@dataclass(frozen=True)
class Played:
    """What a scenario gave; `error` says what went wrong while it played."""

    scenario: Scenario
    verdicts: Verdicts
    allowed: int
    error: str


@dataclass(frozen=True)
class Performance:
    """All packets of one capture."""

    played: list[Played]
    ended: Ended
    offers: str


def perform(
    scenarios: Sequence[Scenario],
    wire: Wire,
    directory: Path,
    devices: Sequence[str],
    makers: Sequence[Callable[[Stage], None]],
    *,
    marked_at_far: bool = False,
    everywhere: bool = False,
    **settings: str,
) -> Performance:
    """Play scenarios under one capture at the near end of a wire.

    Args:
        scenarios: in the order to play them.
        wire: where.
        directory: for the capture file.
        devices: to watch beside the wire's near end.
        makers: make what the scenarios need, those devices and more.
        marked_at_far: the far end sends what stands between two scenarios: the near end captures only what arrives.
        everywhere: the namespaces behind the near end are captured, too; `devices` has the interfaces there.
        settings: of the capture.
    """
    near, file = wire.near, directory / FILE
    arguments = [word for device in (near.device, *devices) for word in ("-i", device)]
    judges: list[tuple[Judge, str]] = []
    with ExitStack() as stack:
        stage = Stage(wire, directory, stack)
        for make in makers:
            make(stage)
        for scenario in scenarios:
            if scenario.early:
                stage.early[scenario.name] = scenario.early(stage)
        stage.standing = _connections(stage)
        if everywhere:
            settings["namespaces"] = ",".join(there.name for there in (stage.near, *stage.others.values()))
        marks = wire.far if marked_at_far else near
        marker = stack.enter_context(closing(Marker(marks.namespace, marks.device)))
        capture = stack.enter_context(closing(Capture(near.namespace, *arguments, "-w", str(file), **settings)))
        stage.capture = capture
        marker.send()
        for scenario in scenarios:
            try:
                judge_of = scenario.play(stage)
                until(lambda: not stage.moving(), f"connections of {scenario.name} have ended")
                judges.append((judge_of, ""))
            except Exception as error:  # noqa: BLE001 - the scenario's own test fails with it, the others go on
                judges.append((lambda _frame: None, f"{type(error).__name__}: {error}"))
                stage.standing |= stage.moving()  # what this one has left holds up no other
            marker.send()
        ended = capture.stop()
    offers = _offers()
    parts = between(read(file), marker.sent)
    played = [
        Played(scenario, judge(packets, judge_of), scenario.allowed(offers), error)
        for scenario, (judge_of, error), packets in zip(scenarios, judges, parts, strict=True)
    ]
    return Performance(played, ended, offers)


def _offers() -> str:
    """What a capture of this run can record."""
    if ATTACH != "tracepoint" and KPROBE_EVENTS.exists():
        return KPROBES
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    return TRACEPOINTS if release >= HAS_LENGTH_TRACEPOINTS else FEW_TRACEPOINTS


def _connections(stage: Stage) -> set[tuple[str, str]]:
    """The TCP connections of all namespaces that can still send something."""
    return {
        (local, remote)
        for namespace in (stage.near, stage.far, *stage.others.values())
        for name in ("tcp", "tcp6")
        for local, remote, state in namespace.do(_table, name)
        if state not in (TCP_TIME_WAIT, TCP_LISTEN)
    }


def _table(name: str) -> list[tuple[str, str, str]]:
    """The rows of /proc/net/tcp of the calling thread's namespace: local end, remote end, state."""
    rows = [line.split() for line in Path("/proc/thread-self/net", name).read_text().splitlines()[1:]]
    return [(local, remote, state) for _, local, remote, state, *_ in rows]


def listener(namespace: Namespace, address: str, port: int = 0) -> socket.socket:
    """A TCP socket that listens in a namespace, with a deadline."""
    return namespace.do(_listen, address, port)


def _listen(address: str, port: int) -> socket.socket:
    made = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.settimeout(DEADLINE_S)
    return made


def connect(namespace: Namespace, address: str, port: int) -> socket.socket:
    """A TCP connection from a namespace, with a deadline."""
    return namespace.do(socket.create_connection, (address, port), DEADLINE_S)


def udp_socket(namespace: Namespace, address: str = "", port: int = 0) -> socket.socket:
    """A UDP socket in a namespace, bound, with a deadline."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = namespace.do(socket.socket, family, socket.SOCK_DGRAM)
    made.settimeout(DEADLINE_S)
    made.bind((address, port))
    return made
