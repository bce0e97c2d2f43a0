"""Reloads under load: no packet is dropped, whether or not the kernel program has to change."""

from __future__ import annotations

import itertools
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.kernel.capture import ATTACH, ROOT, read
from tests.kernel.namespace import Wire
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.support.amount import tries
from tests.support.blocks import packets
from tests.support.deadline import DEADLINE_S, until

RELOADS = tries(53, 9)
SENDER = """
import select, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.connect((sys.argv[1], int(sys.argv[2])))
    number = 0
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        for number in range(number, number + 7):
            sender.send(number.to_bytes(8, "big"))
        number += 1
print(number)
"""
# One after the other: another rule, another label, another filter for which the kernel program
# changes.
CONFIGS = (
    "rules: [{comm: nobody, action: drop}]",
    "rules: [{comm: nobody, snaplen: 64}]\ncomment: [comm, tgid]",
    "snaplen: 64",
    "dedup: first\ncomment: [tgid]",
    "filter: udp port 9\nrules: [{comm: nobody, filter: tcp}]",
    "rules: [{comm: python*, filter: greater 1}, {action: keep}]",
    "",
)


class Daemon:
    """A running `skbcapd run` with the config file of the test, at the near end of the wire."""

    def __init__(self, wire: Wire, config: Path, directory: Path) -> None:
        sets = [f"--set=files.directory={directory}", f"--set=attach={ATTACH}", "--set=control.socket=none"]
        sets += [f"--set=interfaces={wire.near.device}", "--set=files.every=0", "--set=files.flush=1s"]
        command = [sys.executable, "-m", "skbcapd", "run", "--config", str(config), *sets]
        self.process = wire.near.namespace.do(
            subprocess.Popen, command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.said = ""
        self.wait_for("capturing on", 1)

    def wait_for(self, what: str, times: int) -> None:
        """Read stderr until it has a text so often."""
        assert self.process.stderr is not None
        end = time.monotonic() + 3 * DEADLINE_S  # the compiler may have to wait for its turn
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while self.said.count(what) < times:
                assert selector.select(end - time.monotonic()), f"not {times} times {what!r}: {self.said}"
                more = os.read(self.process.stderr.fileno(), 1 << 16).decode()
                assert more, self.said
                self.said += more

    def close(self) -> None:
        """Kill it if it still runs."""
        self.process.kill()
        self.process.communicate()


def start_sender(wire: Wire) -> subprocess.Popen[str]:
    """Send numbered datagrams until a line on stdin; then it prints how many there were."""
    command = [sys.executable, "-E", "-s", "-S", "-c", SENDER, wire.far.ipv4, str(DISCARD_PORT)]
    return wire.near.namespace.do(subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_steady_sender_is_written_with_the_new_settings(wire: Wire, tmp_path: Path) -> None:
    """The packets of one thread, one after the other, which the program treats like the packet before: those after a
    reload have the new comment, and those after another one have no payload.
    """
    config, directory = tmp_path / "skbcapd.yaml", tmp_path / "captures"
    config.write_text("{}")
    directory.mkdir()
    with closing(Sink(wire.far.namespace)), closing(Daemon(wire, config, directory)) as daemon:
        sender = start_sender(wire)
        (file,) = (entry for entry in directory.glob("*.part") if not entry.is_symlink())

        def grows() -> None:
            size = file.stat().st_size
            until(lambda: file.stat().st_size > size, "packets are written")

        try:
            grows()
            for number, text in enumerate(("comment: [tgid]", "comment: [tgid]\npayload: none")):
                config.write_text(text)
                daemon.process.send_signal(signal.SIGHUP)
                daemon.wait_for("settings reloaded", number + 1)
                grows()
                grows()  # all of this was sent after the reload
        finally:
            sender.communicate("\n", timeout=DEADLINE_S)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.communicate(timeout=DEADLINE_S)
    found = [
        packet
        for packet in read(directory / file.name.removesuffix(".part"))
        if packet.direction == "out" and packet.data[36:38] == DISCARD_PORT.to_bytes(2, "big")
    ]
    seen = [(packet.comment.partition("=")[0], len(packet.data)) for packet in found]
    assert [key for key, _ in itertools.groupby(seen)] == [("comm", 50), ("tgid", 50), ("tgid", 42)]


@pytest.mark.many
def test_reloads_lose_nothing(wire: Wire, tmp_path: Path) -> None:
    """Under load, over all reloads, each datagram is in the file once, in order; a bad file changes
    nothing.
    """
    config, directory = tmp_path / "skbcapd.yaml", tmp_path / "captures"
    config.write_text("{}")
    directory.mkdir()
    with closing(Sink(wire.far.namespace)), closing(Daemon(wire, config, directory)) as daemon:
        sender = start_sender(wire)
        try:
            for number in range(RELOADS):
                if number % 7 == 3:
                    config.write_text("filter: tcp prot\nsnaplenn: 5\n")
                    refused = daemon.said.count("not reloaded")
                    daemon.process.send_signal(signal.SIGHUP)
                    daemon.wait_for("not reloaded", refused + 2)
                config.write_text(CONFIGS[number % len(CONFIGS)] or "{}")
                daemon.process.send_signal(signal.SIGHUP)
                daemon.wait_for("settings reloaded", number + 1)
        finally:
            said, _ = sender.communicate("\n", timeout=DEADLINE_S)
        daemon.process.send_signal(signal.SIGTERM)
        _, rest = daemon.process.communicate(timeout=DEADLINE_S)
    sent = int(said)
    [file] = (entry for entry in directory.glob("*.pcapng") if not entry.is_symlink())
    found = [
        int.from_bytes(packet.data[42:50], "big")
        for packet in packets(file.read_bytes())
        if packet.direction == "out" and packet.interface == wire.near.device and len(packet.data) == 50
        if packet.data[36:38] == DISCARD_PORT.to_bytes(2, "big")
    ]

    assert daemon.process.returncode == 0, rest.decode()
    assert "Traceback" not in daemon.said
    assert sent > RELOADS
    assert not [number for number, times in Counter(found).items() if times > 1]
    assert found == list(range(sent))
    assert re.search(r"^0 packets dropped by kernel$", rest.decode(), re.MULTILINE)
