"""The ring buffer: what stays in memory, and dumps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.attribution.processes import Process
from skbcapd.kernel.segments import Upcall, read_local
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.interface import Snapshot, Statistics
from skbcapd.output.ring import ASKED_PAUSE_S, Memory, Recorder
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.triggers import Limits
from skbcapd.pcapng.comment import label
from skbcapd.pcapng.interface import Interface
from tests.support.deadline import until
from tests.support.judges import facts, judge, rows
from tests.support.writer import block, packet, upcall

NEAR = Interface(b"near0", "", 1, 262144, None, None, None)
FRAME = bytes(60)


class Recording:
    """A recorder with a directory."""

    def __init__(self, path: Path, size: int = 8 << 20, limits: Limits | None = None) -> None:
        self.path = path
        self.files = RotatingOutput(CaptureDirectory(path), limits or Limits(), on_demand=True)
        self.now = 1e6
        self.recorder = Recorder(self.files, size, clock=lambda: self.now)
        self.recorder.add_interface(NEAR)

    def put(self, *numbers: int) -> None:
        """Packets with a label whose frames contain these numbers."""
        for number in numbers:
            self.recorder.write_blocks(memoryview(packet(0, number.to_bytes(60, "big"))), tuple)

    def dump(self, snapshot: Snapshot = tuple, why: str = "signal") -> None:
        """Make a dump, to its end."""
        self.recorder.dump(snapshot, why)
        self.wait()

    def wait(self) -> None:
        """Wait until no dump is being written."""
        until(lambda: (self.recorder.flush(tuple), not self.recorder.has_pending_work)[1], "the dump is written")

    @property
    def dumps(self) -> list[Path]:
        """The files, oldest first."""
        if self.recorder._dump is not None:
            self.wait()
        return sorted(entry for entry in self.path.glob("skbcapd-*") if not entry.is_symlink())


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    """A recorder of 8 MiB."""
    made = Recording(tmp_path)
    yield made
    made.recorder.close()


def numbers(path: Path) -> list[int]:
    """The numbers in the frames of a file, read by tshark."""
    judge(path, "capinfos")
    return [int(row[0].replace(":", ""), 16) for row in rows(path, "data.data")]


def put_upcall(recorder: Recorder, frame: bytes) -> None:
    """A packet that Python writes."""
    made = read_local(memoryview(upcall(frame)), 0)
    assert isinstance(made, Upcall)
    recorder.write_packet(made, 0, label([("comm", b"chronyd")], 0, 1058, 1059), tuple)


def taken(memory: Memory) -> bytes:
    """Everything in memory, which is empty afterwards."""
    memory.take()
    found = b""
    while memory.has_taken:
        found += memory.next()
    return found


@given(st.lists(st.integers(1, 5000), max_size=200), st.integers(5000, 300_000))
def test_memory_keeps_the_end(sizes: list[int], size: int) -> None:
    """Memory has the last blocks without a gap, never more than its size, and no part of a write."""
    memory = Memory(size)
    written = [bytes([index & 255]) * length for index, length in enumerate(sizes)]
    for blocks in written:
        memory.write(memoryview(blocks))
    kept = taken(memory)
    assert len(kept) <= size
    assert kept in [b"".join(written[start:]) for start in range(len(written) + 1)]
    assert not taken(memory)


def test_memory_is_used() -> None:
    """Small writes fill the memory except for one piece of 256 KiB."""
    memory = Memory(8 << 20)
    for _ in range(100_003):
        memory.write(bytes(104))
    assert (8 << 20) - (1 << 18) <= len(taken(memory)) <= 8 << 20


def test_a_dump_is_a_file_of_its_own(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """Each dump has the packets since the last one, its interface, and its statistics; the files
    are reported.
    """
    recording.put(3, 5)
    put_upcall(recording.recorder, FRAME)
    recording.dump(lambda: [Statistics(0, 1, received=17, accepted=13, lost=2, delivered=11)])
    recording.put(7)
    recording.dump(tuple, "a rule")

    first, second = recording.dumps
    assert rows(first, "frame.interface_name", "frame.comment") == [["near0", ""]] * 2 + [["near0", "comm=chronyd"]]
    assert rows(second, "frame.interface_name") == [["near0"]]
    assert ("Number of packets", "3") in facts(first)
    assert recording.recorder.dumped == 4
    assert caplog.messages == [
        f"dumped 3 packets from 1970-01-01T00:00:00.000Z to 1970-01-01T00:00:00.000Z to {first} (trigger: signal)",
        f"dumped 1 packets from 1970-01-01T00:00:00.000Z to 1970-01-01T00:00:00.000Z to {second} (trigger: a rule)",
    ]


def test_no_dump_no_file(recording: Recording) -> None:
    """Without a request there is no file; the rest is discarded at the end."""
    recording.put(*range(1009))
    recording.recorder.flush(tuple)
    recording.recorder.tick(tuple)
    recording.recorder.finish([])
    assert not recording.dumps
    assert recording.recorder.dumped == 0


def test_a_request_during_a_drain(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """A request during a drain gets the packets of that drain, too; of two requests the first one
    is named.
    """
    recording.put(1)
    recording.recorder.ask("rule 1")
    recording.recorder.ask("rule 2")
    recording.put(2)
    assert not recording.dumps
    recording.recorder.flush(tuple)
    recording.recorder.flush(tuple)
    (file,) = recording.dumps
    assert ("Number of packets", "2") in facts(file)
    assert [line.partition(" to /")[0] + line[-18:] for line in caplog.messages] == [
        "dumped 2 packets from 1970-01-01T00:00:00.000Z to 1970-01-01T00:00:00.000Z (trigger: rule 1)"
    ]


def test_many_matches_make_few_dumps(recording: Recording) -> None:
    """There is a pause between two dumps of rules; nothing is dropped, and a signal does not wait
    for the pause.
    """
    for number in (1, 2, 3):
        recording.put(number)
        recording.recorder.ask("rule 1")
        recording.recorder.flush(tuple)
    assert [numbers(file) for file in recording.dumps] == [[1]]
    recording.now += ASKED_PAUSE_S
    recording.recorder.tick(tuple)
    recording.put(4)
    recording.dump(tuple)
    assert [numbers(file) for file in recording.dumps] == [[1], [2, 3], [4]]


def test_a_request_at_the_end(recording: Recording) -> None:
    """A dump that was requested before the end is made at the end."""
    recording.put(1)
    recording.recorder.ask("rule 1")
    recording.recorder.finish([])
    assert len(recording.dumps) == 1


def test_a_dump_larger_than_a_file(tmp_path: Path) -> None:
    """A dump becomes several files if one would be too large; no packet is missing."""
    made = Recording(tmp_path, limits=Limits(size=1 << 20))
    made.put(*range(20_011))
    made.dump(tuple)
    made.recorder.close()
    files = made.dumps
    assert len(files) > 1
    assert all(file.stat().st_size < (1 << 20) + 4096 for file in files)
    counts = [int(dict(facts(file))["Number of packets"]) for file in files]
    assert sum(counts) == made.recorder.dumped == 20_011


def test_where_no_file_can_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Packets stay in memory while the directory is missing, and are in the dump after it."""
    away = tmp_path / "captures"
    made = Recording(away)
    made.put(1, 2)
    for entry in away.iterdir():
        entry.unlink()
    away.rmdir()
    away.touch()
    made.dump(tuple)
    assert made.recorder.dumped == 0
    assert str(away) in caplog.messages[0]
    away.unlink()
    made.dump(tuple)
    made.recorder.close()
    (file,) = made.dumps
    assert ("Number of packets", "2") in facts(file)
    assert made.recorder.dumped == 2


def test_processes_are_in_every_dump(recording: Recording) -> None:
    """A process that was described before the first dump is described in the second one, too."""
    recording.recorder.add_process(Process(1058, 0, b"chronyd", None, None, b"", b"", b"", b""))
    for _ in range(2):
        recording.put(1)
        recording.dump(tuple)
    assert all(b"chronyd" in file.read_bytes() for file in recording.dumps)


def test_other_blocks_do_not_count(recording: Recording) -> None:
    """Only packets are counted as written."""
    recording.recorder.write_blocks(memoryview(packet(0, FRAME) + block(0xBAD, 0, b"", b"")), tuple)
    recording.dump(tuple)
    assert recording.recorder.dumped == 1


def test_no_dump_below_keep_free(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """If the disk has less free space than keep_free, no dump is begun, one line is logged, and
    nothing is dropped.
    """
    keep = recording.files._directory.retention.keep
    recording.files._directory.retention.keep = replace(keep, free=1 << 60)
    recording.put(1, 2, 3)
    recording.recorder.dump(tuple, "rules[1]")
    assert recording.dumps == []
    why = f"{recording.path}: free space is below files.keep_free"
    assert caplog.messages == [f"no dump (trigger: rules[1]): {why}; the packets stay in memory"]
    assert recording.recorder.refused == (1, why)
    recording.files._directory.retention.keep = keep
    recording.dump()
    assert [numbers(path) for path in recording.dumps] == [[1, 2, 3]]
    assert recording.recorder.lost == 0
