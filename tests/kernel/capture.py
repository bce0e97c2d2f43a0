"""Runs `skbcapd capture` as a user does, in a namespace, and reads its output.

In: an interface and options. Out: the packets, the totals and the exit code. Nothing of the package
under test is imported: the command is started as a child, watched through stderr, stopped by a
signal, and its file is read by the tests' own reader. A child that does not end in time is killed,
and the test fails.
"""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.namespace import End, Namespace
from tests.support.blocks import Packet, packets
from tests.support.deadline import DEADLINE_S
from tests.support.judges import judge, rows

ROOT = Path(__file__).parents[2]
ATTACH = os.environ.get("SKBCAPD_ATTACH", "auto")  # kprobe, tracepoint or auto: the setting `attach` of the run

_is_emulated = "SKBCAPD_SLOWNESS" in os.environ
_judged: set[bytes] = set()  # digests of files
_NOT_LOST = ("captured", "filtered", "on other interfaces", "left out, because their process is not known")
_MISSED = "missed while the kernel program was already running"
_TOTAL = re.compile(r"(\d+) packets? (.+)")


@dataclass(frozen=True)
class Ended:
    """How a capture ended."""

    exit_code: int
    stdout: bytes
    stderr: str

    @property
    def totals(self) -> dict[str, int]:
        """The closing lines, such as `{"captured": 23, "dropped by kernel": 0}`."""
        found = map(_TOTAL.fullmatch, self.stderr.splitlines())
        return {line[2]: int(line[1]) for line in found if line}

    @property
    def missed(self) -> int:
        """The number of packets that a kprobe could not see: of a softirq during another program, or during a
        bpf(2) call. They are rare, and most are of the system, not of the test (docs/limitations.md).
        """
        return self.totals.get(_MISSED, 0) if ATTACH == "kprobe" else 0

    @property
    def lost(self) -> int:
        """The number of packets that were not written although they should be, for any cause but a kprobe's."""
        return sum(count for cause, count in self.totals.items() if cause not in _NOT_LOST) - self.missed


class Capture:
    """A running `skbcapd capture` that captures the next frame; `close` kills it if it still runs.

    Args:
        namespace: namespace of the process, and of its `-i` names.
        arguments: of the `capture` command.
        through: a command that starts the command given to it.
        running: what it runs, after `--`.
        settings: as `--set KEY=VALUE` takes them.
    """

    command = "capture"
    is_everywhere = False
    """Whether the test is about all interfaces of the machine. Any other test would see other
    traffic.
    """

    def __init__(
        self,
        namespace: Namespace,
        *arguments: str,
        through: Sequence[str] = (),
        running: Sequence[str] = (),
        **settings: str,
    ) -> None:
        chosen = {"attach": ATTACH} | settings
        named = "namespaces" in chosen or (("-i" in arguments or "interfaces" in chosen) and "any" not in arguments)
        assert named or self.is_everywhere, "name the test's own interfaces, or its namespaces"
        words = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
        words += ["--", *running] if running else []
        self.process = namespace.do(
            subprocess.Popen,
            [*through, sys.executable, "-m", "skbcapd", self.command, *arguments, *words],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if not key.startswith("SUDO_")},
            stdin=subprocess.PIPE if running else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._stderr = b""
        try:
            self._wait_until_capturing()
        except BaseException:
            self.close()
            raise

    def said(self) -> str:
        """Its output on stderr so far."""
        assert self.process.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while selector.select(0) and (more := os.read(self.process.stderr.fileno(), 1 << 16)):
                self._stderr += more
        return self._stderr.decode(errors="replace")

    def close(self) -> None:
        """Kill what still runs."""
        self.process.kill()
        self.process.communicate()

    def stop(self, number: signal.Signals = signal.SIGINT) -> Ended:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> Ended:
        """Wait until the capture has ended by itself.

        Raises:
            subprocess.TimeoutExpired: it did not.
        """
        stdout, stderr = self.process.communicate(timeout=DEADLINE_S)
        return Ended(self.process.returncode, stdout, (self._stderr + stderr).decode())

    def _wait_until_capturing(self) -> None:
        """Read stderr until packets are captured."""
        assert self.process.stderr is not None
        end = time.monotonic() + DEADLINE_S
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stderr, selectors.EVENT_READ)
            while not re.search(rb"^(skbcapd: )?capturing on .*\n", self._stderr, re.MULTILINE):
                said = self._stderr.decode(errors="replace")
                assert selector.select(end - time.monotonic()), f"not capturing within {DEADLINE_S:.0f} s: {said}"
                more = os.read(self.process.stderr.fileno(), 1 << 16)
                assert more, f"ended before it captured: {said}"
                self._stderr += more


class CaptureEverywhere(Capture):
    """A capture on all interfaces of all namespaces, with other traffic on them."""

    is_everywhere = True


class Daemon(Capture):
    """A running `skbcapd run` with the settings of the reference file, but for those given. It begins no new file
    at a full hour.

    Args:
        end: whose device it captures on.
        directory: where it writes.
        config: another config file.
        settings: more of them; a key's dot is written as two underscores.
    """

    command = "run"

    def __init__(
        self,
        end: End,
        directory: Path,
        through: Sequence[str] = (),
        config: Path | str = ROOT / "etc" / "skbcapd.yaml",
        **settings: str,
    ) -> None:
        chosen = {
            "interfaces": end.device,
            "files.directory": str(directory),
            "files.every": "0",
            "control.socket": "none",
        }
        chosen |= {key.replace("__", "."): value for key, value in settings.items()}
        super().__init__(end.namespace, "--config", str(config), through=through, **chosen)


def with_value(module: str, name: str, value: float) -> tuple[str, ...]:
    """For `through`: starts skbcapd with another value of a constant of a module."""
    program = (
        f"import runpy, sys, {module} as changed; changed.{name} = {value}; "
        "sys.argv = sys.argv[3:]; runpy.run_module('skbcapd', run_name='__main__')"
    )
    return (sys.executable, "-c", program)


def read_so_far(path: Path) -> list[Packet]:
    """Read the complete packets of a file that is being written."""
    data, end = path.read_bytes(), 0
    while end + 8 <= len(data) and (length := int.from_bytes(data[end + 4 : end + 8], "little")) <= len(data) - end:
        end += length
    return packets(data[:end])


def read(path: Path) -> list[Packet]:
    """Read a finished file, after tshark and capinfos have read the same packets without a warning.

    Every file that a kernel test makes goes through here; a file that was judged before is not
    judged again. On an emulated machine the judges see the first file only: they take most of a
    minute for each, and see the same blocks on the machine outside.
    """
    data = path.read_bytes()
    found, digest = packets(data), hashlib.sha256(data).digest()
    if digest in _judged or (_is_emulated and _judged):
        return found
    _judged.add(digest)
    ours = [[packet.interface, str(len(packet.data)), str(packet.original_len), packet.comment] for packet in found]
    judge(path, "capinfos")
    # A process block has no interface: older versions of tshark show it as a record.
    fields = ("frame.interface_name", "frame.cap_len", "frame.len", "frame.comment")
    theirs = rows(path, *fields, where="frame.interface_name")
    # tshark doubles a backslash, and concatenates several comments.
    assert [[*row[:3], row[3].replace("\\\\", "\\")] for row in theirs] == ours
    return found
