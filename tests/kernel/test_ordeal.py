"""One daemon under load, with all faults together: it runs, it answers, and each packet has one
outcome.

A sender keeps its pace from the first fault to the last. Meanwhile reloads are bad or take long, a
name server is silent, the disk is full, slow and frozen, the directory fills with files, and the
log cannot be written. At each status the sum is right and no older than the loop's turn may be; the
service manager notes when the watchdog is fed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.capture import Daemon
from tests.kernel.namespace import Wire
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.kernel.test_disk import frozen, status
from tests.kernel.test_reload_faults import FED_WITHIN_S, SLOWNESS, Manager, NameServer
from tests.support import faults
from tests.support.blocks import packets
from tests.support.deadline import DEADLINE_S, until

pytestmark = pytest.mark.faults

RATE = 20_000  # packets per second; a slow machine sends fewer
SIZE = 100
FILES = 20_000
GOES_ON = 4_001  # packets seen during a fault that has no end of its own
SEEN_WITHIN_S = 3.0 * SLOWNESS  # what was sent so long ago is in the status
FLOOD = f"udp dst port {DISCARD_PORT}"
PORTS = " or ".join(f"src port {number}" for number in range(1001, 1201))
SENDER = """
import mmap, select, socket, sys, time
address, port, rate, size = sys.argv[1], *map(int, sys.argv[2:5])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, open(sys.argv[5], "r+b") as file:
    shared, rest = mmap.mmap(file.fileno(), 8), bytes(size - 8)
    sender.connect((address, port))
    number, per_turn = 0, rate // 500
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0, due - time.monotonic()))[0]:
        for number in range(number, number + per_turn):
            sender.send(number.to_bytes(8, "big") + rest)
        number += 1
        shared[:] = number.to_bytes(8, "little")
        due = max(due + 0.002, time.monotonic() - 0.1)
print(number)
"""
MAKE_FILES = """
import os, sys
for number in range(1, int(sys.argv[2]) + 1):
    name = f"{sys.argv[1]}/skbcapd-strange-20261101T000000.000Z-{number:06}.pcapng"
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o640))
"""


class PacedFlood:
    """Datagrams with numbers at a constant rate, until it is stopped."""

    def __init__(self, wire: Wire, counter: Path) -> None:
        counter.write_bytes(bytes(8))
        with counter.open("rb") as file:
            self._shared = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
        words = [wire.far.ipv4, *map(str, (DISCARD_PORT, RATE, SIZE, counter))]
        self._started_at = time.monotonic()
        self._process = wire.near.namespace.do(
            subprocess.Popen,
            [sys.executable, "-E", "-s", "-S", "-c", SENDER, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.rate = 0.0

    @property
    def sent(self) -> int:
        """The number of datagrams sent so far, at least."""
        return int.from_bytes(self._shared[:], "little")

    def end(self) -> int:
        """The number of datagrams sent."""
        assert self._process.poll() is None, "the sender has kept its pace until now"
        said, _ = self._process.communicate("\n", timeout=DEADLINE_S)
        self.rate = int(said) / (time.monotonic() - self._started_at)
        return int(said)

    def close(self) -> None:
        """Kill it if it still runs."""
        self._process.kill()
        self._process.communicate()
        self._shared.close()


def sent_here(found: dict[str, Any]) -> int:
    """The datagrams of the sender that a status includes: `seen` has those that arrive on the other end, too."""
    packets = found["packets"]
    count: int = packets["seen"] - packets["other_interfaces"] - packets["filtered"] - packets["self_test"]
    return count


class Observer:
    """Requests the status repeatedly, and compares each answer with the number of sent packets."""

    def __init__(self, daemon: Daemon, control: Path, flood: PacedFlood) -> None:
        self.answers = 0
        self._daemon, self._control, self._flood = daemon, control, flood
        self._sent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._seen = 0

    def status(self) -> dict[str, Any]:
        """The status: its sum is right, it increases, and it includes the packets sent some seconds
        ago.
        """
        assert self._daemon.process.poll() is None, "the daemon lives"
        now = time.monotonic()
        self._sent.append((now, self._flood.sent))
        while len(self._sent) > 1 and self._sent[1][0] < now - SEEN_WITHIN_S:
            self._sent.popleft()
        found = status(self._control)
        seen: int = found["packets"]["seen"]
        assert seen >= self._seen
        if self._sent[0][0] < now - SEEN_WITHIN_S:
            assert sent_here(found) >= self._sent[0][1]
        self._seen = seen
        self.answers += 1
        return found

    def until(self, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The first status for which the condition is true."""
        found: dict[str, Any] = {}

        def holds() -> bool:
            found.update(self.status())
            return condition(found)

        until(holds, what)
        return found

    def until_said(self, text: str, count: int = 1) -> None:
        """Repeat until the daemon has logged a text so often."""
        self.until(lambda _: self._daemon.said().count(text) >= count, text)

    def goes_on(self) -> None:
        """Repeat until some thousand more packets are seen."""
        begin = self.status()["packets"]["seen"]
        self.until(lambda found: found["packets"]["seen"] >= begin + GOES_ON, "packets are seen")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 MiB, with inodes for all the files."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-N", str(2 * FILES), str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextmanager
def full(place: Path) -> Iterator[None]:
    """A file system without a free block."""
    ballast = place / "ballast"
    with ballast.open("wb") as file:
        size, end = 64 << 20, 0
        while size >= 4096:
            try:
                os.posix_fallocate(file.fileno(), end, size)
                end += size
            except OSError:
                size //= 2
    try:
        yield
    finally:
        ballast.unlink()


def fill_pipe(pid: int) -> None:
    """Fill the pipe that is the log of a process."""
    descriptor = os.open(f"/proc/{pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 4096)
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while os.write(descriptor, bytes(size)):
                    pass
    finally:
        os.close(descriptor)


def outcomes(directory: Path, device: str) -> Counter[int]:
    """How often the datagram of each number is in the files."""
    files = sorted(
        entry for entry in directory.glob("*.pcapng") if not entry.is_symlink() and "-strange-" not in str(entry)
    )
    return Counter(
        int.from_bytes(packet.data[42:50], "big")
        for file in files
        for packet in packets(file.read_bytes())
        if packet.direction == "out" and packet.interface == device and len(packet.data) == SIZE + 42
    )


class Ordeal:
    """A daemon, and what happens to it; each method returns when the daemon is through with that.

    Args:
        daemon: under load.
        observer: of it.
        config: its config file.
        disk: that it writes to.
    """

    def __init__(self, daemon: Daemon, observer: Observer, config: Path, disk: Path) -> None:
        self._daemon, self._observer, self._config, self._disk = daemon, observer, config, disk

    def reload(self, text: str) -> None:
        """Have it read another config file."""
        self._config.write_text(text)
        self._daemon.process.send_signal(signal.SIGHUP)

    def bad_reloads(self) -> None:
        """Reloads that are refused at once."""
        for number, bad in enumerate(('filter: "udp\n', "no_such_key: 1\n", 'filter: "udp port"\n'), 1):
            self.reload(bad)
            self._observer.until_said("not reloaded", number)

    def bad_disk(self) -> None:
        """While a name server is asked that never answers, the disk is full, then slow, then
        frozen.
        """
        observer, disk = self._observer, self._disk
        self.reload(f'filter: "{FLOOD} or host db.bank.example"\n')
        with full(disk):
            observer.until(lambda found: found["dropped"]["output"] > 0, "packets are dropped for the full disk")
            observer.goes_on()
        observer.until_said("writing again")
        for _ in range(5):
            with frozen(disk):
                observer.goes_on()
            observer.goes_on()
        with frozen(disk):
            before = sum(observer.status()["dropped"].values())
            observer.until(
                lambda found: sum(found["dropped"].values()) > before, "packets are dropped for the frozen disk"
            )
            observer.goes_on()
        observer.until_said("no name server answered")

    def full_directory(self, directory: Path) -> None:
        """While a filter of 200 ports is compiled, the directory fills with files."""
        self.reload(f'filter: "{FLOOD} or {PORTS}"\n')
        words = [sys.executable, "-E", "-s", "-S", "-c", MAKE_FILES, str(directory), str(FILES)]
        with subprocess.Popen(words) as maker:
            self._observer.until(lambda _: maker.poll() is not None, "the directory is full of files")
        assert maker.returncode == 0
        self._observer.goes_on()
        self._observer.until_said("settings reloaded")

    def bad_log(self) -> None:
        """First nobody reads the log, then its reader is gone. Each bad reload is a line."""
        fill_pipe(self._daemon.process.pid)
        self.reload("no_such_key: 1\n")
        found = self._observer.until(lambda found: found["log"]["dropped"] > 0, "a line is dropped")
        unread = found["log"]["dropped"]
        assert self._daemon.process.stderr is not None
        self._daemon.process.stderr.close()
        self.reload("no_such_key: 2\n")
        self._observer.until(lambda found: found["log"]["dropped"] > unread, "another line is dropped")
        self._observer.goes_on()


def test_all_faults_together(wire: Wire, disk: Path, tmp_path: Path) -> None:
    """Through all faults the daemon runs, answers within a second, and each packet has an outcome."""
    config, directory, control = tmp_path / "skbcapd.yaml", disk / "captures", tmp_path / "control"
    settings = {
        "control__socket": str(control),
        "buffer__size": "8MiB",
        "files__size": "16MiB",
        "files__keep_free": "0",
        "files__keep_size": "0",
    }
    config.write_text(f'filter: "{FLOOD}"\n')

    with (
        closing(Sink(wire.far.namespace)),
        closing(Manager(tmp_path / "notify")) as manager,
        closing(NameServer(wire, tmp_path)) as server,
        closing(Daemon(wire.near, directory, (*server.through, *manager.environment), config, **settings)) as daemon,
        closing(PacedFlood(wire, tmp_path / "counter")) as flood,
    ):
        observer = Observer(daemon, control, flood)
        ordeal = Ordeal(daemon, observer, config, disk)
        ordeal.bad_reloads()
        ordeal.bad_disk()
        ordeal.full_directory(directory)
        ordeal.bad_log()
        sent = flood.end()
        found = observer.until(
            lambda found: not found["packets"]["pending"] and sent_here(found) >= sent, "all have an outcome"
        )
        daemon.process.send_signal(signal.SIGTERM)
        exit_code = daemon.process.wait(DEADLINE_S)

    of = outcomes(directory, wire.near.device)
    counted, dropped = found["packets"], found["dropped"]
    without = sent - counted["written"] - sum(dropped.values())
    longest_s = manager.longest_s
    faults.compare(
        "all at once",
        1,
        f"{flood.rate:.0f} packets/s: exit code {exit_code}, seen = sum {observer.answers} times, watchdog fed within "
        f"{longest_s:.1f} s; {sent} sent, {len(of)} in files, {sum(dropped.values())} dropped, {without} neither",
    )
    assert exit_code == 0
    assert sent_here(found) == sent
    assert without == 0
    assert counted["written"] == len(of)
    assert set(of.values()) == {1}
    assert set(of) <= set(range(sent))
    assert dropped["output"] > 0
    assert longest_s < FED_WITHIN_S
