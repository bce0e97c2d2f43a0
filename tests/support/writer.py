"""The kernel program's side of the shared segments, in Python: bpf/segment.h step by step, and
blocks to write.

Each step that another CPU could see is one step of a generator, so a test can interleave several
writers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from skbcapd.kernel import abi
from skbcapd.kernel.abi import Geometry
from skbcapd.pcapng.blocks import PACKET
from skbcapd.pcapng.comment import Label, label
from skbcapd.pcapng.interface import DISK_BLOCK

USED, COMMITTED, UPCALLS, BEGIN = range(4)
PLAIN = label((), 0, 0, 0)


class Writer:
    """Shared memory of some segments, as mapped after load: all zeros."""

    def __init__(self, segments: int = 4) -> None:
        self.geometry = Geometry(segments)
        self.bytes = bytearray(abi.SEGMENT_STRIDE * segments)
        self.memory = memoryview(self.bytes)
        self.control = memoryview(bytearray(self.geometry.control_size)).cast("Q")

    def state(self, number: int, word: int) -> int:
        """Index in `control` of a word of the state of a segment."""
        return abi.STATES + number % self.geometry.segment_count * abi.STATE_WORDS + word

    def steps(self, block: bytes) -> Iterator[bool]:
        """One writer: reserve, then commit. Yields True after each step; False if there is no
        space.
        """
        cursor = self.control[abi.CURSOR]
        number, at = cursor >> 32, cursor & 0xFFFFFFFF
        sealed = at + len(block) > abi.SEGMENT_SIZE
        if sealed:
            number += 1
            if number >= self.control[abi.TAIL] + self.geometry.segment_count:
                yield False
                return
        placed = self.control[abi.PLACED]
        before = self.control[self.state(number - 1, BEGIN)] >> 32
        start = (at + placed - before) % DISK_BLOCK if sealed else at
        self.control[abi.CURSOR] = number << 32 | start + len(block)
        yield True
        if sealed:
            self.control[self.state(number, BEGIN)] = placed << 32 | start
            yield True
            self.control[self.state(number - 1, USED)] = at
            yield True
        base = number % self.geometry.segment_count * abi.SEGMENT_STRIDE
        self.bytes[base + start : base + start + len(block)] = block
        if int.from_bytes(block[:4], "little") != PACKET:
            listed = self.control[self.state(number, UPCALLS)]
            self.control[self.state(number, UPCALLS)] = listed + 1
            yield True
            if listed < abi.UPCALLS_LISTED:
                struct.pack_into("<Q", self.bytes, base + abi.LISTING + 8 * listed, number << 32 | start)
                yield True
        self.control[self.state(number, COMMITTED)] += len(block)
        yield True

    def put(self, *blocks: bytes) -> int:
        """Write complete blocks, one after the other; returns how many fitted."""
        return sum(all(list(self.steps(block))) for block in blocks)


def block(kind: int, number: int, frame: bytes, options: bytes, time_ns: int = 0, original_len: int = 0) -> bytes:
    """A block with the layout of write_header in bpf/skbcapd.bpf.c."""
    body = frame + bytes(-len(frame) % 4) + options
    head = struct.pack(
        "<7I", kind, 32 + len(body), number, time_ns >> 32, time_ns & 0xFFFFFFFF, len(frame), original_len or len(frame)
    )
    return head + body + struct.pack("<I", 32 + len(body))


def packet(number: int, frame: bytes = b"", options: bytes = b"") -> bytes:
    """The block of a packet with a label; `number` is its interface."""
    return block(PACKET, number, frame, options)


def cut(
    number: int,
    frame: bytes,
    flags: int,
    original_len: int,
    *,
    stamp: Label = PLAIN,
    checksum: int = 0,
    packet_id: int = 0,
) -> bytes:
    """A packet with a label that could not be read to its end, on the interface with a number; `frame` is the
    readable part of `original_len` bytes.
    """
    options = bytearray(stamp.options)
    options[stamp.flags_at : stamp.flags_at + 4] = struct.pack("<I", flags)
    if stamp.linked:
        options[stamp.flags_at + 8 : stamp.flags_at + 16] = struct.pack("<Q", packet_id)
    whole = frame + bytes(-original_len % 4 + original_len - len(frame))
    kind = abi.BLOCK_CUT | len(options) << abi.CUT_OPTIONS_BIT
    made = bytearray(block(kind, number, whole, bytes(options), 7, original_len))
    struct.pack_into("<I", made, 20, len(frame))
    struct.pack_into("<I", made, len(made) - 4, checksum)
    return bytes(made)


def upcall(
    frame: bytes,
    *,
    number: int = 0,
    time_ns: int = 0,
    original_len: int = 0,
    net: int = 1,
    ifindex: int = 2,
    direction: int = 2,
    via: int = 0,
    tgid: int = 1058,
    tid: int = 1059,
    start: int = 59_000_000_000,
    linked: int = 0,
    comm: bytes = b"chronyd",
    process: bytes = b"chronyd",
    device: bytes = b"eth0",
    mac: bytes = bytes.fromhex("3c7c3f2023bd"),
    packet_id: int = 0,
    sk: int = 0,
    inode: int = 0,
    identity: int = 0,
    checksum: int = 0,
    netns: int = 4026531840,
    flags: int = 2,
    device_type: int = 1,
    payload: int = 42,
) -> bytes:
    """The block of a packet without a label."""
    call = abi.UPCALL.pack(
        *(net, ifindex, direction, tgid, tid, start, via, linked),
        *(comm, device, process, mac, packet_id, sk, inode, identity, checksum, netns, flags, device_type, len(mac)),
        payload,
    )
    return block(abi.BLOCK_UPCALL, number, frame, call, time_ns, original_len)


def dropped(frame: bytes, *, reason: int = 7, at: tuple[int, bytes] = (2, b"eth0"), **changes: Any) -> bytes:
    """The block of a packet that the kernel has dropped on an interface (number and name); changes as for `upcall`."""
    given: dict[str, Any] = {"device": b"drops", "ifindex": abi.DROPS_ETHERNET, "mac": b""} | changes
    made = upcall(frame, **given)
    end, size = len(made) - 4 - abi.UPCALL.size, len(made) + abi.DROPPED.size
    why = abi.DROPPED.pack(0, reason, *at)
    return struct.pack("<II", abi.BLOCK_DROP, size) + made[8:end] + why + made[end:-4] + struct.pack("<I", size)
