"""The reader of the shared segments, with memory written as in bpf/segment.h."""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from skbcapd.errors import SegmentError
from skbcapd.kernel import abi
from skbcapd.kernel.segments import (
    LOCAL_PER_RANGE,
    Cut,
    Loan,
    Repeated,
    SegmentReader,
    Upcall,
    identity_of,
    read_local,
    read_repeated,
)
from skbcapd.pcapng.blocks import PACKET, walk
from skbcapd.pcapng.comment import label
from skbcapd.pcapng.interface import DISK_BLOCK
from tests.support.frames import NTP_FRAME
from tests.support.writer import COMMITTED, UPCALLS, USED, Writer, block, cut, packet, upcall

SMALL = b"\xee" * 100
LARGE = bytes(abi.SEGMENT_SIZE // 2 - 32)  # two blocks of it fill a segment to its last byte


class Shared(Writer):
    """Shared memory with a reader."""

    def __init__(self, segments: int = 4) -> None:
        super().__init__(segments)
        self.reader = SegmentReader(self.memory, self.control, self.geometry)

    def read(self) -> list[tuple[list[int], list[int]]]:
        """Each range as (numbers of its blocks, indices of local blocks among them)."""
        ranges = []
        for found in self.reader.ranges():
            places = {offset: place for place, (offset, _, _) in enumerate(walk(found.view))}
            numbers = [struct.unpack_from("<I", found.view, offset + 8)[0] for offset in places]
            ranges.append((numbers, [places[offset] for offset in found.local]))
        return ranges


def test_a_range_ends_after_so_many_local_blocks() -> None:
    """However many local blocks wait, a range has LOCAL_PER_RANGE; if the loop ends after it, the
    next range follows.
    """
    shared = Shared()
    count = 3 * LOCAL_PER_RANGE + 7
    for number in range(count):
        shared.put(packet(number), upcall(b"", number=number))
    found = []
    while not shared.reader.is_drained:
        for blocks in shared.reader.ranges():
            found += [struct.unpack_from("<I", blocks.view, offset + 8)[0] for offset in blocks.local]
            assert len(blocks.local) <= LOCAL_PER_RANGE
            assert sum(1 for _ in walk(blocks.view)) <= 2 * LOCAL_PER_RANGE + 1
            shared.reader.consume(blocks)
            shared.put(packet(0))
            break
        else:
            break
        if len(found) == count:
            list(shared.reader.ranges())
    assert found == list(range(count))
    assert shared.reader._open == []


def step(writer: Iterator[bool], steps: int) -> None:
    """Let a writer do some of its steps."""
    for _ in range(steps):
        assert next(writer)


def test_an_empty_capture_is_drained() -> None:
    """A capture without packets has no range and is drained."""
    shared = Shared()
    assert shared.read() == []
    assert shared.reader.is_drained


def test_the_peak_is_what_waited() -> None:
    """The peak is the largest number of bytes that a drain found, also over several segments, until it is taken."""
    shared = Shared()
    one = packet(1, SMALL)
    shared.put(one, one, one)
    shared.read()
    shared.put(one)
    shared.read()
    assert shared.reader.take_peak() == 3 * len(one)
    assert shared.reader.take_peak() == 0
    shared.control[abi.PLACED] = -4 * len(one) % DISK_BLOCK  # the next segment begins at its first byte
    shared.put(packet(2, LARGE), packet(2, LARGE), upcall(b""))
    shared.read()
    assert shared.reader.take_peak() == abi.SEGMENT_SIZE - 4 * len(one) + abi.SEGMENT_SIZE // 2 + len(upcall(b""))
    assert shared.reader.local == 1


class Recorded:
    """The control memory, with a list of all accesses to it."""

    def __init__(self, words: memoryview, accesses: list[tuple[str, int]]) -> None:
        self._words = words
        self._accesses = accesses

    def __getitem__(self, word: int) -> int:
        self._accesses.append(("read", word))
        return int(self._words[word])

    def __setitem__(self, word: int, value: int) -> None:
        self._accesses.append(("write", word))
        self._words[word] = value


def test_a_processor_cannot_reorder_what_proves_that_a_range_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a barrier after each read of `committed`, before the cursor is read; and one before each
    release of a segment, after its state is reset.
    """
    shared = Shared()
    accesses: list[tuple[str, int]] = []
    monkeypatch.setattr("skbcapd.kernel.segments.order_accesses", lambda: accesses.append(("order", 0)))
    control = cast(memoryview, Recorded(shared.control, accesses))
    reader = SegmentReader(shared.memory, control, shared.geometry)
    accesses.clear()
    shared.put(packet(1, LARGE), packet(2, LARGE), packet(3))
    assert len(list(reader.ranges())) == 2

    committed = [at for at, (kind, word) in enumerate(accesses) if kind == "read" and word in states(shared)]
    released = [at for at, access in enumerate(accesses) if access == ("write", abi.TAIL)]
    assert len(committed) == 2
    assert len(released) == 1
    assert all(accesses[at + 1 : at + 3] == [("order", 0), ("read", abi.CURSOR)] for at in committed)
    assert all(accesses[at - 1] == ("order", 0) for at in released)
    assert not any(kind == "write" and word != abi.WAKE_AT for kind, word in accesses[released[0] + 1 :])


def states(shared: Shared) -> set[int]:
    """The indices of `committed` of all segments."""
    return {shared.state(number, COMMITTED) for number in range(shared.geometry.segment_count)}


def test_lent_memory_is_kept() -> None:
    """A segment whose memory is lent is read on, but not released; nor is one after it. The kernel program wakes
    Python when a quarter of the segments wait, or three quarters are in use; from then on nothing more is lent, and
    memory that is given back wakes Python: once, until it has looked.
    """
    shared = Shared(8)
    first, control = shared.control[abi.CURSOR] >> 32, shared.control
    loans, rung = [], []
    shared.reader.returned = lambda: rung.append(control[abi.TAIL])
    for number in range(7):
        assert shared.put(packet(number, LARGE), packet(number, LARGE)) == 2
        (found,) = shared.reader.ranges()
        loans.append(found.loan)
        if found.loan:
            found.loan.take()
        list(shared.reader.ranges())
        assert control[abi.TAIL] == first
        assert control[abi.WAKE_AT] == first + min(number + 2, 6)
    assert [loan is not None for loan in loans] == [True] * 6 + [False]
    for back, tail in ((1, 0), (0, 2), (2, 3), (5, 3), (4, 3), (3, 6)):
        loan = loans[back]
        assert loan is not None
        rung.clear()
        loan.give_back()
        assert len(rung) == (back in {1, 0, 2})  # at the last look, 6 of 8 were in use, then 4
        list(shared.reader.ranges())
        assert control[abi.TAIL] == first + tail
    assert control[abi.WAKE_AT] == first + 8
    shared.put(packet(7))
    list(shared.reader.ranges())
    assert control[abi.TAIL] == first + 7
    assert control[abi.WAKE_AT] == first + 9


def test_blocks_come_once_and_in_order() -> None:
    """Committed blocks are one range; the next read begins after it."""
    shared = Shared()
    shared.put(packet(1), packet(2, SMALL))
    assert not shared.reader.is_drained
    assert shared.read() == [([1, 2], [])]
    assert shared.reader.is_drained
    assert shared.read() == []
    shared.put(packet(3))
    assert shared.read() == [([3], [])]


def test_a_reader_that_stops_in_a_range_gets_it_again() -> None:
    """A range is consumed only when the next one is requested: an output that fails does not lose
    it.
    """
    shared = Shared()
    shared.put(packet(1), upcall(b"", number=2))
    for _ in shared.reader.ranges():
        break
    assert not shared.reader.is_drained
    assert shared.read() == [([1, 2], [1])]


def test_nothing_after_an_uncommitted_block_is_read() -> None:
    """A reserved block that is not committed delays all later blocks until it is committed."""
    shared = Shared()
    shared.put(packet(1))
    slow = shared.steps(packet(2))
    step(slow, 1)
    shared.put(packet(3))
    assert shared.read() == []
    assert not shared.reader.is_drained
    assert all(list(slow))
    assert shared.read() == [([1, 2, 3], [])]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_sealed_segment_waits_for_its_length(steps: int) -> None:
    """A segment with a successor is not read before its writer has stored its final length."""
    shared = Shared()
    first, sealing = shared.steps(packet(1, LARGE)), shared.steps(packet(2, LARGE + SMALL))
    step(first, steps)
    step(sealing, 1)
    assert shared.read() == []
    step(sealing, 2)
    list(first)
    assert shared.read() == [([1], [])]
    list(sealing)
    assert shared.read() == [([2], [])]


def test_a_segment_filled_to_its_last_byte() -> None:
    """A segment that is exactly full is read at once, and sealing it later adds nothing."""
    shared = Shared()
    shared.put(packet(1, LARGE), packet(2, LARGE))
    assert shared.read() == [([1, 2], [])]
    assert shared.reader.is_drained
    shared.put(packet(3))
    assert not shared.reader.is_drained
    assert shared.read() == [([3], [])]


def test_full_segments_accept_nothing_until_they_are_read() -> None:
    """With all segments in use there is no space; reading releases segments, and writing continues."""
    shared = Shared()
    for room in (8, 6, 6):  # the segment that was read last stays in use, although it is full
        assert shared.put(*(packet(number, LARGE) for number in range(10))) == room
        assert shared.put(packet(11)) == 0
        assert [number for found, _ in shared.read() for number in found] == list(range(room))
        assert shared.reader.is_drained


def test_a_segment_is_given_back_only_after_its_range() -> None:
    """While a range is processed its segment is not free; it is released when the next range is
    requested.
    """
    shared = Shared()
    shared.put(packet(1, LARGE), upcall(b"", number=2), packet(3, LARGE))
    before = shared.control[abi.TAIL]
    state = [shared.state(before, word) for word in (USED, COMMITTED, UPCALLS)]
    ranges = shared.reader.ranges()
    first = next(ranges)
    assert shared.control[abi.TAIL] == before
    assert next(ranges).view[8] == 3
    assert shared.control[abi.TAIL] == before + 1
    assert [shared.control[word] for word in state] == [0, 0, 0]
    with pytest.raises(ValueError, match="released"):
        first.view[0]


def test_local_blocks_are_found_by_the_list() -> None:
    """Local blocks are found by the list, in any order of their writers, range by range."""
    shared = Shared()
    early, late = shared.steps(upcall(SMALL, number=1)), shared.steps(cut(2, SMALL, 0, 200))
    step(early, 1)
    assert all(list(late))  # reserved later, listed first
    assert all(list(early))
    shared.put(packet(3))
    assert shared.read() == [([1, 2, 3], [0, 1])]
    shared.put(packet(4), upcall(SMALL, number=5))
    assert shared.read() == [([4, 5], [1])]
    shared.put(packet(6))
    assert shared.read() == [([6], [])]


class Watched:
    """struct control; other CPUs can run whenever the reader reads a word: `look` gets the index of
    the word first.
    """

    def __init__(self, control: memoryview, look: Callable[[int], None]) -> None:
        self.control = control
        self.look = look

    def once(self, index: int, action: Callable[[], object]) -> None:
        """Run a function when the reader reads a word for the first time."""

        def look(looked_at: int) -> None:
            if looked_at == index:
                self.look = lambda _: None
                action()

        self.look = look

    def __getitem__(self, index: int) -> int:
        self.look(index)
        return int(self.control[index])

    def __setitem__(self, index: int, value: int) -> None:
        self.look(index)
        self.control[index] = value


@pytest.mark.parametrize("word", ["cursor", "committed"])
def test_a_block_committed_while_the_reader_reads(word: str) -> None:
    """Bytes committed after an uncommitted block do not count for it, whenever they are committed."""
    shared = Shared()
    control = Watched(shared.control, lambda _: None)
    shared.reader = SegmentReader(shared.memory, control, shared.geometry)  # type: ignore[arg-type]
    slow = shared.steps(packet(1))
    step(slow, 1)
    committed = shared.state(shared.geometry.segment_count, COMMITTED)
    control.once(abi.CURSOR if word == "cursor" else committed, lambda: shared.put(packet(2)))
    assert shared.read() == []
    list(slow)
    assert shared.read() == [([1, 2], [])]


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_an_entry_written_while_the_reader_reads(rounds: int, steps: int) -> None:
    """A local block after the range does not belong to it, whether its entry is written already or
    not.
    """
    shared = Shared()
    control = Watched(shared.control, lambda _: None)
    shared.reader = SegmentReader(shared.memory, control, shared.geometry)  # type: ignore[arg-type]
    early = upcall(SMALL, number=1)
    for _ in range(rounds * shared.geometry.segment_count):
        shared.put(early, packet(2, bytes(abi.SEGMENT_SIZE - len(early) - 32)))
        assert shared.read() == [([1, 2], [0])]
    shared.put(packet(3))
    late = shared.steps(upcall(SMALL, number=4))
    control.once(shared.state(shared.control[abi.CURSOR] >> 32, UPCALLS), lambda: step(late, steps))
    assert shared.read() == [([3], [])]
    assert all(list(late))
    assert shared.read() == [([4], [0])]


def test_more_local_blocks_than_list_entries() -> None:
    """If the list is too short, no local block is missed; the next segment has a list again."""
    shared = Shared()
    count = abi.UPCALLS_LISTED
    shared.put(*(upcall(b"", number=number) for number in range(count)))
    parts = shared.read()
    assert [number for numbers, _ in parts for number in numbers] == list(range(count))
    assert [places for _, places in parts] == [list(range(LOCAL_PER_RANGE))] * (count // LOCAL_PER_RANGE)
    shared.put(packet(1), cut(2, b"", 0, 0), packet(3))
    assert shared.read() == [([1, 2, 3], [1])]
    shared.put(packet(4))
    assert shared.read() == [([4], [])]
    shared.put(packet(5, LARGE), packet(6, LARGE), upcall(b"", number=7))
    assert shared.read() == [([5], []), ([6, 7], [1])]


def test_a_list_too_short_while_another_block_is_counted() -> None:
    """A local block that is counted, but not committed, while the segment is walked, is found later."""
    shared = Shared()
    control = Watched(shared.control, lambda _: None)
    shared.reader = SegmentReader(shared.memory, control, shared.geometry)  # type: ignore[arg-type]
    shared.put(*(upcall(b"", number=3) for _ in range(abi.UPCALLS_LISTED + 1)))
    late = shared.steps(upcall(b"", number=4))
    control.once(shared.state(shared.geometry.segment_count, UPCALLS), lambda: step(late, 2))
    assert sum(len(places) for _, places in shared.read()) == abi.UPCALLS_LISTED + 1
    list(late)
    shared.put(packet(5))
    assert shared.read() == [([4, 5], [0])]
    shared.put(packet(6))
    assert shared.read() == [([6], [])]


def test_a_list_too_short_leaves_nothing_open() -> None:
    """An entry that waited for its block when the list became too short is discarded with its
    segment.
    """
    shared = Shared()
    control = Watched(shared.control, lambda _: None)
    shared.reader = SegmentReader(shared.memory, control, shared.geometry)  # type: ignore[arg-type]
    shared.put(packet(1))
    late = shared.steps(upcall(b"", number=2))
    control.once(shared.state(shared.geometry.segment_count, UPCALLS), lambda: step(late, 2))
    assert shared.read() == [([1], [])]
    list(late)
    shared.put(*(upcall(b"", number=3) for _ in range(abi.UPCALLS_LISTED)))
    assert sum(len(places) for _, places in shared.read()) == abi.UPCALLS_LISTED + 1
    shared.put(packet(4, LARGE), packet(5, LARGE), upcall(b"", number=6))
    assert shared.read() == [([4], []), ([5, 6], [1])]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"cursor": abi.SEGMENT_SIZE + 4, "committed": abi.SEGMENT_SIZE + 4}, "expected 32 to 2097152"),
        ({"cursor": 8, "committed": 8}, "ends at 8; expected 32"),
        ({"cursor": 1 << 32 | 100, "committed": 8, "used": 8}, "ends at 8; expected 32"),
    ],
)
def test_progress_that_cannot_be(words: dict[str, int], message: str) -> None:
    """A segment that ends outside of itself, or before the part that was read, is an error."""
    shared = Shared()
    shared.put(packet(1))
    shared.read()
    number = shared.control[abi.CURSOR] >> 32
    shared.control[abi.CURSOR] = (number << 32) + words["cursor"]
    shared.control[shared.state(number, 1)] = words["committed"]
    shared.control[shared.state(number, USED)] = words.get("used", 0)
    with pytest.raises(SegmentError, match=message):
        shared.read()


# Blocks


@pytest.mark.parametrize("frame", [b"", b"\x01", NTP_FRAME, bytes(range(256)) * 5])
def test_an_upcall_is_read_back(frame: bytes) -> None:
    """All fields of a packet without a label are read back, frame and padding separately."""
    made = packet(1) + upcall(
        frame,
        time_ns=1_622_469_600_123_456_789,
        original_len=len(frame) + 3,
        net=1 << 63,
        ifindex=7,
        direction=1,
        start=1 << 62,
        via=4,
        linked=1,
        comm=b"chronyd\0was else",
        device=b"eth0\0old",
        mac=b"\1\2\3\4\5\6",
        packet_id=1 << 61,
        sk=0xFFFF888000000000,
        inode=4711,
        identity=1 << 60,
        checksum=0x00060022,
        flags=0x801,
        device_type=65534,
    )
    found = read_local(memoryview(made), 32)

    assert isinstance(found, Upcall)
    assert bytes(found.frame) == frame
    assert found.key == abi.KEY.pack(1 << 63, 7, 1, 1058, 1059, 1 << 62, 4, 1)
    assert (found.time_ns, found.original_len, found.size) == (
        1_622_469_600_123_456_789,
        len(frame) + 3,
        len(made) - 32,
    )
    assert (found.net, found.ifindex, found.direction, found.via, found.tgid, found.tid) == (
        1 << 63,
        7,
        1,
        4,
        1058,
        1059,
    )
    assert (found.start, found.linked, found.packet_id) == (1 << 62, 1, 1 << 61)
    assert (found.sk, found.inode, found.identity) == (0xFFFF888000000000, 4711, 1 << 60)
    assert found.checksum == 0x00060022
    assert (found.comm, found.interface_name, found.mac) == (b"chronyd", b"eth0", b"\1\2\3\4\5\6")
    assert (found.netns, found.flags, found.interface_type) == (4026531840, 0x801, 65534)


@pytest.mark.parametrize(("got", "wanted"), [(0, 90), (41, 90), (89, 90), (90, 1501)])
def test_a_cut_frame_is_read_back(got: int, wanted: int) -> None:
    """Of a frame that could not be read to its end, the readable bytes, its length, label and
    options are read back.
    """
    stamp = label([("comm", b"chronyd")], 0, 1058, 1059, linked=True)
    made = cut(65535, NTP_FRAME[:got], 0x802, wanted, stamp=stamp, checksum=0x00060022, packet_id=1 << 61)

    expected = Cut(7, memoryview(NTP_FRAME[:got]), wanted, 65535, stamp, 1 << 61, 0x00060022, 0x802, len(made))
    assert read_local(memoryview(made), 0) == expected


def resized(made: bytes, at: int, value: int) -> bytes:
    """A block with one changed word."""
    return made[:at] + struct.pack("<I", value & 0xFFFFFFFF) + made[at + 4 :]


@pytest.mark.parametrize("frame", [b"", b"x", NTP_FRAME])
def test_a_repeated_packet_is_read_in_part(frame: bytes) -> None:
    """What is read of a packet whose identity is known is what the complete record says; no other block has one."""
    made = packet(1, NTP_FRAME) + upcall(frame, packet_id=1 << 61, checksum=0x00060022, flags=0x802, time_ns=1 << 60)
    view, at = memoryview(made), len(packet(1, NTP_FRAME))
    whole, found = read_local(view, at), read_repeated(view, at)

    assert isinstance(whole, Upcall)
    assert identity_of(view, at) == whole.key + whole.names
    assert found == Repeated(*(getattr(whole, field.name) for field in dataclasses.fields(Repeated)))
    assert identity_of(view, 0) == identity_of(memoryview(cut(1, NTP_FRAME, 0, 90)), 0) == b""


LENGTH, CAP_LEN = 4, 20
UPCALL_SIZE = len(upcall(NTP_FRAME))


@pytest.mark.parametrize(
    "size", [0, 4, 28, 31, 33, UPCALL_SIZE - 2, UPCALL_SIZE + 4, 0x7FFFFFFC, 0xFFFFFFFC, 0xFFFFFFFF]
)
def test_a_length_that_cannot_be(size: int) -> None:
    """A block shorter than its frame, of no multiple of four, or longer than the range, is an
    error.
    """
    view = memoryview(resized(upcall(NTP_FRAME), LENGTH, size))
    with pytest.raises(SegmentError):
        list(walk(view))
    with pytest.raises(SegmentError):
        read_local(view, 0)
    with pytest.raises(SegmentError):
        identity_of(view, 0)


@pytest.mark.parametrize(
    ("made", "offset"),
    [
        (packet(1, NTP_FRAME), 0),
        (upcall(NTP_FRAME), UPCALL_SIZE),
        (upcall(NTP_FRAME), UPCALL_SIZE - 4),
        (upcall(NTP_FRAME), -UPCALL_SIZE),
        (resized(upcall(NTP_FRAME), CAP_LEN, 93), 0),
        (resized(upcall(NTP_FRAME), CAP_LEN, 0xFFFFFFFF), 0),
        (resized(cut(1, NTP_FRAME, 0, 90), CAP_LEN, 105), 0),
        (block(abi.BLOCK_UPCALL, 0, b"", bytes(abi.UPCALL.size - 4)), 0),
        (block(abi.BLOCK_CUT, 0, b"", b""), 0),
        (block(abi.BLOCK_CUT | 8 << abi.CUT_OPTIONS_BIT, 0, b"", bytes(4)), 0),
        (block(abi.BLOCK_CUT | 12 << abi.CUT_OPTIONS_BIT, 0, b"", bytes(12)), 0),
        (block(abi.BLOCK_DROP, 0, NTP_FRAME, bytes(abi.DROPPED.size + abi.UPCALL.size - 4)), 0),
        (block(0x80000004, 0, NTP_FRAME, bytes(abi.UPCALL.size)), 0),
    ],
)
def test_blocks_that_are_not_local(made: bytes, offset: int) -> None:
    """A block that is not a local one, or is too short for its content, is an error."""
    with pytest.raises(SegmentError):
        read_local(memoryview(made), offset)
    with contextlib.suppress(SegmentError):
        assert not identity_of(memoryview(made), offset) or not read_repeated(memoryview(made), offset)


@pytest.mark.fuzz
@given(st.binary(max_size=96), st.binary(max_size=300), st.integers(-8, 400))
def test_any_bytes_give_blocks_or_an_error(head: bytes, tail: bytes, offset: int) -> None:
    """For any memory, reading gives blocks inside of it or a SegmentError, never another exception."""
    view = memoryview(head + upcall(tail)[: len(tail)] + tail)
    with contextlib.suppress(SegmentError):
        assert all(size >= 32 and at + size <= len(view) for at, _, size in walk(view))
    with contextlib.suppress(SegmentError):
        assert len(read_local(view, offset).frame) <= len(view)
    with contextlib.suppress(SegmentError):
        assert not identity_of(view, offset) or len(read_repeated(view, offset).frame) <= len(view)


SIZES = st.sampled_from([0, 8, 96, len(LARGE), abi.SEGMENT_SIZE - DISK_BLOCK - 1024])


class Interleaved(RuleBasedStateMachine):
    """Several writers and the reader, interleaved at any step: each block is returned once,
    complete, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared = Writer()
        self.meanwhile: list[int] = []
        self.control = Watched(self.shared.control, lambda _: self.look())
        self.reader = SegmentReader(self.shared.memory, self.control, self.shared.geometry)  # type: ignore[arg-type]
        self.writers: list[Iterator[bool]] = []
        self.reserved: list[bytes] = []
        self.seen = 0
        self.is_lent = False
        self.lent: list[tuple[memoryview, bytes, Loan]] = []

    def begin(self, size: int, *, local: bool) -> None:
        """A packet: its writer does the first step, the reservation, which defines its position in
        the order.
        """
        number = len(self.reserved) + 1
        frame = struct.pack("<I", number) * (size // 4)
        made = upcall(frame, number=number) if local else packet(number, frame)
        writer = self.shared.steps(made)
        if next(writer):
            self.reserved.append(made)
            self.writers.append(writer)

    def step(self, which: int) -> None:
        """One of the writers does its next step."""
        if self.writers:
            writer = self.writers[which % len(self.writers)]
            if next(writer, None) is None:
                self.writers.remove(writer)

    def look(self) -> None:
        """The reader reads a word."""
        if self.meanwhile:
            which = self.meanwhile.pop()
            if which >= 0:
                self.step(which)
            else:
                self.begin(8, local=which == -1)

    def read_all(self) -> None:
        """The reader gets its ranges."""
        for found in self.reader.ranges():
            local = [offset for offset, kind, _ in walk(found.view) if kind != PACKET]
            assert found.local == local
            for offset, _, size in walk(found.view):
                assert found.view[offset : offset + size] == self.reserved[self.seen]
                self.seen += 1
            if self.is_lent and found.loan:
                found.loan.take()
                self.lent.append((found.view[:], bytes(found.view), found.loan))

    @rule(size=SIZES, local=st.booleans())
    def write(self, size: int, *, local: bool) -> None:
        """A packet."""
        self.begin(size, local=local)

    @rule(size=SIZES, local=st.booleans())
    def write_whole(self, size: int, *, local: bool) -> None:
        """A packet whose writer is not interrupted."""
        self.begin(size, local=local)
        self.finish(-1)

    @rule(which=st.integers(0, 7))
    def finish(self, which: int) -> None:
        """One of the writers runs to its end."""
        if self.writers:
            list(self.writers.pop(which % len(self.writers)))

    @rule(which=st.lists(st.integers(0, 7), min_size=1, max_size=4))
    def go_on(self, which: list[int]) -> None:
        """Several writers do steps."""
        for number in which:
            self.step(number)

    @rule(is_lent=st.booleans())
    def lend(self, *, is_lent: bool) -> None:
        """From now on, the memory of each range is used after it, or not."""
        self.is_lent = is_lent

    @rule(which=st.integers(0, 7))
    def give_back(self, which: int) -> None:
        """The memory of a range is not used any more; until now, nothing has changed it."""
        if self.lent:
            view, content, loan = self.lent.pop(which % len(self.lent))
            assert view == content
            loan.give_back()

    @rule(words=st.integers(0, DISK_BLOCK // 4 - 1))
    def shift(self, words: int) -> None:
        """The next segment begins elsewhere."""
        self.control[abi.PLACED] = 4 * words

    @rule()
    def crowd(self) -> None:
        """More packets than the list of local blocks has entries, in three parts."""
        for _ in range(abi.UPCALLS_LISTED * 2 // 5):
            self.write_whole(0, local=True)

    @rule(meanwhile=st.lists(st.integers(-2, 7), max_size=12))
    def read(self, meanwhile: list[int]) -> None:
        """The reader reads; at each read a writer does a step or (negative) a new one begins."""
        self.meanwhile = meanwhile
        self.read_all()
        self.meanwhile = []

    @invariant()
    def nothing_is_ahead(self) -> None:
        """The reader never reports that it is drained while something is left."""
        if self.reader.is_drained:
            assert self.seen == len(self.reserved)

    def teardown(self) -> None:
        """When all writers are done, everything is read."""
        while self.writers:
            self.finish(0)
        self.read_all()
        assert self.seen == len(self.reserved)
        assert self.reader.is_drained
        while self.lent:
            self.give_back(0)
        self.read_all()
        assert self.control[abi.TAIL] == self.control[abi.CURSOR] >> 32


TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = settings(max_examples=50, stateful_step_count=40)
