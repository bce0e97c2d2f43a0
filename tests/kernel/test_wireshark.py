"""Live capture in Wireshark: through a pipe, and as an interface that tshark finds and starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.kernel.capture import ROOT, Capture
from tests.kernel.comparison import Marker
from tests.kernel.namespace import Wire
from tests.support.deadline import DEADLINE_S, until

SCRIPTS = Path(sys.executable).parent
FIELDS = ("frame.interface_name", "skbcapd.tgid", "skbcapd.pid", "skbcapd.via", "data.data")
COLUMNS = ("-n", "-l", "-T", "fields", *(part for field in FIELDS for part in ("-e", field)))
# What lies in the tree is put where it would be installed, for this child alone: tshark does not let root choose
# another place for extcap programs (WIRESHARK_EXTCAP_DIR), and that of Debian 13 runs no other Lua script for root.
INSTALLED = f"""
folder() {{
    tshark -G folders 2>/dev/null | sed -n "s/^\\(Global \\)*$1:[[:space:]]*//p"
}}
extcap=$(folder '[Ee]xtcap path') plugins=$(folder 'Lua Plugins')
mount --bind '{ROOT}/wireshark/extcap' "$extcap"
mount --bind '{ROOT}/wireshark' "$plugins"
exec "$@"
"""
COUNT = 23


@pytest.fixture
def marker(wire: Wire) -> Iterator[Marker]:
    """A sender of numbered frames at the near end (this process)."""
    with closing(Marker(wire.near.namespace, wire.near.device)) as made:
        yield made


class Shark:
    """A tshark at the near end, in its own session and without settings; its output is in a file."""

    def __init__(self, wire: Wire, directory: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> None:
        self.output = directory / "stdout"
        with self.output.open("wb") as stdout:
            self.process = wire.near.namespace.do(
                subprocess.Popen,
                ["unshare", "--mount", "sh", "-euc", INSTALLED, "sh", "tshark", *arguments],
                env=os.environ | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "HOME": "/nonexistent"},
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )

    @property
    def rows(self) -> list[list[str]]:
        """The complete lines that it has printed so far."""
        return [line.split("\t") for line in self.output.read_text().split("\n")[:-1]]

    @property
    def children(self) -> list[int]:
        """It and the processes that it has started, if they still run."""
        listed = subprocess.run(
            ["ps", "-o", "pid=,stat=", "-s", str(self.process.pid)], capture_output=True, text=True, check=False
        )
        pairs = (line.split() for line in listed.stdout.splitlines())
        return [int(pid) for pid, state in pairs if not state.startswith("Z")]

    def end(self) -> str:
        """Wait for its end, and for that of all processes that it started; returns stderr."""
        _, stderr = self.process.communicate(timeout=DEADLINE_S)
        until(lambda: not self.children, "nothing that tshark started is left")
        return stderr.decode()

    def close(self) -> None:
        """Kill what still runs."""
        for child in self.children:
            os.kill(child, signal.SIGKILL)
        self.process.communicate()


@contextmanager
def shark(wire: Wire, directory: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> Iterator[Shark]:
    """A tshark that is killed at the end, with all its children."""
    with closing(Shark(wire, directory, *arguments, stdin=stdin)) as made:
        yield made


def expected(wire: Wire, frame: bytes) -> list[str]:
    """The expected line of tshark for a marker frame."""
    tgid = str(os.getpid())
    return [wire.near.device, tgid, tgid, "current", frame[14:].hex()]


def test_a_pipe_shows_packets_while_they_come(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """`skbcapd capture -w - | tshark -r -` shows each packet with its process before the next one
    is sent.
    """
    with closing(Capture(wire.near.namespace, "-i", wire.near.device, "-w", "-")) as capture:
        assert capture.process.stdout is not None
        pipe = capture.process.stdout.fileno()
        with shark(wire, tmp_path, "-r", "-", *COLUMNS, stdin=pipe) as reader:
            for number in range(1, COUNT + 1):
                marker.send()
                until(lambda count=number: len(reader.rows) == count, f"tshark shows packet {number}")  # type: ignore[misc]
            capture.process.send_signal(signal.SIGINT)
            stderr = reader.end()
        assert capture.process.wait(DEADLINE_S) == 0
    assert reader.rows == [expected(wire, frame) for frame in marker.sent]
    assert "tshark:" not in stderr


def test_tshark_lists_the_interface(wire: Wire, tmp_path: Path) -> None:
    """`tshark -D` has skbcapd, and `-L` its link type, without an error of the protocol."""
    for argument, text in (("-D", "skbcapd (Packets with process names)"), ("-L", "EN10MB")):
        arguments = ("-D",) if argument == "-D" else ("-i", "skbcapd", "-L")
        with shark(wire, tmp_path, *arguments) as lister:
            stderr = lister.end()
        assert text in lister.output.read_text()
        assert not [line for line in stderr.splitlines() if "unning as user" not in line]
        assert "invalid" not in lister.output.read_text()


def test_tshark_captures_from_the_interface(wire: Wire, marker: Marker, tmp_path: Path) -> None:
    """`tshark -i skbcapd` with our options and a selector shows all packets from the first on, and leaves no
    process running.
    """
    chosen = {"interfaces": wire.near.device, "directions": "out", "pid": os.getpid()}
    options = [word for key, value in chosen.items() for word in ("-o", f"extcap.skbcapd.{key}:{value}")]
    with shark(wire, tmp_path, "-i", "skbcapd", *options, *COLUMNS) as reader:

        def shown() -> bool:
            marker.send()
            return len(reader.rows) >= COUNT

        until(shown, f"tshark shows {COUNT} packets")
        reader.process.send_signal(signal.SIGINT)
        stderr = reader.end()
    rows = reader.rows
    first = [frame[14:].hex() for frame in marker.sent].index(rows[0][-1])
    assert rows == [expected(wire, frame) for frame in marker.sent[first : first + len(rows)]]
    assert "Error" not in stderr


@pytest.mark.parametrize("option", ["extcap.skbcapd.snaplen:7", "extcap.skbcapd.buffersize:lots"])
def test_tshark_ends_on_errors(option: str, wire: Wire, tmp_path: Path) -> None:
    """A wrong setting ends tshark at once. tshark 4.0 does not always print our message."""
    with shark(wire, tmp_path, "-i", "skbcapd", "-o", option) as reader:
        stderr = reader.end()
    assert reader.process.returncode != 0 or "0 packets captured" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--snaplen", "7"), 'snaplen: found "7", expected'),
        (("--buffer-size", "lots"), 'buffer.size: found "lots", expected'),
    ],
)
def test_the_extcap_reports_errors(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """Started as by Wireshark, the extcap program prints the error, and ends with 2."""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)  # without waiting for a writer
    command = [sys.executable, "-m", "skbcapd", "extcap", "--extcap-interface", "skbcapd", "--capture"]
    with subprocess.Popen(
        [*command, "--fifo", str(tmp_path / "fifo"), *options], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        _, stderr = process.communicate(timeout=DEADLINE_S)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert process.returncode == 2
    assert message in stderr
    assert "Traceback" not in stderr
