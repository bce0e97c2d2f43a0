"""Reloads that take long (a silent name server, filters of hundreds of ports) do not affect the
capture.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Daemon
from tests.kernel.namespace import Wire
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.support import faults
from tests.support.blocks import packets
from tests.support.deadline import DEADLINE_S, until
from tests.support.runqueue import waited_s

pytestmark = pytest.mark.faults

SLOWNESS = float(os.environ.get("SKBCAPD_SLOWNESS", "1"))
FED_WITHIN_S = 2.0 * SLOWNESS  # the loop has a turn at least so often
ENDS_WITHIN_S = 3.0 * SLOWNESS  # after SIGTERM; the turn of the loop, the detach, the file's end
LOOKED_UP_WITHIN_S = 10.0  # skbcapd.filter.names.DEADLINE_S
SENDER = """
import select, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.connect((sys.argv[1], int(sys.argv[2])))
    number = 0
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        for number in range(number, number + 7):
            sender.send(number.to_bytes(8, "big") + bytes(1000))
        number += 1
print(number)
"""


_CREDENTIALS = struct.Struct("3i")  # struct ucred


class Manager:
    """A service manager that listens, and records when the watchdog was fed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fed: list[float] = []
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def environment(self) -> tuple[str, ...]:
        """A command that starts another one with this manager, and without cached programs. Its watchdog is so short
        that it is fed each second.
        """
        cache = self.path.with_name("cache")
        return ("env", f"NOTIFY_SOCKET={self.path}", "WATCHDOG_USEC=10000000", f"CACHE_DIRECTORY={cache}")

    @property
    def longest_s(self) -> float:
        """The longest time between two feeds, not counting waits for a processor."""
        return max(after - before for before, after in zip(self.fed, self.fed[1:], strict=False))

    def close(self) -> None:
        """Stop to listen."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE_S)
        self._socket.close()

    def _listen(self) -> None:
        while (received := self._socket.recvmsg(1 << 16, socket.CMSG_SPACE(_CREDENTIALS.size)))[0]:
            self.said += (lines := received[0].decode().splitlines())
            if "WATCHDOG=1" in lines:
                pid, _, _ = _CREDENTIALS.unpack(received[1][0][2])
                self.fed.append(time.monotonic() - waited_s(pid))


class NameServer:
    """A name server that never answers, and the config file of the resolver that names it."""

    def __init__(self, wire: Wire, tmp_path: Path) -> None:
        self._socket = wire.far.namespace.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((wire.far.ipv4, 53))
        self._socket.setblocking(False)  # noqa: FBT003  the name of the method says what is false
        file = tmp_path / "resolv.conf"
        # One query for each kind of address, without retries.
        file.write_text(f"nameserver {wire.far.ipv4}\noptions attempts:1 timeout:30\n")
        shell = f'mount --bind {file} /etc/resolv.conf; exec "$@"'
        self.through = ("unshare", "--mount", "--propagation", "private", "sh", "-c", shell, "sh")

    def asked(self) -> list[str]:
        """The names in its queries, one for each query."""
        names = []
        with contextlib.suppress(BlockingIOError):
            while True:
                question = self._socket.recv(512)[12:]
                labels = []
                while size := question[0]:
                    labels.append(question[1 : size + 1].decode())
                    question = question[size + 1 :]
                names.append(".".join(labels))
        return names

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class Flood:
    """Datagrams with numbers, some thousands per second, until it is stopped."""

    def __init__(self, wire: Wire) -> None:
        command = [sys.executable, "-E", "-s", "-S", "-c", SENDER, wire.far.ipv4, str(DISCARD_PORT)]
        self._process = wire.near.namespace.do(
            subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def end(self) -> int:
        """The number of datagrams sent."""
        said, _ = self._process.communicate("\n", timeout=DEADLINE_S)
        return int(said)

    def close(self) -> None:
        """Kill it if it still runs."""
        self._process.kill()
        self._process.wait()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager."""
    with closing(Manager(tmp_path / "notify")) as made:
        yield made


@pytest.fixture
def server(wire: Wire, tmp_path: Path) -> Iterator[NameServer]:
    """A silent name server."""
    with closing(NameServer(wire, tmp_path)) as made:
        yield made


@pytest.fixture(autouse=True)
def _sink(wire: Wire) -> Iterator[None]:
    with closing(Sink(wire.far.namespace)):
        yield


def ports(count: int) -> str:
    """A config with a filter that matches these packets, and so many ports."""
    return f'filter: "udp or {" or ".join(f"port {port}" for port in range(1, count + 1))}"\n'


def numbers(directory: Path, device: str) -> list[int]:
    """The numbers of the datagrams in the files."""
    files = sorted(entry for entry in directory.glob("*.pcapng") if not entry.is_symlink())
    return [
        int.from_bytes(packet.data[42:50], "big")
        for file in files
        for packet in packets(file.read_bytes())
        if packet.direction == "out" and packet.interface == device and len(packet.data) == 1050
        if packet.data[36:38] == DISCARD_PORT.to_bytes(2, "big")
    ]


@pytest.mark.parametrize("count", [100])
def test_many_ports_lose_nothing(count: int, wire: Wire, manager: Manager, tmp_path: Path) -> None:
    """While a large filter is compiled all packets are captured, and the watchdog is fed."""
    config, directory = tmp_path / "skbcapd.yaml", tmp_path / "captures"
    config.write_text("{}")
    with closing(Daemon(wire.near, directory, manager.environment, config)) as daemon, closing(Flood(wire)) as flood:
        config.write_text(ports(count))
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "settings reloaded" in daemon.said(), "the filter is in place")
        sent = flood.end()
        ended = daemon.stop(signal.SIGTERM)
    assert ended.exit_code == 0, ended.stderr
    found = numbers(directory, wire.near.device)
    now = f"{sent - len(found)} of {sent} packets lost, watchdog fed within {manager.longest_s:.1f} s"
    faults.compare("reload with hundreds of ports", 1, f"{count} ports: {now}")
    assert found == list(range(sent))
    assert manager.longest_s < FED_WITHIN_S
    assert "RELOADING=1" in manager.said


def test_a_silent_name_server_is_asked_once_and_delays_nothing(
    wire: Wire, manager: Manager, server: NameServer, tmp_path: Path
) -> None:
    """A reload whose filter has a host name fails if no name server answers; all packets are
    captured in the meantime.
    """
    config, directory = tmp_path / "skbcapd.yaml", tmp_path / "captures"
    config.write_text("{}")
    through = (*server.through, *manager.environment)
    with closing(Daemon(wire.near, directory, through, config)) as daemon, closing(Flood(wire)) as flood:
        config.write_text("filter: not host db.bank.example and not src host db.bank.example\n")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "no name server answered" in daemon.said(), "the reload is refused")
        sent = flood.end()
        ended = daemon.stop(signal.SIGTERM)
    assert ended.exit_code == 0, ended.stderr
    assert re.search(r"not reloaded: .*unknown host 'db\.bank\.example': no name server answered", ended.stderr)
    found = numbers(directory, wire.near.device)
    now = f"{sent - len(found)} of {sent} packets lost, watchdog fed within {manager.longest_s:.1f} s"
    faults.compare("reload, name server silent", 1, now)
    assert found == list(range(sent))
    assert server.asked() == ["db.bank.example"] * 2  # for its addresses of both versions of IP
    assert manager.longest_s < FED_WITHIN_S


def test_check_asks_for_each_name_once(wire: Wire, server: NameServer, tmp_path: Path) -> None:
    """`check` waits for all names together no longer than tcpdump for one, and reports those that
    were not answered.
    """
    config = tmp_path / "skbcapd.yaml"
    config.write_text(
        "filter: host a.example\nrules: [{filter: host b.example or a.example}, {filter: src c.example}]\n"
    )
    command = [*server.through, sys.executable, "-m", "skbcapd", "check", "--config", str(config)]
    start = time.monotonic()
    done = wire.near.namespace.do(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    took = time.monotonic() - start
    assert done.returncode == 2
    assert [re.findall(r"'(\w\.example)'", line) for line in done.stderr.splitlines() if "no name" in line] == [
        ["a.example"],
        ["a.example", "b.example"],
        ["c.example"],
    ]
    assert sorted(server.asked()) == sorted(["a.example", "b.example", "c.example"] * 2)
    faults.compare("check, name server silent", 1, f"{took:.0f} s")
    assert LOOKED_UP_WITHIN_S <= took < LOOKED_UP_WITHIN_S + 5 * SLOWNESS


@pytest.mark.parametrize("what", ["ports", "name"])
def test_a_reload_does_not_delay_the_end(
    what: str, wire: Wire, manager: Manager, server: NameServer, tmp_path: Path
) -> None:
    """SIGTERM while a reload compiles for half a minute, or waits for a name server, ends the
    capture at once.
    """
    config, directory = tmp_path / "skbcapd.yaml", tmp_path / "captures"
    config.write_text("{}")
    through = (*server.through, *manager.environment)
    with closing(Daemon(wire.near, directory, through, config)) as daemon, closing(Flood(wire)) as flood:
        config.write_text(ports(330) if what == "ports" else "filter: host db.bank.example\n")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "RELOADING=1" in manager.said, "the reload has begun")
        sent = flood.end()
        start = time.monotonic()
        ended = daemon.stop(signal.SIGTERM)
        took = time.monotonic() - start
    assert ended.exit_code == 0, ended.stderr
    assert "reloaded" not in ended.stderr
    if what == "ports":
        faults.compare("SIGTERM while 330 ports are compiled", 1, f"obeyed after {took:.1f} s")
    assert took < ENDS_WITHIN_S
    assert numbers(directory, wire.near.device) == list(range(sent))


def test_commands_for_a_daemon_need_no_filter(wire: Wire, server: NameServer, tmp_path: Path) -> None:
    """`status` and `dump` read only what they need of a config: they ask no name server, and other
    keys can be wrong.
    """
    config, directory, control = tmp_path / "skbcapd.yaml", tmp_path / "captures", tmp_path / "control"
    files = f"files: {{mode: ring, directory: {directory}, keep_free: 0}}\ncontrol: {{socket: {control}}}\n"
    config.write_text(files)
    settings = {"control__socket": str(control), "files__mode": "ring", "files__keep_free": "0"}
    with closing(Daemon(wire.near, directory, (), config, **settings)):
        config.write_text(
            f"{files}filter: host db.bank.example\nrules: [{{filter: src c.example}}]\nsnaplen: x\nnew: 1\n"
        )
        took = []
        for command, said in (("status", ""), ("dump", r"dumped \d+ packets .*\(trigger: command\)\n")):
            words = [*server.through, sys.executable, "-m", "skbcapd", command, "--config", str(config)]
            begun = time.monotonic()
            done = wire.near.namespace.do(
                subprocess.run, words, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
            )
            took.append(time.monotonic() - begun)
            assert done.returncode == 0
            assert re.fullmatch(said, done.stderr)
    faults.compare("status and dump, name server silent", 1, f"{max(took):.1f} s")
    assert server.asked() == []
    assert max(took) < LOOKED_UP_WITHIN_S


def test_a_dump_below_keep_free_is_refused_at_once(wire: Wire, tmp_path: Path) -> None:
    """`skbcapd dump` says at once why there is no dump, and its exit code is 1."""
    directory, control = tmp_path / "captures", tmp_path / "control"
    sets = [f"files.directory={directory}", f"control.socket={control}", "files.mode=ring"]
    settings = {"control__socket": str(control), "files__mode": "ring", "files__keep_free": "1024GiB"}
    with closing(Daemon(wire.near, directory, **settings)):
        words = [sys.executable, "-m", "skbcapd", "dump", *(word for text in sets for word in ("--set", text))]
        begun = time.monotonic()
        done = wire.near.namespace.do(
            subprocess.run, words, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        took = time.monotonic() - begun
    faults.compare(
        "dump, free space below keep_free", 1, f"exit code {done.returncode} after {took:.1f} s, with the reason"
    )
    assert done.returncode == 1
    assert "free space is below files.keep_free; the packets stay in memory" in done.stderr
    assert took < 5.0 * SLOWNESS
