"""Why the bytes differed in the question this project grew from: docs/why-bytes-differ.md, as far
as ctypes goes.

No kernel is needed: the frame stands in memory as bcc's table would hold it, and only the ways to
read it differ.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from tests.support.frames import NTP_FRAME

# In the EtherType 0x0800: the first NUL of nearly all IPv4 frames.
FIRST_NUL = 13
# The bytes of that frame that the program of the question printed.
PRINTED = bytes.fromhex("3431c4b06a8b3c7c3f2023bd08006500d0a57f040f7f")


class AsBccMapsIt(ctypes.Structure):
    """The type that bcc makes of `struct packet_buf { char data[32768]; }`."""

    _fields_ = (("data", ctypes.c_char * 32768),)


class AsItShouldBe(ctypes.Structure):
    """The same memory, each byte an unsigned number."""

    _fields_ = (("data", ctypes.c_ubyte * 32768),)


def in_memory() -> ctypes.Array[ctypes.c_char]:
    """The frame as the kernel program left it in the buffer."""
    return ctypes.create_string_buffer(NTP_FRAME, ctypes.sizeof(AsBccMapsIt))


def test_a_char_array_ends_at_the_first_nul() -> None:
    """Reading a `c_char` array field gives a Python bytes object cut at the first NUL: 13 of the 90
    bytes.
    """
    field = AsBccMapsIt.from_buffer(in_memory()).data

    assert type(field) is bytes
    assert field == NTP_FRAME[:FIRST_NUL]


def test_the_last_byte_that_matched_is_a_terminator() -> None:
    """The 14th byte that matched was the terminator of the cut copy; the bytes after it are not of
    the frame.
    """
    copy = AsBccMapsIt.from_buffer(in_memory()).data
    terminated = ctypes.string_at(copy, len(copy) + 1)  # inside the copy, whose terminator CPython guarantees

    assert terminated == NTP_FRAME[: FIRST_NUL + 1] == PRINTED[: FIRST_NUL + 1]
    assert PRINTED[FIRST_NUL + 1 :] not in NTP_FRAME


def test_a_pointer_cast_of_the_field_points_elsewhere() -> None:
    """Casting the field to a pointer gives the temporary copy, not the buffer: the rest is the
    Python heap.
    """
    held = AsBccMapsIt.from_buffer(in_memory())
    copy = held.data
    pointer = ctypes.cast(copy, ctypes.POINTER(ctypes.c_char))
    start, end = ctypes.addressof(held), ctypes.addressof(held) + ctypes.sizeof(held)

    assert not start <= ctypes.addressof(pointer.contents) < end


def test_the_right_ways_give_the_complete_frame() -> None:
    """The address of the field, an array of unsigned bytes and a view of the memory each give all
    90 bytes.
    """
    memory = in_memory()
    held = AsBccMapsIt.from_buffer(memory)
    size = len(NTP_FRAME)

    assert ctypes.string_at(ctypes.addressof(held) + AsBccMapsIt.data.offset, size) == NTP_FRAME
    assert bytes(AsItShouldBe.from_buffer(memory).data[:size]) == NTP_FRAME
    assert bytes(memoryview(memory).cast("B")[:size]) == NTP_FRAME


def test_no_module_reads_a_char_array() -> None:
    """No module of the package uses `c_char` arrays of ctypes: packet bytes are only read through
    views.
    """
    package = Path(__file__).parents[2] / "skbcapd"
    guilty = [path.name for path in package.rglob("*.py") if "c_char *" in path.read_text()]

    assert guilty == []
