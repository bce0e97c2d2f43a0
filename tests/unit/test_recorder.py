"""The ring buffer: what stays in memory, and dumps."""

from __future__ import annotations

import errno
import math
import os
import re
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.attribution.processes import Process
from skbcapd.kernel.segments import Upcall, read_local
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.dump import AFTER_MAX_S, ORDERS_MAX
from skbcapd.output.interface import Snapshot, Statistics
from skbcapd.output.memory import GRANULE_S, Memory
from skbcapd.output.ring import ASKED_PAUSE_S, Recorder
from skbcapd.output.rotation import RotatingOutput
from skbcapd.output.triggers import Limits
from skbcapd.pcapng.blocks import walk
from skbcapd.pcapng.comment import label
from skbcapd.pcapng.interface import Interface
from tests.support.deadline import until
from tests.support.judges import facts, judge, rows
from tests.support.writer import block, packet, upcall

NEAR = Interface(b"near0", "", 1, 262144, None, None, None)
FRAME = bytes(60)


class Recording:
    """A recorder with a directory."""

    def __init__(self, path: Path, size: int = 8 << 20, limits: Limits | None = None, time_s: int = 0) -> None:
        self.path = path
        self.files = RotatingOutput(CaptureDirectory(path), limits or Limits(), on_demand=True)
        self.now = 1e6
        self.recorder = Recorder(self.files, size, time_s, clock=lambda: self.now)
        self.recorder.add_interface(NEAR)

    def pass_s(self, seconds: float) -> None:
        """Time passes: the event loop drains, and its ticks are a second apart."""
        for _ in range(int(seconds)):
            self.now += 1
            self.recorder.flush(tuple)
            self.recorder.tick(tuple)
        self.now += seconds - int(seconds)
        self.recorder.flush(tuple)

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
    assert (8 << 20) - (1 << 18) - (1 << 14) <= len(taken(memory)) <= 8 << 20  # each granule needs some bytes itself


def stamped(time_ns: int, size: int = 60) -> bytes:
    """A packet of a time, in ns since 1970."""
    made = bytearray(packet(0, bytes(size)))
    made[12:20] = struct.pack("<II", time_ns >> 32, time_ns & 0xFFFFFFFF)
    return bytes(made)


class Timed:
    """A memory with a clock of the test; each packet has the time of the clock."""

    def __init__(self, size: int, time_s: int) -> None:
        self.now = 1e6
        self.memory = Memory(size, time_s, lambda: self.now)

    def put(self, size: int = 60) -> None:
        """A packet of now."""
        self.memory.write(stamped(int(self.now * 1e9), size))

    def run(self, seconds: int, size: int = 60) -> None:
        """A packet each second, and the tick after it."""
        for _ in range(seconds):
            self.put(size)
            self.now += 1
            self.memory.tick()

    def seconds(self, from_s: float = -math.inf) -> list[int]:
        """The times of all packets that a dump gets, in seconds before now."""
        self.memory.take(from_s)
        found = []
        while self.memory.has_taken:
            part = bytes(self.memory.next())
            found += [int(self.now - (high << 32 | low) / 1e9) for high, low in times(part)]
        return found


def times(blocks: bytes) -> Iterator[tuple[int, int]]:
    """High and low half of the time of each packet."""
    for at, _, _ in walk(memoryview(blocks)):
        yield struct.unpack_from("<II", blocks, at + 12)


def test_memory_lets_go_what_is_too_old() -> None:
    """With ring_time, packets that are older are discarded, also if no new packet comes; the status
    says that their age was the reason.
    """
    timed = Timed(8 << 20, time_s=10)
    timed.run(10)
    assert timed.memory.reach().bound == ""
    timed.run(23)
    reach = timed.memory.reach()
    assert (reach.bound, reach.by_size) == ("files.ring_time", 0)
    assert reach.by_time > 0
    assert (reach.last_ns - reach.first_ns) // 10**9 == 9
    assert timed.seconds() == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    timed.run(3)
    timed.now += 11
    timed.memory.tick()
    assert timed.memory.reach().first_ns == timed.memory.reach().used == 0


def test_the_size_bounds_a_long_ring_time() -> None:
    """If the size is reached first, it is the reason; the status says how long the size lasts."""
    timed = Timed(100_000, time_s=3600)
    timed.run(211, size=1000 - 32 - 256)  # with its cost, each packet takes about 1000 bytes
    reach = timed.memory.reach()
    assert (reach.bound, reach.by_time) == ("files.ring", 0)
    assert 900 < reach.rate < 1100
    assert reach.holds_s is not None
    assert 90 < reach.holds_s < 110
    assert abs(reach.holds_s - (reach.last_ns - reach.first_ns) / 1e9) < 4
    assert len(timed.seconds()) > 90


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=60), st.integers(1, 30), st.integers(0, 40))
def test_since_gets_whole_granules(steps: list[tuple[int, int]], time_s: int, since: int) -> None:
    """A dump has each packet that is as young as asked for and as ring_time allows, at most a granule
    more, and what it leaves stays in memory.
    """
    timed, put = Timed(8 << 20, time_s), []
    for pause, count in steps:
        timed.now += pause
        timed.memory.tick()
        for _ in range(count):
            timed.put()
            put.append(timed.now)
    begin = timed.now
    young = [int(timed.now - each) for each in put if timed.now - each <= time_s]
    found = timed.seconds(timed.now - since)
    assert found == young[len(young) - len(found) :]
    assert [age for age in young if age <= since] == [age for age in found if age <= since]
    assert all(age <= since + GRANULE_S for age in found)
    assert timed.now == begin
    assert found + timed.seconds() == young[len(young) - len(found) :] + young[: len(young) - len(found)]


def test_a_slow_trickle_needs_no_more_memory() -> None:
    """Granules of single packets count with what they need themselves."""
    timed = Timed(100_000, 0)
    timed.run(10_007)
    assert len(timed.memory._granules) < 100_000 // 256
    assert timed.memory.reach().used <= 100_000


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
    """A dump becomes several files if one would be too large; no packet is missing, and the command is
    told all of them.
    """
    made = Recording(tmp_path, limits=Limits(size=1 << 20))
    made.put(*range(20_011))
    number = made.recorder.orders.add()
    assert number
    made.dump(tuple)
    made.recorder.close()
    files = made.dumps
    found = made.recorder.orders.facts(number)
    assert found
    assert found["paths"] == list(map(str, files))
    assert f"to {len(files)} files, {files[0]} to {files[-1]} (trigger: command)" in found["text"]
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


def test_a_dump_goes_on_after_its_trigger(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """With a time after the trigger, the file has the memory, and what comes until then; later packets
    stay in memory. Meanwhile the file is unfinished, and no packet is counted twice.
    """
    recording.put(1, 2)
    recording.recorder.ask("rules[1]", 3.0)
    recording.recorder.flush(tuple)
    for number in (3, 4, 5):
        recording.put(number)
        recording.pass_s(0.9)
        assert not list(recording.path.glob("skbcapd-*.pcapng"))
    until(lambda: (recording.recorder.flush(tuple), recording.recorder.dumped == 5)[1], "5 packets are on the disk")
    assert not recording.recorder.has_pending_work  # the loop may sleep
    recording.put(6)
    recording.now += 0.4
    recording.wait()
    recording.put(7)
    (file,) = recording.dumps
    assert numbers(file) == [1, 2, 3, 4, 5, 6]
    assert recording.recorder.dumped == 6
    assert [line[:16] + line[-20:] for line in caplog.messages] == ["dumped 6 packets (trigger: rules[1])"]
    recording.dump()
    assert numbers(recording.dumps[-1]) == [7]


def test_a_trigger_extends_a_dump(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """A trigger while a dump captures moves its end, and makes no other file; one with less time does
    not; AFTER_MAX_S ends it.
    """
    recorder = recording.recorder
    recorder.ask("rules[1]", 10.0)
    recorder.flush(tuple)
    recording.pass_s(8)
    recorder.ask("rules[2]", 10.0)
    recorder.dump(tuple)
    recording.pass_s(9)
    assert recorder.memory["dump"] is not None
    assert recorder.memory["dump"]["left_s"] == 1.0
    recording.put(1)
    recording.pass_s(2)
    recording.wait()
    assert [numbers(file) for file in recording.dumps] == [[1]]
    assert caplog.messages[0].endswith("(trigger: rules[1])")

    recorder.ask("rules[3]", 3000.0)
    recorder.flush(tuple)
    begun = recording.now
    while recorder.memory["dump"] and recording.now < begun + 2 * AFTER_MAX_S:
        recorder.ask("rules[3]", 3000.0)
        recording.now += 100
        recorder.flush(tuple)
        recorder.flush(tuple)
        until(
            lambda: (recorder.flush(tuple), not recorder.has_pending_work or recorder._next is not None)[1],
            "it is written",
        )
    assert recording.now - begun <= AFTER_MAX_S + 100


def test_commands_get_their_dump(recording: Recording) -> None:
    """Two orders at a time, and one while a dump captures, are answered with the same file; numbers
    that were never given are not known.
    """
    recorder = recording.recorder
    recording.put(1)
    first, second = recorder.orders.add(), recorder.orders.add(after_s=5.0)
    assert first
    assert second
    assert recorder.orders.facts(first) == recorder.orders.facts(second) | {"left_s": 0.0}  # type: ignore[operator]
    recorder.dump(tuple)
    third = recorder.orders.add(after_s=1.0)
    assert third
    recorder.dump(tuple)
    found = recorder.orders.facts(third)
    assert found
    assert (found["state"], found["left_s"]) == ("capturing", 5.0)
    recording.pass_s(6)
    recording.wait()
    answers = [recorder.orders.facts(number) for number in (first, second, third)]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]
    assert answers[0]["state"] == "done"
    assert answers[0]["paths"] == [str(file) for file in recording.dumps]
    assert answers[0]["text"].startswith("dumped 1 packets from 1970")
    assert recorder.orders.facts(4) is None
    numbers_given = [recorder.orders.add() for _ in range(ORDERS_MAX + 1)]
    assert numbers_given == [*range(4, 4 + ORDERS_MAX), None]


def test_since_leaves_older_packets_in_memory(recording: Recording) -> None:
    """A dump of the last seconds leaves older packets to the next one; a packet is in one file."""
    for number in range(10):
        recording.put(number)
        recording.pass_s(2)
    recording.recorder.orders.add(since_s=7.0, after_s=2.0)
    recording.recorder.dump(tuple)
    recording.put(10)
    recording.pass_s(3)
    recording.wait()
    recording.put(11)
    recording.dump()
    assert [numbers(file) for file in recording.dumps] == [[7, 8, 9, 10], [0, 1, 2, 3, 4, 5, 6, 11]]
    assert recording.recorder.dumped == 12


def test_the_end_finishes_a_dump_that_captures(recording: Recording) -> None:
    """A capture that ends while a dump captures finishes the file, with the last packets."""
    recording.put(1)
    recording.recorder.ask("rules[1]", 3600.0)
    recording.recorder.flush(tuple)
    recording.put(2)
    recording.recorder.finish([Statistics(0, 1, received=17, accepted=13, lost=2, delivered=11)])
    assert [numbers(file) for file in recording.dumps] == [[1, 2]]
    assert recording.recorder.dumped == 2


def test_a_dump_ends_if_a_write_fails(
    recording: Recording, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk ends a dump that captures; what is not in the file is counted, and later
    packets stay in memory for the next one.
    """
    recording.put(1)
    recording.recorder.ask("rules[1]", 3600.0)
    recording.recorder.flush(tuple)
    until(lambda: (recording.recorder.flush(tuple), recording.recorder.dumped == 1)[1], "the first packet is written")

    def fail(*_words: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        for name in ("write", "writev", "pwrite", "pwritev"):
            broken.setattr(os, name, fail)
        recording.put(2)
        recording.recorder.flush(tuple)
        until(lambda: (recording.recorder.flush(tuple), not recording.recorder.memory["dump"])[1], "the dump has ended")
    recording.put(3)
    recording.dump()
    first, second = recording.dumps
    assert (numbers(first), numbers(second)) == ([1], [3])
    assert (recording.recorder.dumped, recording.recorder.lost) == (2, 1)
    assert any(line.endswith("; 1 packets could not be written") for line in caplog.messages)


def test_packets_that_a_late_disk_misses_are_told(recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    """While a dump captures and its disk is late, memory fills up; the packets without a place are
    named with the result, and the others are in the file.
    """
    recording.recorder.ask("rules[1]", 10.0)
    recording.recorder.flush(tuple)
    hold = threading.Event()
    recording.files._directory._writer.do(lambda: (hold.wait(), None)[1])
    count = 300_007
    for number in range(0, count, 7):
        recording.recorder.write_blocks(
            memoryview(b"".join(packet(0, each.to_bytes(60, "big")) for each in range(number, min(number + 7, count)))),
            tuple,
        )
        if number % 700 == 0:
            recording.recorder.flush(tuple)
    recording.now += 11
    recording.recorder.flush(tuple)
    hold.set()
    recording.wait()
    (line,) = (line for line in caplog.messages if line.startswith("dumped"))
    missed = int(re.findall(r"; (\d+) packets are missing", line)[0])
    assert missed > 0
    assert recording.recorder.dumped + missed == count
    assert recording.recorder.lost == 0
