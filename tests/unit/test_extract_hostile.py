"""Whatever is in a file, what comes out of it is a capture file, or there is an error in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.analysis.offload import ChecksumFiller, Segmenter
from skbcapd.analysis.pcapng_file import PcapngSection
from skbcapd.analysis.privacy import DROPPABLE, FieldRemover, without_payload
from skbcapd.analysis.records import Record, records
from skbcapd.analysis.selectors import Selection, Selectors, peer, port
from skbcapd.analysis.sources import Sources
from skbcapd.errors import FileError
from skbcapd.pcapng.reader import Interface, Reader, Section, Stamp
from tests.support.command import run
from tests.support.strangers import block, interface, options, packet, section

NOT_READY = struct.pack("<I", 1 << 9)
HEADS = [
    bytes(12) + b"\x08\x00" + bytes.fromhex("4500000000000000400600000a0000010a000002"),
    bytes(12) + b"\x08\x00" + bytes.fromhex("450000400000200040110000 0a0000010a000002"),
    bytes(12) + b"\x86\xdd" + bytes.fromhex("60000000000006400000") + bytes(30),
    bytes(12) + b"\x86\xdd" + bytes.fromhex("6000000000000040") + bytes(32) + b"\x06\x00\xc2\x04\x00\x01\x00\x00",
    bytes(12) + b"\x81\x00\x00\x07\x86\xdd" + bytes.fromhex("60000000ffff1140") + bytes(32),
    b"",
]


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, int]:
    """A frame that begins as real ones do, and a length on the wire."""
    frame = draw(st.sampled_from(HEADS)) + draw(st.binary(max_size=60)) + bytes(draw(st.sampled_from([0, 700, 3000])))
    frame = frame[: draw(st.integers(0, len(frame)))]
    return frame, draw(st.sampled_from([len(frame), len(frame) + 9, 70_000, 1 << 20, (1 << 32) - 1]))


@pytest.mark.fuzz
@given(frames(), st.sampled_from([1, 101, 113, 276, 105]))
def test_any_frame_can_be_changed(made: tuple[bytes, int], link: int) -> None:
    """No frame harms what cuts it and computes its checksum; no piece is longer than it says, and few come of one."""
    frame, wire_len = made
    place = Interface(Section("<", b""), link, 0, b"")
    one: Record = (7, place, Stamp(), wire_len, memoryview(frame), options((2, NOT_READY)))
    pieces = list(ChecksumFiller().apply(Segmenter(1500).apply([one])))
    assert 1 <= len(pieces) < 2000
    assert all(len(piece[4]) <= piece[3] or piece[4] == frame for piece in pieces)
    (cut,) = without_payload([one])
    assert bytes(cut[4]) == frame[: len(cut[4])]


@pytest.mark.fuzz
@given(
    st.lists(st.tuples(st.integers(0, 70), st.binary(max_size=40)), max_size=5),
    st.sampled_from("<>"),
    st.lists(st.sampled_from(DROPPABLE), max_size=3),
    st.integers(0, (1 << 64) - 1),
)
def test_any_options_come_out_as_a_file(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, bytes]], order: str, names: list[str], time: int
) -> None:
    """Options of either byte order, with anything in them, are written so that the file can be read again."""
    path = tmp_path_factory.mktemp("hostile") / "a.pcapng"
    opts = options(*pairs, order=order)
    described = interface(order, opts=options(*[pair for pair in pairs if pair[0] not in {9, 14}], order=order))
    path.write_bytes(section(order) + described + packet(b"frame", opts, order, time=time) * 2)
    sources, made, out = Sources([path], Selection(Selectors())), PcapngSection(), bytearray()
    try:
        for record in FieldRemover(names).apply(records(sources.packets())):
            made.encode(record, out)
    except FileError as error:
        said = error.message
    else:
        said = ""
    assert not sources.wrong
    if time * 1000 >= 1 << 64:
        assert said.endswith("expected a time that a file can hold")
        return
    assert not said
    path.write_bytes(out)
    with Reader(path) as reader:
        assert [(bytes(found[4]), found[2]) for found in reader.packets()] == [(b"frame", time * 1000)] * 2


@pytest.mark.fuzz
@given(st.binary(max_size=200))
def test_any_file_is_read_or_told(tmp_path_factory: pytest.TempPathFactory, tail: bytes) -> None:
    """A file with garbage behind its packets gives those, and one line."""
    path = tmp_path_factory.mktemp("hostile") / "a.pcapng"
    path.write_bytes(section() + interface() + packet() + block(0xBAD, tail) + tail)
    wanted = Selectors(peers=[peer("10.0.0.0/8")], ports=[port("443")])
    for selectors, least in ((Selectors(), 1), (wanted, 0)):
        sources = Sources([path], Selection(selectors))
        assert len(list(sources.packets())) >= least
        assert all(error.message.isprintable() for error in sources.wrong)


def test_too_many_interfaces() -> None:
    """Descriptions that would fill the memory are an error with a way out."""
    made, out = PcapngSection(), bytearray()
    made.described = (64 << 20) - 10
    place = Interface(Section("<", section()), 1, 0, interface())
    with pytest.raises(FileError, match="more than 65536 interfaces, or very long descriptions") as raised:
        made.encode((7, place, Stamp(), 5, b"frame", b""), out)
    assert "--interface" in raised.value.hint


def test_no_file_is_left_of_a_full_disk(tmp_path: Path) -> None:
    """/dev/full is a device: the error is one line, and no other file appears."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(section() + interface() + packet(bytes(60_000)) * 20)
    code, stdout, said = run("extract", path, "-w", "/dev/full")
    assert (code, stdout) == (1, b"")
    assert said.splitlines() == ["skbcapd: /dev/full: No space left on device; expected a file to write"]
    code, _, said = run("extract", path, "-w", path)
    assert (code, said.splitlines()) == (
        1,
        [f"skbcapd: {path}: is read and written; expected another file to write to"],
    )
    code, _, said = run("extract", path, "-w", tmp_path / "nosuch" / "out.pcapng")
    assert (code, said.splitlines()[0]) == (
        1,
        f"skbcapd: {tmp_path}/nosuch/out.pcapng.part: No such file or directory; expected a file to write",
    )
    assert list(tmp_path.iterdir()) == [path]
