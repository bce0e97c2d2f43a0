"""Reads the shared segments: committed ranges of blocks, in the order in which the kernel program
reserved them.

In: the memory that the kernel program writes (bpf/segment.h). Out: ranges, each with the offsets of
its local blocks; the records of those blocks.

The rules: a range is returned only when every byte of it is committed, and its segment is released
only after the range has been processed, and nobody uses its memory any more (`Lending`). `committed`
is read before the cursor: if both are equal, everything reserved until then is complete. What must
not be reordered has `order_accesses` in between.

Plain ranges are not parsed: they are written to the file as they are. Python writes local blocks
again (a packet without a label, a frame that could not be read to its end).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from skbcapd.errors import SegmentError
from skbcapd.kernel import abi
from skbcapd.kernel.abi import Geometry
from skbcapd.pcapng.blocks import BLOCK_MIN, PACKET, PACKET_HEAD, block_at, walk
from skbcapd.pcapng.comment import Label, read_label
from skbcapd.pcapng.interface import DISK_BLOCK

# In a struct upcall: the key, and the names as the kernel compares them.
_IDENTITY = abi.KEY.size + 48
_REPEATED = abi.UPCALL.only("packet_id", "checksum", "flags", "payload")
_WITHOUT_LABEL = (abi.BLOCK_UPCALL, abi.BLOCK_DROP)
_USED, _COMMITTED, _UPCALLS, _BEGIN = range(4)
LOCAL_PER_RANGE = 128  # with more, the range ends: each takes Python about 0.1 ms, and the event loop has other work


class Lending:
    """Who still uses the memory of one segment.

    Args:
        control: struct control as u64 words.
        returned: called when nobody uses it any more; in the thread of the last user.
    """

    def __init__(self, control: memoryview, returned: Callable[[], None]) -> None:
        self.placed = 0
        """Where its bytes are in a block of the disk, minus where they are in the stream of all bytes."""
        self._users: list[None] = []  # one entry each: `append` and `pop` are atomic, an addition is not
        self._control = control
        self._returned = returned

    @property
    def is_over(self) -> bool:
        """Whether nobody uses it."""
        return not self._users

    def take(self) -> None:
        """There is one more user."""
        self._users.append(None)

    def give_back(self) -> None:
        """There is one less; any thread can call this."""
        self._users.pop()
        if not self._users:
            self._returned()

    def wish(self, drift: int) -> None:
        """Let the kernel program place the next segment so many bytes later in a block of the disk than this one."""
        self._control[abi.PLACED] = (self.placed + drift) % DISK_BLOCK


class Loan(NamedTuple):
    """Memory of a segment that an output may use for longer than the call that passes it."""

    lending: Lending
    at: int  # offset of the bytes in the segment, which begins at a page

    def take(self) -> None:
        """Keep the memory until `give_back`: the segment is not released."""
        self.lending.take()

    def give_back(self) -> None:
        """The memory is not used any more; any thread can call this, once for each `take`."""
        self.lending.give_back()

    def behind(self, size: int) -> Loan:
        """The same memory, from so many bytes later on."""
        return Loan(self.lending, self.at + size)

    def wish(self, drift: int) -> None:
        """Say where the next bytes should be: see pcapng.interface.Loan."""
        self.lending.wish(drift)


class Range(NamedTuple):
    """Committed blocks, complete and in order.

    Args:
        view: the bytes, valid until the next range is requested; longer for who takes the loan.
        local: offsets in `view` of the local blocks, ascending.
        loan: the memory of `view`; None: it is scarce, and must be copied.
    """

    view: memoryview
    local: list[int]
    loan: Loan | None

    def loan_from(self, offset: int) -> Loan | None:
        """The loan of the bytes from an offset in `view` on."""
        return self.loan and self.loan.behind(offset)


@dataclass(frozen=True, slots=True)
class Upcall:
    """A packet without a label, with the data that the kernel program has about its process and
    interface.
    """

    time_ns: int
    frame: memoryview
    original_len: int
    net: int  # net_cookie of the namespace of its interface
    ifindex: int
    direction: int  # 1 in, 2 out
    via: int  # enum via of bpf/layout.h
    tgid: int
    tid: int
    start: int  # of the thread, ns since boot
    linked: int  # whether packets of its key have an identifier
    comm: bytes
    process: bytes  # name of the thread group leader
    interface_name: bytes
    mac: bytes
    packet_id: int  # epb_packetid
    sk: int  # address of a socket whose user must be looked up
    inode: int  # of that socket; 0: none
    identity: int  # of that socket
    checksum: int  # see checksum.py; 0: nothing to complete
    netns: int  # inode number of the network namespace
    flags: int  # epb_flags
    interface_type: int  # ARPHRD_*
    key: bytes  # abi.KEY, for the label
    # names of thread, interface and process as the kernel compares them: 16 bytes each, with the
    # bytes after the NUL
    names: bytes
    size: int  # bytes of its block
    slot: int  # its row of counters
    payload: int  # offset of the payload in the frame; at most 508
    dropped: abi.Dropped | None = None  # why and where the kernel dropped it; None: it was captured at an interface

    @property
    def alike(self) -> bytes:
        """What packets that are treated alike have in common; as identity_of."""
        dropped = b"" if self.dropped is None else abi.DROPPED.pack(*self.dropped)
        return dropped + self.key + self.names


@dataclass(frozen=True, slots=True)
class Cut:
    """A packet with a label that Python writes again: it could not be read to its end, or its
    checksum must be computed.
    """

    time_ns: int
    frame: memoryview
    original_len: int
    interface_id: int  # in the file
    stamp: Label  # its options
    packet_id: int  # epb_packetid; 0: none
    checksum: int  # see checksum.py; 0: nothing to compute
    flags: int
    size: int


@dataclass(frozen=True, slots=True)
class Repeated:
    """A packet without a label, of which only what differs from an earlier one with the same identity is read."""

    time_ns: int
    frame: memoryview
    original_len: int
    slot: int  # row of counters that it was counted in
    packet_id: int  # epb_packetid
    checksum: int  # see checksum.py; 0: nothing to complete
    flags: int
    size: int
    payload: int  # offset of the payload in the frame


Packet: TypeAlias = Upcall | Cut | Repeated
"""What Python writes itself."""


_lock = threading.Lock()


def order_accesses() -> None:
    """Order all accesses to shared memory before this call before all accesses after it.

    Python has no memory barrier, and arm64 reorders independent loads and stores. The first release
    of the lock is a store-release, the second acquisition a load-acquire: accesses before the one
    and after the other stay there, and these two are not exchanged.

    Source: Arm Architecture Reference Manual, B2.3 (barrier-ordered-before); sem_post and
    sem_trywait of glibc, which are CPython's locks.
    """
    with _lock:
        pass
    with _lock:
        pass


class SegmentReader:
    """Reads the segments of one kernel program.

    Args:
        memory: the segments, abi.SEGMENT_STRIDE bytes each.
        control: struct control as u64 words, before the first reservation. The reader sets cursor
            and tail, and later writes `tail` and the states of consumed segments.
        geometry: number of segments.
    """

    def __init__(self, memory: memoryview, control: memoryview, geometry: Geometry) -> None:
        self._memory = memory
        self._control = control
        self._count = geometry.segment_count
        # Numbers start with the second round, so an entry of a list that was never written (0)
        # belongs to no segment.
        self._number = self._count  # of the segment that is read
        self._done = 0  # bytes of it that were returned
        self._listed = 0  # entries of its list that were read
        self._open: list[int] = []  # entries whose block was not committed yet
        self._is_consumed = True  # of the last range that was returned
        self._lendings = [Lending(control, self._note_returned) for _ in range(self._count)]
        self._read: deque[int] = deque()  # segments that were read, but are not released yet
        self._peak = 0
        self._awaits = False  # memory is scarce: what was lent is to be released as soon as it is given back
        self.returned: Callable[[], None] = lambda: None
        """Called when lent memory was given back and `ranges` should release it; by the thread of its last user."""
        self.local = 0
        """Blocks that Python has processed one by one."""
        control[abi.CURSOR], control[abi.TAIL] = self._number << 32, self._number
        self._set_wakeup()

    @property
    def is_drained(self) -> bool:
        """Whether all reserved bytes have been returned."""
        return int(self._control[abi.CURSOR]) == self._number << 32 | self._done

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to return, and no segment to release."""
        return not self._read and self.is_drained

    @property
    def is_behind(self) -> bool:
        """Whether half of the memory is waiting to be read."""
        return 2 * (int(self._control[abi.CURSOR] >> 32) - self._number) >= self._count

    @property
    def is_scarce(self) -> bool:
        """Whether three quarters of the memory are in use: waiting to be read, or lent."""
        return 4 * (int(self._control[abi.CURSOR] >> 32) - int(self._control[abi.TAIL])) >= 3 * self._count

    @property
    def has_upcalls(self) -> bool:
        """Whether a packet without a label can wait: in the current segment, or in a later one."""
        control, state = self._control, abi.STATES + self._number % self._count * abi.STATE_WORDS
        return int(control[state + _UPCALLS]) > self._listed or int(control[abi.CURSOR] >> 32) != self._number

    @property
    def position(self) -> int:
        """The end of the last consumed range; comparable with the cursor."""
        return self._number << 32 | self._done

    def take_peak(self) -> int:
        """The largest number of bytes that waited for a drain, since the last call."""
        peak, self._peak = self._peak, 0
        return peak

    def ranges(self) -> Iterator[Range]:
        """All committed ranges; ends when the next block is not complete.

        A range is consumed when the next one is requested, or by `consume`. Otherwise it is
        returned again. This is also where segments that nobody uses any more are released, and
        where the kernel program is told when to wake Python.

        Raises:
            SegmentError: the memory has content that the kernel program cannot have written.
        """
        control = self._control
        cursor = int(control[abi.CURSOR])
        ahead = (cursor >> 32) - self._number
        self._peak = max(self._peak, ahead * abi.SEGMENT_SIZE + (cursor & 0xFFFFFFFF) - self._done)
        while True:
            self._release()
            self._set_wakeup()
            state = abi.STATES + self._number % self._count * abi.STATE_WORDS
            committed = control[state + _COMMITTED]
            order_accesses()
            cursor = control[abi.CURSOR]
            sealed = cursor >> 32 != self._number
            end = control[state + _USED] if sealed else cursor & 0xFFFFFFFF
            # `begin` is written before the first block is committed: until then, less is committed.
            begin, placed = control[state + _BEGIN] & 0xFFFFFFFF, control[state + _BEGIN] >> 32
            if committed != end - begin or (sealed and not end):
                return
            if not self._done:
                self._done, self._lendings[self._number % self._count].placed = begin, placed
            if end > abi.SEGMENT_SIZE or end < self._done:
                raise SegmentError(f"segment {self._number} ends at {end}; expected {self._done} to {abi.SEGMENT_SIZE}")
            if end > self._done:
                yield from self._parts(control[state + _UPCALLS], end)
            if not sealed:
                return
            self._read.append(self._number)
            self._number += 1
            self._done, self._listed, self._open = 0, 0, []

    def _release(self) -> None:
        """Release the segments that were read, up to the first one that is still used."""
        control = self._control
        self._awaits = self.is_scarce  # before the look: what is returned later is announced
        while self._read and self._lendings[self._read[0] % self._count].is_over:
            number = self._read.popleft()
            state = abi.STATES + number % self._count * abi.STATE_WORDS
            for word in range(abi.STATE_WORDS):
                control[state + word] = 0
            order_accesses()  # from here on, the kernel program uses the segment again
            control[abi.TAIL] = number + 1

    def _note_returned(self) -> None:
        if self._awaits:
            self._awaits = False  # `ranges` sets it again
            self.returned()

    def _set_wakeup(self) -> None:
        """Python is to be woken when a quarter of the segments wait to be read, or when three quarters are in use."""
        quarter = self._count // 4
        self._control[abi.WAKE_AT] = min(self._number + quarter, int(self._control[abi.TAIL]) + 3 * quarter)

    def consume(self, blocks: Range) -> None:
        """Consume a range before the loop ends, so that it is not returned again."""
        if not self._is_consumed:
            self._done += len(blocks.view)
            self._is_consumed = True

    def _parts(self, upcalls: int, end: int) -> Iterator[Range]:
        """The complete part of a segment, in ranges of at most LOCAL_PER_RANGE local blocks."""
        slot = self._number % self._count
        start = slot * abi.SEGMENT_STRIDE
        loan = None if self.is_scarce else Loan(self._lendings[slot], self._done)
        with self._memory[start + self._done : start + end] as view:
            if upcalls == self._listed and not self._open:  # mostly, so nothing more is called
                self._is_consumed = False
                yield (blocks := Range(view, [], loan))
                self.consume(blocks)
                return
            local, listed, still_open = self._local_blocks(upcalls, start, end, view)
            base = self._done
            bounds = [*local[LOCAL_PER_RANGE::LOCAL_PER_RANGE], end - base]
            for at, bound in enumerate(bounds):
                first = self._done - base
                with view[first:bound] as part:
                    inside = local[LOCAL_PER_RANGE * at : LOCAL_PER_RANGE * (at + 1)]
                    self._is_consumed = False
                    self.local += len(inside)
                    yield (blocks := Range(part, [offset - first for offset in inside], loan and loan.behind(first)))
                    self.consume(blocks)
            self._listed, self._open = listed, still_open

    def _local_blocks(self, upcalls: int, start: int, end: int, view: memoryview) -> tuple[list[int], int, list[int]]:
        """Offsets in `view` of its local blocks: from the list of the segment, or by a walk if the
        list is too short.

        Also returns how many entries were read, and those of them that are still open.
        """
        if upcalls > abi.UPCALLS_LISTED:
            walked = [offset for offset, kind, _ in walk(view) if kind != PACKET]
            # Not all of `upcalls`: a block after this range can be counted already.
            return walked, self._listed - len(self._open) + len(walked), []
        found, still_open = [], []
        for entry in [*self._open, *range(self._listed, upcalls)]:
            place = int.from_bytes(self._memory[start + abi.LISTING + 8 * entry :][:8], "little")
            offset = place & 0xFFFFFFFF
            if place >> 32 != self._number & 0xFFFFFFFF or offset >= end:
                still_open.append(entry)  # its block is after this range
            elif offset >= self._done:
                found.append(offset - self._done)
        return sorted(found), upcalls, still_open


def identity_of(view: memoryview, offset: int) -> bytes:
    """What packets that are treated alike have in common: key and names of the packet without a label at an offset,
    for one that the kernel has dropped also why.

    Empty for any other block. `read_repeated` reads what differs, in a fraction of the time of `read_local`.
    """
    kind, size = block_at(view, offset)
    at = offset + size - 4 - abi.UPCALL.size
    before = abi.DROPPED.size if kind == abi.BLOCK_DROP else 0
    if kind not in _WITHOUT_LABEL or at - before < offset + PACKET_HEAD.size:
        return b""
    return bytes(view[at - before : at + _IDENTITY])


def read_repeated(view: memoryview, offset: int) -> Repeated:
    """Decode a packet without a label whose identity is known.

    Raises:
        SegmentError: it is not a complete one.
    """
    kind, size, slot, high, low, cap_len, original_len = PACKET_HEAD.unpack_from(view, offset)
    start, at = offset + PACKET_HEAD.size, offset + size - 4 - abi.UPCALL.size
    if start + cap_len > at - (abi.DROPPED.size if kind == abi.BLOCK_DROP else 0):
        raise SegmentError(f"the block at {offset} has {at - start} bytes for a frame of {cap_len}")
    packet_id, checksum, flags, payload = _REPEATED.unpack_from(view, at)
    return Repeated(
        high << 32 | low, view[start : start + cap_len], original_len, slot, packet_id, checksum, flags, size, payload
    )


def read_local(view: memoryview, offset: int) -> Upcall | Cut:
    """Decode the local block at an offset of a range.

    Raises:
        SegmentError: it is no local block, or not a complete one.
    """
    kind, size = block_at(view, offset)
    cut_options = kind >> abi.CUT_OPTIONS_BIT & abi.CUT_OPTIONS_MASK
    is_cut = kind == abi.BLOCK_CUT | cut_options << abi.CUT_OPTIONS_BIT
    if not is_cut and kind not in _WITHOUT_LABEL:
        raise SegmentError(f"the block at {offset} is of type {kind:#x}; expected a local block")
    _, _, number, high, low, cap_len, original_len = PACKET_HEAD.unpack_from(view, offset)
    time_ns = high << 32 | low
    dropped_len = abi.DROPPED.size if kind == abi.BLOCK_DROP else 0
    behind, needed = size - BLOCK_MIN - cap_len, cut_options if is_cut else abi.UPCALL.size + dropped_len
    if behind < needed:
        raise SegmentError(f"the block at {offset} has {behind} bytes after its frame; expected {needed} or more")
    frame = view[offset + PACKET_HEAD.size : offset + PACKET_HEAD.size + cap_len]
    end = offset + size
    if is_cut:
        stamp, flags, packet_id = read_label(bytes(view[end - 4 - cut_options : end - 4]))
        checksum = int.from_bytes(view[end - 4 : end], "little")
        return Cut(time_ns, frame, original_len, number, stamp, packet_id, checksum, flags, size)
    at = end - 4 - abi.UPCALL.size
    call = abi.UPCALL.unpack(view, at)
    return Upcall(
        time_ns=time_ns,
        frame=frame,
        original_len=original_len,
        net=call.net,
        ifindex=call.ifindex,
        direction=call.direction,
        via=call.via,
        tgid=call.tgid,
        tid=call.tid,
        start=call.start,
        linked=call.linked,
        comm=call.comm.split(b"\0")[0],
        process=call.process.split(b"\0")[0],
        interface_name=call.device.split(b"\0")[0],
        mac=call.mac[: call.addr_len],
        packet_id=call.packet_id,
        sk=call.sk,
        inode=call.inode,
        identity=call.identity,
        checksum=call.checksum,
        netns=call.netns,
        flags=call.flags,
        interface_type=call.device_type,
        key=bytes(view[at : at + abi.KEY.size]),
        names=call.comm + call.device + call.process,
        size=size,
        slot=number,
        payload=call.payload,
        dropped=abi.DROPPED.unpack(view, at - abi.DROPPED.size) if kind == abi.BLOCK_DROP else None,
    )
