"""Files of one capture in a directory, and packets that a test hands over."""

from __future__ import annotations

from pathlib import Path

from skbcapd.kernel.segments import Cut, read_local
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.interface import Statistics
from skbcapd.output.naming import CURRENT
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.series import State
from skbcapd.output.triggers import Limits
from skbcapd.pcapng.comment import label
from skbcapd.pcapng.interface import Interface
from tests.support.blocks import packets
from tests.support.deadline import until
from tests.support.judges import judge
from tests.support.writer import cut, packet

LO = Interface(b"lo", "", 1, 0, None, None, None)
STAMP = label([("comm", b"x")], 2, 7, 7)


class Clock:
    """Time as the test has it."""

    now = 1_000_000.5

    def __call__(self) -> float:
        """Seconds since 1970."""
        return self.now


class Rig:
    """An output in a directory."""

    def __init__(self, path: Path, **limits: int) -> None:
        self.clock = Clock()
        self.path = path
        self.directory = CaptureDirectory(path)
        self.output = RotatingOutput(self.directory, Limits(**limits), clock=self.clock)
        self.output.add_interface(LO)
        self.statistics: list[Statistics] = []

    def snapshot(self) -> list[Statistics]:
        """What became of the packets, as the test has it."""
        return self.statistics

    def resume(self) -> None:
        """Have it write again, as a second later."""

        def is_writing() -> bool:
            self.output._outage.retry_at = 0.0
            self.output.tick(self.snapshot)
            return self.output.state is State.WRITING

        until(is_writing, "it writes again")

    def finished(self) -> list[Path]:
        """Files with their names, oldest first, each as the judges want it."""
        self.output.collect_finished(wait=True)
        found = sorted(path for path in self.path.iterdir() if path.suffix == ".pcapng" and path.name != CURRENT)
        for path in found:
            judge(path, "capinfos")
        return found

    def frames(self) -> list[list[bytes]]:
        """The frames of each finished file."""
        return [[found.data for found in packets(path.read_bytes())] for path in self.finished()]


def small(number: int) -> bytes:
    """A ready packet block of a known frame."""
    return packet(0, number.to_bytes(4, "big"), STAMP.options)


def local(number: int) -> Cut:
    """A packet that Python writes."""
    found = read_local(memoryview(cut(0, number.to_bytes(4, "big"), 2, 4)), 0)
    assert isinstance(found, Cut)
    return found
