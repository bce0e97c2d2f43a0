"""Functions on blocks for outputs: counting packets, and finding the end of the last complete
block.
"""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from skbcapd.output import blocks
from skbcapd.output.blocks import PacketCounter, packet_times, whole, whole_in
from tests.support.writer import block, packet

SECTION = block(0x0A0D0D0A, 0, b"", b"")
KINDS = st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=20)


def stream(kinds: list[tuple[bool, int]]) -> list[bytes]:
    """Packet blocks and other blocks."""
    return [packet(0, bytes(size)) if is_packet else block(5, 0, bytes(size), b"") for is_packet, size in kinds]


@given(KINDS, st.lists(st.integers(0, 7000), max_size=9))
def test_packets_are_counted_in_any_parts(kinds: list[tuple[bool, int]], cuts: list[int]) -> None:
    """Each packet is counted once, at any split of the stream."""
    data = b"".join(stream(kinds))
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    counter = PacketCounter()
    for start, end in pairwise(places):
        counter.feed(memoryview(data)[start:end])
    assert counter.packets == sum(is_packet for is_packet, _ in kinds)


@given(KINDS, st.integers(0, 400))
def test_complete_blocks_are_recognized(kinds: list[tuple[bool, int]], torn: int) -> None:
    """Complete blocks are recognized, in memory and in a file."""
    found = [SECTION, *stream(kinds)]
    data = b"".join(found)
    rest = packet(0, bytes(400))[:torn]
    assert whole(data + rest) == len(data)
    with tempfile.TemporaryFile() as file:
        file.write(data + rest)
        file.flush()
        assert whole_in(file.fileno()) == (len(data), True)
        for size in (64, 101):
            file.seek(0)
            before, blocks._CHUNK = blocks._CHUNK, size
            try:
                assert whole_in(file.fileno()) == (len(data), True)
            finally:
                blocks._CHUNK = before


@given(st.integers(0, 2), st.integers(8, 90))
def test_a_hole_in_the_middle_is_the_end(which: int, size: int) -> None:
    """Zeros from a crash of the machine end the file, whatever follows them."""
    made = [SECTION, packet(0, bytes(60)), packet(0, b"\xff" * 300), packet(0, bytes(60))]
    ends = [sum(map(len, made[: n + 1])) for n in range(4)]
    data = bytearray(b"".join(made))
    at = ends[which]
    data[at : at + size] = bytes(len(data[at : at + size]))
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        assert whole_in(file.fileno()) == (at, True)


RUNS = st.lists(st.tuples(st.sampled_from([0, 1, 60, 61, 1400]), st.integers(1, 200)), min_size=1, max_size=6)


@given(RUNS, st.data())
def test_a_wrong_length_among_equal_blocks_is_the_end(runs: list[tuple[int, int]], choice: st.DataObject) -> None:
    """Among many blocks of equal length, the first one with a wrong byte in a length ends the file, as among others."""
    made = [SECTION, *(packet(0, bytes(size)) for size, count in runs for _ in range(count))]
    data = bytearray(b"".join(made))
    broken = choice.draw(st.integers(1, len(made) - 1))
    at = sum(map(len, made[:broken]))
    byte = choice.draw(st.sampled_from([4, 5, 6, 7, -4, -3, -2, -1]))
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        assert whole_in(file.fileno()) == (len(data), True)
        data[at + (byte if byte > 0 else len(made[broken]) + byte)] ^= choice.draw(st.integers(1, 255))
        file.seek(0)
        file.write(data)
        file.flush()
        assert whole_in(file.fileno()) == (at, True)


def test_a_frame_with_bytes_like_blocks() -> None:
    """An incomplete packet is incomplete, even if its frame contains complete blocks."""
    inside = packet(0, bytes(60)) * 7
    data = SECTION + packet(0, inside)[: -len(inside) // 2]
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        assert whole_in(file.fileno()) == (len(SECTION), True)


def test_no_section_no_file() -> None:
    """A file that does not begin with a section header has no blocks."""
    with tempfile.TemporaryFile() as file:
        file.write(packet(0) * 3)
        file.flush()
        assert whole_in(file.fileno()) == (0, True)
        os.ftruncate(file.fileno(), 0)
        assert whole_in(file.fileno()) == (0, True)


def test_times_of_packets() -> None:
    """The times of the first and the last packet are returned; other blocks have no effect."""
    first, last = (1 << 32) + 7, (5 << 32) + 9
    data = block(5, 0, b"", b"") + block(6, 0, b"a", b"", first) + block(6, 0, b"b", b"", last) + block(5, 0, b"", b"")
    assert packet_times(data) == (2, first, last)
    assert packet_times(block(5, 0, b"", b"")) == (0, 0, 0)
