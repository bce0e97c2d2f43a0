"""The rooms joined: the one place that knows the order in which a packet passes them.

    kernel program -> segments -> (no label yet: who, which device, label) -> pcapng -> file

In: a loaded program, an output, what is wanted. Out: packets in the output, and totals.

The rule: nothing here runs once per packet, except for packets without a label. What the kernel has labelled is
written as it lies in memory. And every packet is counted once: seen = written + filtered + duplicates + lost.
"""

from __future__ import annotations

import contextlib
import fnmatch
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from skbcapd.attribution.namespaces import is_called
from skbcapd.attribution.processes import NS_PER_TICK, Process, Processes, User, boot_ns
from skbcapd.attribution.sockets import Flow
from skbcapd.capture import checksum
from skbcapd.capture.resolver import Resolver
from skbcapd.capture.rules import Person, Rules, Subject, Verdict
from skbcapd.errors import KernelError
from skbcapd.filter.packet_filter import Matcher
from skbcapd.kernel import abi
from skbcapd.kernel.loader import Loader
from skbcapd.kernel.marker import Marker
from skbcapd.kernel.program import Counters, Program
from skbcapd.kernel.segments import Cut, Range, SegmentReader, Upcall, read_local, walk
from skbcapd.output.interface import Output, Statistics
from skbcapd.pcapng.comment import CHECKSUM_NOT_READY, DIRECTION_IN, DIRECTION_OUT, Label, label
from skbcapd.pcapng.interface import Interface
from skbcapd.pcapng.link_type import link_type

ANY = "any"
_Local = TypeVar("_Local", Upcall, Cut)
_PROOF_SECONDS = 2.0
_SETTLE_SECONDS = 2.0
_LABELS_REMEMBERED = 4 * abi.LABELS_MAX
_TAKEN_REMEMBERED = 2 * abi.SIGHTINGS
DEVICES_REMEMBERED = 4 * abi.DEVICES_MAX
INTERFACES_MAX = 1 << 16  # of one section: our own reader takes no more
_TGID_MAX = 4 << 20  # PID_MAX_LIMIT of include/linux/threads.h
_TAKEN_IN_KERNEL = {"comm", "pid", "tgid", "none"}  # fields of a comment that need no look at /proc
# enum via of bpf/layout.h; the plain case is not mentioned
_VIA = ("", "socket", "flow", "inode", "path", "kernel", "forwarded", "unknown", "group")  # by enum via


class Sampler(Protocol):
    """Looks at packets on their way to the output; of how many is its own affair."""

    def look_at(self, view: memoryview) -> None:
        """Ready blocks."""
        ...

    def look_at_one(self, options: bytes, original_len: int) -> None:
        """A packet through Python."""
        ...


@dataclass(frozen=True, slots=True)
class Totals:
    """What became of the packets.

    Once the capture has ended, seen = written + filtered + duplicates + own + kernel.lost + lost + unasked.
    """

    written: int
    filtered: int
    duplicates: int  # seen before, on another device
    own: int  # of the self-test at start
    lost: int  # in Python
    missed: int  # never seen by the program: the kernel would not run it inside itself
    kernel: Counters
    processes: int
    unasked: int = 0  # only in memory, or no longer there, as nobody asked for a dump


class _Numbers:
    """A set of numbers, a bit for each: however many there are, it is no larger.

    Args:
        most: numbers from 1 to this one are counted, no others.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bits = bytearray(most // 8 + 1)
        self.count = 0

    def add(self, number: int) -> None:
        """Count a number, unless it has been."""
        at, bit = number >> 3, 1 << (number & 7)
        if 0 < number <= self._most and not self._bits[at] & bit:
            self._bits[at] |= bit
            self.count += 1


@dataclass(slots=True)
class _Device:
    """A device under one name, and where its packets go."""

    interface_id: int  # -1: to be numbered anew
    slot: int
    wanted: bool
    interface: Interface | None = None
    early: int = 0  # packets written before the program knew its slot
    link_type: int = 0


class _Decision(NamedTuple):
    """What holds for all packets of a label."""

    process: Process | None
    verdict: Verdict
    stamp: Label


@dataclass(slots=True)
class Capture:
    """One capture, from attach to the last drained packet.

    Args:
        program: loaded, not attached.
        output: where packets go.
        interfaces: device names or globs, or ("any",).
        namespaces: network namespaces that they are in, by name or inode number, "self" being this process's; none
            said: all of them for ("any",), else self.
        exclude: device names or globs, of any namespace, that are not wanted all the same.
        snaplen: bytes kept of each frame.
        limit: stop after so many packets; 0 for no limit.
        warn: takes one line that the user should see.
        find_holders: the processes that hold a socket with an inode number, seen at a time; see Resolver.
        list_holders: all of them; None when that takes too long.
        list_flows: the TCP connections and listeners that there are.
        describe_namespace: a network namespace's cookie and inode number to words for `if_description`.
        fill: complete checksums that hardware was to complete.
        dedup: take a packet only where it is seen first.
        comment: which fields of the process a packet's comment has, in order.
        process_blocks: describe each process to the output.
        processes: what is known of processes beside their names and ids.
        filter: the packet filter that the program was loaded with, for the file to name.
        rules: the process rules; the program was loaded with their filters.
        ask_for_dump: told which rule wants what is in memory to be written.
        sampler: looks at packets on their way; None: nobody does.
    """

    program: Program
    output: Output
    interfaces: Sequence[str] = (ANY,)
    snaplen: int = abi.CAPTURE_MAX
    limit: int = 0
    warn: Callable[[str], None] = print
    find_holders: Callable[[int, int], tuple[User, ...] | None] = lambda _inode, _seen_ns: None
    list_holders: Callable[[], Mapping[int, tuple[User, ...]] | None] = dict
    list_flows: Callable[[], Sequence[Flow]] = tuple
    describe_namespace: Callable[[int, int], str] = lambda _cookie, inode: f"network namespace {inode}"
    fill: bool = False
    dedup: bool = False
    comment: Sequence[str] = ("comm", "pid", "tgid")
    process_blocks: bool = False
    processes: Processes = field(default_factory=Processes)
    exclude: Sequence[str] = ()
    namespaces: Sequence[str] = ()
    filter: str = ""
    rules: Rules = field(default_factory=Rules)
    ask_for_dump: Callable[[str], None] = lambda _why: None
    sampler: Sampler | None = None
    _matcher: Matcher = field(init=False)
    _resolver: Resolver = field(init=False)
    _reader: SegmentReader = field(init=False)
    _marker: Marker | None = None
    _devices: OrderedDict[tuple[int, int, bytes], _Device] = field(default_factory=OrderedDict)
    _devices_met: int = 0
    _interfaces: int = 0  # that the output has numbered
    _labels: dict[int, tuple[int, Label]] = field(default_factory=dict)
    _decided: dict[bytes, _Decision] = field(default_factory=dict)  # in this drain: its other packets came too early
    _installs: bool = True  # labels
    _next_label: int = 0
    _processes_seen: _Numbers = field(default_factory=lambda: _Numbers(_TGID_MAX))
    _counted: int = 0  # packets written while there is a limit
    _filtered: int = 0
    _own: int = 0  # the self-test's
    _duplicates: int = 0  # that the program could not tell: nothing was decided about the packet elsewhere
    _taken: OrderedDict[int, None] = field(default_factory=OrderedDict)  # identifiers of packets written with `dedup`
    _private_net: int = 0
    _is_proven: bool = False
    _lost: int = 0
    _settled: int = 0  # packets that are certain to be written, or in the output's memory
    _broken: bool = False
    _is_held_back: bool = False  # the output may keep the end of what it got until the next flush
    _netns: int = field(default_factory=lambda: Path("/proc/self/ns/net").stat().st_ino)

    def __post_init__(self) -> None:
        program = self.program
        self._reader = SegmentReader(program.memory, program.control, program.geometry)
        program.control[abi.WAKE_BACKLOG] = max(1, program.geometry.segment_count // 4)
        program.control[abi.DEVICE_FILTER] = ANY not in self.interfaces or bool(self.exclude or self.namespaces)
        self._set_control()
        self._resolver = Resolver(program, self.find_holders, boot_ns)
        self._resolver.refill()

    def _set_control(self) -> None:
        """Tell the program what may change while it runs."""
        control = self.program.control
        # A packet without a label comes whole enough for what may be decided about it.
        control[abi.SNAPLEN] = abi.CAPTURE_MAX if self.rules.filters else max(self.snaplen, self.rules.most)
        control[abi.FILTERED] = bool(self.filter)
        control[abi.FILL] = self.fill
        control[abi.DEDUP] = self.dedup
        self._matcher = Matcher(self.rules.filters)

    def start(self) -> None:
        """Measure, attach, and prove that a paged frame arrives whole.

        Raises:
            KernelError: the kernel refuses a hook.
        """
        try:
            self._marker = Marker()
            self._private_net = self._marker.net if self._marker.is_private else 0
            self.program.control[abi.OWN_NET] = self._private_net
            self.program.measure(self._marker)
        except (KernelError, OSError) as error:
            self.warn(f"cannot measure where the kernel maps its pages: {error}")
        if not self.program.process_context:
            self.warn("cannot tell system calls from softirqs on this kernel: packets are captured without a process")
        self._resolver.tell(self.list_flows(), self.list_holders() or {})
        self.program.attach()
        self._resolver.retell(self.list_flows())
        is_seen = any(hook.function == "on_transmit" for hook in self.program.hooks)  # what leaves by loopback
        if self._marker is not None and self.program.paged and is_seen:
            self._prove(self._marker)
        if not self.program.control[abi.PAGE_BASE]:
            self.warn("paged frames cannot be read on this kernel: they are captured up to their linear part")
        if self._marker is not None:
            self._marker.close()
            self._marker = None

    def change(self, child: Loader | None, **chosen: Any) -> None:
        """Go on with other settings, from one packet to the next: no label that was made before holds any more.

        Args:
            child: has compiled the filters, see Program.compile_filters; None when there are none, or the same.
            **chosen: fields of this class that may change: what is kept, and how it is written.

        Raises:
            KernelError: the filters cannot be loaded; all stays as it was.
        """
        # First of all: who has passed the old filter under an old label is asked about anew, by `take`.
        self.program.control[abi.GENERATION] += 1
        if child is not None:
            self.program.exchange_filters(child)
        for name, value in chosen.items():
            setattr(self, name, value)
        self._set_control()

    @property
    def is_proven(self) -> bool:
        """Whether the self-test at start brought a paged frame back whole."""
        return self._is_proven

    @property
    def devices(self) -> int:
        """How many devices were met."""
        return self._devices_met

    @property
    def labels(self) -> int:
        """How many labels were made."""
        return self._next_label

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return bool(self.limit) and self._counted >= self.limit

    def drain(self) -> int:
        """Write all that is complete; returns how many bytes of the segments that was.

        Raises:
            OSError: the output refuses (BrokenPipeError: its reader has gone).
        """
        moved = 0
        self._decided.clear()
        for blocks in self._reader.ranges():
            moved += len(blocks.view)
            if self._reader.is_behind:
                self.output.hurry()
            if self._broken:
                self._lost += sum(1 for _ in walk(blocks.view))
            elif not self.is_full:
                self._write(blocks)
        if (moved or self._is_held_back) and not self._broken:
            self.output.flush()
            self._resolver.refill()
        self._is_held_back = bool(moved)
        return moved

    def settle(self) -> Totals:
        """Drain, and tell the totals of which each figure only rises, as counters of a monitoring system must.

        What the program has handed over and Python has not yet seen is not written yet: it may still be filtered, or
        lost. So only that counts as written which was delivered before this drain, if the drain has come past it.
        """
        kernel, cursor = self.counters(), int(self.program.control[abi.CURSOR])
        self.drain()
        if self._is_held_back:
            self.output.flush()
            self._is_held_back = False
        if self._reader.position >= cursor:
            gone = self._filtered + self._duplicates + self._lost + self.output.lost + self._own
            certain = kernel.delivered - gone
            self._settled = max(self._settled, certain)
        totals = self.totals()
        dumped = self.output.dumped
        written = self._settled if dumped is None else dumped
        return replace(totals, written=written, unasked=max(0, self._settled - written))

    def fall_asleep(self) -> bool:
        """Ask to be woken by the next packet; False when one has come already."""
        self.program.control[abi.SLEEPING] = 1
        if self._reader.is_drained:
            return True
        self.program.control[abi.SLEEPING] = 0
        return False

    def wake_up(self) -> None:
        """Ask no longer to be woken."""
        self.program.control[abi.SLEEPING] = 0
        self.program.take_wakeups()

    def stop(self, *, broken: bool = False) -> None:
        """Detach, then write what was captured until then.

        Args:
            broken: the output takes no more; what is left is counted as lost.
        """
        self._broken = broken
        self.program.detach()
        deadline = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < deadline:
            self.drain()
            counters = self.counters()
            # A program that runs on another processor while its hook goes away still ends, and is counted.
            if self._reader.is_drained and counters.seen == counters.outcomes:
                break
        if not broken:
            self.output.finish(self.statistics())

    def statistics(self) -> list[Statistics]:
        """What became of the packets of each interface until now; not of devices that share a row of counters."""
        found = []
        for device in self._devices.values():
            if device.interface and device.interface_id >= 0 and device.slot < abi.SLOTS - 1:
                row = self.program.counters(device.slot)
                early, received = device.early, row.outcomes + device.early
                accepted, delivered = received - row.filtered, row.delivered + early
                found.append(Statistics(device.interface_id, device.slot, received, accepted, row.lost, delivered))
        return found

    def renumber(self) -> None:
        """Forget all labels and the numbers of interfaces, so that the output may give new ones.

        Packets with the old numbers are written first: labels go, every program that has seen one ends (membarrier
        waits for that), and what they have reserved is drained. First packets among that get no label: it would have
        the old number of its interface.
        """
        self.program.clear_labels()
        self._installs = False
        try:
            self.drain()
        finally:
            self._installs = True
        self._labels.clear()
        self._decided.clear()
        self._interfaces = 0
        for device in self._devices.values():
            device.interface_id = -1

    def counters(self) -> Counters:
        """The program's counters over all devices."""
        slots = min(self._devices_met + 1, abi.SLOTS)
        return sum((self.program.counters(slot) for slot in range(slots)), Counters())

    def totals(self) -> Totals:
        """What became of the packets until now."""
        kernel = self.counters()
        lost = self._lost + self.output.lost
        written = (
            self._counted if self.limit else kernel.delivered - self._filtered - self._duplicates - lost - self._own
        )
        dumped = self.output.dumped
        unasked = 0 if dumped is None else written - dumped
        filtered = kernel.filtered + self._filtered
        duplicates, missed = kernel.duplicate + self._duplicates, self.program.missed()
        return Totals(
            written - unasked,
            filtered,
            duplicates,
            self._own,
            lost,
            missed,
            kernel,
            self._processes_seen.count,
            unasked,
        )

    def _prove(self, marker: Marker) -> None:
        """Send the marker through the attached program until it came back whole, or stop reading pages."""
        deadline = time.monotonic() + _PROOF_SECONDS
        self.program.control[abi.SNAPLEN] = abi.CAPTURE_MAX
        marker.send()
        while not self._is_proven and time.monotonic() < deadline:
            self.drain()
        self._set_control()
        if not self._is_proven:
            self.program.control[abi.PAGE_BASE] = 0

    def _write(self, blocks: Range) -> None:
        """Write one range: plain stretches as they are, local blocks through Python."""
        view, local = blocks.view, blocks.local
        if self.limit:
            local = [offset for offset, _, _ in walk(view)]
        done = 0
        for offset in local:
            if self.is_full:
                return
            if offset > done:
                self._hand_on(view[done:offset])
            size = int.from_bytes(view[offset + 4 : offset + 8], "little")
            if int.from_bytes(view[offset : offset + 4], "little") == abi.BLOCK_PACKET:
                self._hand_on(view[offset : offset + size])
                self._counted += 1
            else:
                self._write_local(read_local(view, offset))
            done = offset + size
        if done < len(view):
            self._hand_on(view[done:])

    def _hand_on(self, view: memoryview) -> None:
        """Ready blocks go as they are."""
        self.output.write_blocks(view)
        if self.sampler is not None:
            self.sampler.look_at(view)

    def _write_local(self, packet: Upcall | Cut) -> None:
        if isinstance(packet, Cut):
            self._write_cut(packet)
            return
        if self._is_own(packet):
            self._own += 1
            return
        device = self._device(packet)
        if not device.wanted:
            self._filtered += 1
            return
        device.early += packet.slot != device.slot
        if packet.via == abi.VIA_UNRESOLVED:
            packet = self._resolver.resolve(packet)
            process, verdict, stamp = self._decide(packet)
        else:
            process, verdict, stamp = self._label(packet, device)
        if not verdict.keeps:
            self._filtered += 1
            return
        packet = _filled(packet)
        if not self._matcher.takes(verdict.filter, device.link_type, packet.frame, packet.original_len):
            self._filtered += 1
            return
        if self.process_blocks and packet.tgid and packet.tid:
            self.output.add_process(self._described(packet, process))
        if self.dedup and packet.packet_id and not self._take(packet.packet_id):
            self._duplicates += 1
            return
        if len(packet.frame) > (snaplen := verdict.snaplen or self.snaplen):
            packet = replace(packet, frame=packet.frame[:snaplen])
        self.output.write_packet(packet, device.interface_id, stamp)
        self._counted += 1
        if verdict.dump:
            self.ask_for_dump(f"rules[{verdict.dump}]")
        self._processes_seen.add(packet.tgid)
        if self.sampler is not None:
            self.sampler.look_at_one(stamp.options, packet.original_len)

    def _take(self, packet_id: int) -> bool:
        """Whether no other sighting of a packet has been written; then this one will be."""
        if packet_id in self._taken:
            return False
        self._taken[packet_id] = None
        if len(self._taken) > _TAKEN_REMEMBERED:
            self._taken.popitem(last=False)
        return True

    def _label(self, packet: Upcall, device: _Device) -> _Decision:
        """Decide about all packets of a label, and tell the program; once in a drain, whatever is waiting."""
        decision = self._decided.get(packet.key + packet.names)
        if decision is None:
            decision = self._decided[packet.key + packet.names] = self._decide(packet)
            if self._installs and (self.output.labels or not decision.verdict.keeps):
                self._install(packet, device, decision.stamp, decision.verdict)
        return decision

    def _decide(self, packet: Upcall) -> _Decision:
        group = self._group(packet)
        process = None if group else self._process(packet)
        verdict = self.rules.decide(_subject(packet, process, group))
        return _Decision(process, verdict, self._stamp(packet, process, group))

    def _is_own(self, packet: Upcall) -> bool:
        """Whether it is of the self-test at start."""
        if self._marker is not None and self._marker.is_in(packet.net, packet.frame):
            self._is_proven = True
            return True
        return packet.net == self._private_net

    def _write_cut(self, packet: Cut) -> None:
        known = self._labels.get(packet.label_id)
        if known is None:  # older than all that are remembered
            self._lost += 1
            return
        self.output.write_packet(_filled(packet), *known)
        self._counted += 1
        if self.sampler is not None:
            self.sampler.look_at_one(known[1].options, packet.original_len)

    def _device(self, packet: Upcall) -> _Device:
        """The device of a packet; a new one gets an interface block and a row of counters."""
        identity = (packet.net, packet.ifindex, packet.device)
        device = self._devices.get(identity)
        if device is None:
            device = self._new_device(packet)
            self._devices_met += 1
            self._devices[identity] = device
            if len(self._devices) > DEVICES_REMEMBERED:
                self._devices.popitem(last=False)
        elif device.wanted:
            self._devices.move_to_end(identity)
            if device.interface_id < 0 and device.interface:
                device.interface_id = self._number(device.interface)
            return device
        # One that is not wanted is told again: the program remembers DEVICES_MAX, and forgets the least used.
        for direction in (DIRECTION_IN, DIRECTION_OUT):
            self.program.set_device(
                abi.DEVICE_KEY.pack(packet.net, packet.ifindex, direction),
                abi.DEVICE.pack(packet.names[16:], device.slot, not device.wanted),
            )
        if self.program.control[abi.DEVICE_FILTER]:
            self.program.control[abi.DEVICE_FILTER] += 1
        return device

    def _number(self, interface: Interface) -> int:
        self._interfaces += 1
        return self.output.add_interface(interface)

    def _new_device(self, packet: Upcall) -> _Device:
        name = packet.device.decode(errors="backslashreplace")
        slot = min(self._devices_met + 1, abi.SLOTS - 1)
        kind = link_type(packet.device_type)
        is_meant = ANY in self.interfaces or _is_among(name, self.interfaces)
        if not is_meant or not self._is_meant_namespace(packet.netns) or _is_among(name, self.exclude):
            return _Device(0, slot, wanted=False)
        if kind is None:
            self.warn(f"device {name} has an unknown type ({packet.device_type}) and is not captured")
            return _Device(0, slot, wanted=False)
        if self._interfaces >= INTERFACES_MAX:
            self.warn(f"device {name} is one more than the {INTERFACES_MAX} that a file may have, and is not captured")
            return _Device(0, slot, wanted=False)
        interface = Interface(
            name=packet.device,
            description=self.describe_namespace(packet.net, packet.netns),
            link_type=kind,
            snaplen=max(self.snaplen, self.rules.most),
            mac=packet.mac if len(packet.mac) == 6 and any(packet.mac) else None,
            speed_bps=_speed_bps(name) if packet.netns == self._netns else None,
            filter=self.filter or None,
        )
        return _Device(self._number(interface), slot, wanted=True, interface=interface, link_type=kind)

    def _is_meant_namespace(self, inode: int) -> bool:
        if not self.namespaces:
            return ANY in self.interfaces or inode == self._netns
        return any(inode == self._netns if name == "self" else is_called(name, inode) for name in self.namespaces)

    def _process(self, packet: Upcall) -> Process | None:
        """What is known of a packet's process, where a setting asks for more than the kernel program has taken."""
        return self._find(packet.tgid, packet.tid, packet.start, packet.comm) if packet.tgid else None

    def _find(self, tgid: int, tid: int, start: int, comm: bytes) -> Process | None:
        is_asked = self.process_blocks or self.rules.needs_process or set(self.comment) - _TAKEN_IN_KERNEL
        return self.processes.find(tgid, tid, start, comm) if is_asked else None

    def _group(self, packet: Upcall) -> list[Person]:
        """All who may be meant, where that is more than one; which of its threads is not known of any."""
        if packet.via != abi.VIA_GROUP:
            return []
        members = self._resolver.members(packet.start)
        return [
            Person(one.comm, 0, one.tgid, self._find(one.tgid, one.tid, one.start, one.comm)) for one in members
        ] or [Person(packet.comm, 0, packet.tgid, None)]  # forgotten

    def _stamp(self, packet: Upcall, process: Process | None, group: Sequence[Person]) -> Label:
        """What is stamped on this packet, and on all of its process, device and direction."""
        known: dict[str, bytes | int] = {}
        if packet.tgid:
            known |= {"comm": packet.comm, "pid": packet.tid, "tgid": packet.tgid}
        if process is not None:
            known |= process.fields()
        if group:
            known = _common(packet, group)
        fields: list[tuple[str, bytes | str | int]] = [(key, known[key]) for key in self.comment if key in known]
        if packet.via and "none" not in self.comment:
            fields.append(("via", _VIA[packet.via]))
        return label(fields, 0, packet.tgid, packet.tid, linked=bool(packet.linked))

    def _described(self, packet: Upcall, process: Process | None) -> Process:
        """What a process block shall say: at least what the packet does."""
        if process is None:
            start = packet.start // NS_PER_TICK * NS_PER_TICK if packet.tid == packet.tgid else 0
            return Process(packet.tgid, start, packet.comm, None, None, b"", b"", b"", b"")
        return replace(process, cgroup=b"")  # not in a block

    def _install(self, packet: Upcall, device: _Device, stamp: Label, verdict: Verdict) -> None:
        """Have the program do the same with the label's next packets; one that wants a dump comes to us each time."""
        options = b"" if verdict.dump else stamp.options
        number = self._next_label
        self._next_label = (number + 1) & 0xFFFFFFFF
        self._labels[number] = device.interface_id, stamp
        if len(self._labels) > _LABELS_REMEMBERED:
            del self._labels[next(iter(self._labels))]
        self.program.set_label(
            packet.key,
            abi.LABEL.pack(
                packet.names[:16],
                packet.names[16:],
                number,
                device.interface_id,
                device.slot,
                (verdict.snaplen or self.snaplen) if verdict.keeps else 0,
                verdict.filter,
                self.program.control[abi.GENERATION],
                len(options),
                stamp.flags_at,
                options,
            ),
        )


def _common(packet: Upcall, group: Sequence[Person]) -> dict[str, bytes | int]:
    """What can be said of a packet that may be any one's of several."""
    found = [{} if one.process is None else one.process.fields() for one in group]
    known: dict[str, bytes | int] = {
        key: value for key, value in found[0].items() if all(other.get(key) == value for other in found)
    }
    if packet.comm:
        known["comm"] = packet.comm
    if packet.tgid:
        known["tgid"] = packet.tgid
    return known


def _subject(packet: Upcall, process: Process | None, group: Sequence[Person]) -> Subject:
    """What the rules may ask of a packet."""
    return Subject(
        interface=packet.device,
        netns=packet.netns,
        direction="out" if packet.direction == DIRECTION_OUT else "in",
        via=_VIA[packet.via] or "current",
        comm=packet.comm,
        tid=packet.tid,
        tgid=packet.tgid,
        process=process,
        group=group,
    )


def _filled(packet: _Local) -> _Local:
    """The packet with its checksum, where the kernel program says that one is to be completed."""
    if not packet.checksum:
        return packet
    frame = checksum.fill(packet.frame, packet.original_len, packet.checksum)
    if frame is None:
        return packet
    return replace(packet, frame=memoryview(frame), flags=packet.flags & ~CHECKSUM_NOT_READY)


def _is_among(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, each) for each in globs)


def _speed_bps(name: str) -> int | None:
    """The speed of a device of our own namespace, where it has one."""
    with contextlib.suppress(OSError, ValueError):
        speed = int(Path("/sys/class/net", name, "speed").read_text())
        return speed * 1_000_000 if speed > 0 else None
    return None
