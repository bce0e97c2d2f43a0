"""The interfaces that packets are captured on: a stage.

In: a packet without a label. Out: its interface, with its number in the output; nothing if the
interface is excluded.

The rule: an interface is one name of one ifindex in one network namespace. After it is renamed it
counts as a new one, with new counters. So packets in a file were captured under the name of their
interface in that file.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from skbcapd.attribution.namespaces import inode_of, is_called, name_of
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import KnownInterface, Record
from skbcapd.capture.totals import Tally
from skbcapd.kernel import abi
from skbcapd.kernel.abi import Dropped
from skbcapd.kernel.drops import Drop
from skbcapd.kernel.program import Program
from skbcapd.kernel.segments import Upcall
from skbcapd.lru import Bounded
from skbcapd.output.interface import Output, Statistics
from skbcapd.pcapng.blocks import DIRECTION_IN, DIRECTION_OUT
from skbcapd.pcapng.interface import DROPS, OF_DROPS, Interface
from skbcapd.pcapng.link_type import ETHERNET, USER0, link_type

_LOG = logging.getLogger(__name__)
ANY = "any"
REMEMBERED = 4 * abi.DEVICES_MAX
_NEVER = 0xFFFFFFFF  # a generation of labels
_TOLD_NS = 1_000_000_000  # for which the program certainly knows what it was told
INTERFACES_MAX = 1 << 16  # of one section: our own reader accepts no more


# An interface that was evicted from memory: nothing is said about its frames.
_FORGOTTEN = Interface(b"", "", USER0, 0, None, None, None)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which interfaces are captured.

    Args:
        interfaces: names or globs, or ("any",).
        exclude: names or globs of interfaces to leave out, in any namespace.
        namespaces: names or inode numbers of their network namespaces, or "self" for that of this
            process; empty: all for ("any",), otherwise self.
    """

    interfaces: Sequence[str] = (ANY,)
    exclude: Sequence[str] = ()
    namespaces: Sequence[str] = ()

    @property
    def is_all(self) -> bool:
        """Whether all interfaces of the machine are captured."""
        return ANY in self.interfaces and not self.exclude and not self.namespaces

    def has(self, name: str, netns: int, own_netns: int) -> bool:
        """Whether an interface is captured.

        Args:
            name: its name; empty if it is not known, as for some drops: then the namespace decides.
            netns: inode number of its network namespace.
            own_netns: inode number of the network namespace of this process.
        """
        return self.has_name(name) and self._has_namespace(netns, own_netns)

    def has_name(self, name: str) -> bool:
        """Whether an interface with this name is captured, if its namespace is."""
        is_meant = ANY in self.interfaces or _is_among(name, self.interfaces)
        return not name or (is_meant and not _is_among(name, self.exclude))

    def named(self) -> dict[str, int]:
        """The network namespaces that now have these names: inode numbers, 0 for none."""
        return {name: inode_of(name) for name in self.namespaces if name != "self" and not name.isdecimal()}

    def _has_namespace(self, netns: int, own_netns: int) -> bool:
        if not self.namespaces:
            return ANY in self.interfaces or netns == own_netns
        return any(netns == own_netns if name == "self" else is_called(name, netns) for name in self.namespaces)


class InterfaceCount(NamedTuple):
    """The packets of one interface, under one name.

    Args:
        slot: row of counters, its identity.
        name: its name.
        namespace: text about its network namespace.
        packets: that the kernel program has delivered.
        size: their bytes on the wire.
        dropped: packets that the kernel program has dropped.
    """

    slot: int
    name: bytes
    namespace: str
    packets: int
    size: int
    dropped: int


class Interfaces:
    """Finds the interface of a packet, and registers new interfaces in the program and in the
    output.

    Args:
        program: counts packets by interface.
        output: numbers interfaces.
        selection: which interfaces are captured.
        tally: counts the packets of excluded interfaces.
        describe_namespace: returns the text of `if_description` for the cookie and inode number of
            a network namespace.
    """

    def __init__(
        self,
        program: Program,
        output: Output,
        selection: Selection,
        tally: Tally,
        describe_namespace: Callable[[int, int], str],
    ) -> None:
        self._program, self._output, self._selection, self._tally = program, output, selection, tally
        self._describe_namespace = describe_namespace
        self._known: Bounded[tuple[int, int, bytes], KnownInterface] = Bounded(REMEMBERED)
        # Those on which drops were counted, by namespace, index and name: a namespace can lose its name.
        self._with_drops: Bounded[tuple[int, int, bytes], bool] = Bounded(REMEMBERED)
        self._numbered = 0  # by the output
        self._restarts = 0  # of the numbers
        self._netns = Path("/proc/self/ns/net").stat().st_ino
        self._named = selection.named()
        self.seen = 0
        """Number of interfaces that were seen."""
        self.entered: set[int] = set()
        """Inode numbers of the network namespaces of new interfaces; the reader removes them."""
        program.control[abi.DEVICE_FILTER] = not selection.is_all

    def take(self, record: Record, plan: Plan) -> Record | None:
        """Stage: find the interface of the packet; ends the way of packets of excluded interfaces."""
        packet = record.packet
        if packet.dropped is not None and not self._has_dropped(packet, packet.dropped):
            self._tally.other_interfaces += 1
            return None
        identity = (packet.net, packet.ifindex, packet.interface_name)
        found = self._known.use(identity)
        if found is None:
            found = self._known[identity] = self._new(packet, plan)
            self.seen += 1
            self.entered.add(packet.netns)
        elif found.description is not None and found.interface_id < 0:
            found.interface_id = self._number(found.description)
        if found.told != self._program.control[abi.GENERATION] or _is_evicted(packet, found):
            self._tell_program(packet, found)
        if found.description is None:
            self._tally.other_interfaces += 1
            return None
        found.note_early(packet)
        record.interface = found
        return record

    def wants(self, name: str, netns: int) -> bool:
        """Whether an interface is captured: its name, and the inode number of its network namespace."""
        return self._selection.has(name, netns, self._netns)

    def reconsider(self) -> bool:
        """If a name now belongs to another network namespace, check all excluded interfaces again. Returns whether
        this must be called each second, because interfaces are selected by such names.

        A namespace can get a name after its first packet (`ip netns attach`), and lose it before its
        drops are shown: those until then count.
        """
        if not self._selection.namespaces and not self._named:
            return False
        named = self._selection.named()
        if named == self._named:
            return True
        before = {*self._named.values()} - {0}
        for one in self._every_drop():
            if one.netns in before and self._selection.has_name(_text(one.device)):
                self._with_drops[one.net, one.ifindex, one.device] = True
        self._named = named
        for identity, known in list(self._known.items()):
            if known.description is None:
                del self._known[identity]
                self._tell(*identity, slot=known.slot, unwanted=False)
        return True

    def has_drop(self, net: int, ifindex: int, name: bytes, netns: int) -> bool:
        """Whether drops on an interface are counted; see Selection.has. If they once were, or its packets are
        captured, they always are.
        """
        identity = (net, ifindex, name)
        known = self._known.get(identity)
        if self._with_drops.use(identity):
            return True
        is_captured = known is not None and known.description is not None
        if not is_captured and not self._selection.has(_text(name), netns, self._netns):
            return False
        self._with_drops[identity] = True
        return True

    def drops(self) -> list[Drop]:
        """What the kernel has dropped on the captured interfaces; nothing if that is not counted."""
        return [one for one in self._every_drop() if self.has_drop(one.net, one.ifindex, one.device, one.netns)]

    def _every_drop(self) -> list[Drop]:
        return self._program.drops.counts() if self._program.drops is not None else []

    def limited_elsewhere(self) -> int:
        """Dropped packets over the rate that were on interfaces that are not captured."""
        limited = [row for row in self._every_drop() if row.limited]
        return sum(row.limited for row in limited if not self.has_drop(row.net, row.ifindex, row.device, row.netns))

    def forget_numbers(self) -> None:
        """Give each interface a new number with its next packet."""
        self._restarts += 1
        self._numbered = 0
        for known in self._known.values():
            known.interface_id = -1

    @property
    def numbering(self) -> tuple[int, int]:
        """How often the numbers have begun at 0, and how many there are now."""
        return self._restarts, self._numbered

    def numbered(self) -> list[Interface]:
        """All interfaces that have a number, in its order."""
        found = {known.interface_id: known.description for known in self._known.values() if known.description}
        return [found.get(number, _FORGOTTEN) for number in range(max(found, default=-1) + 1)]

    @property
    def link_types(self) -> list[int]:
        """The link types of the interfaces in the file, in ascending order."""
        return sorted(
            {
                known.description.link_type
                for known in self._known.values()
                if known.description and known.interface_id >= 0
            }
        )

    def statistics(self) -> Iterator[Statistics]:
        """The statistics of each interface until now, without interfaces that share a row of
        counters.
        """
        for known in self._known.values():
            if known.description and known.interface_id >= 0 and known.slot < abi.SLOTS - 1:
                row, early = self._program.counters(known.slot), known.early
                received = row.outcomes + early
                accepted = received - row.filtered - row.unattributed
                delivered = row.delivered + early
                lost = row.lost + row.limited
                yield Statistics(known.interface_id, known.slot, received, accepted, lost, delivered)

    def counts(self) -> list[InterfaceCount]:
        """The packets of each captured interface until now, the busiest first."""
        found = []
        for known in self._known.values():
            if known.description and known.slot < abi.SLOTS - 1:
                row = self._program.counters(known.slot)
                found.append(
                    InterfaceCount(
                        known.slot,
                        known.description.name,
                        known.description.description,
                        row.delivered + known.early,
                        row.wire_bytes + known.early_bytes,
                        row.lost,
                    )
                )
        return sorted(found, key=lambda one: -one.packets)

    def _has_dropped(self, packet: Upcall, dropped: Dropped) -> bool:
        """Whether drops on the interface of a dropped packet are captured. The program then knows it, too: it passes no
        more of them, or counts them in the row of the interface of drops.
        """
        name = dropped.device.split(b"\0")[0]
        is_wanted = self.has_drop(packet.net, dropped.ifindex, name, packet.netns)
        if is_wanted and (packet.slot or not self._program.control[abi.DEVICE_FILTER]):
            return True
        identity = (packet.net, dropped.ifindex, name)
        known = self._known.use(identity)
        slot = known.slot if known else 0
        if known is not None:
            known.told = -1  # the program is told the number with the next packet on the interface
        if known is None and not is_wanted:
            self.seen += 1
            slot = min(self.seen, abi.SLOTS - 1)
            self._known[identity] = KnownInterface(slot)
        self._tell(packet.net, dropped.ifindex, dropped.device, slot=slot, unwanted=not is_wanted)
        return is_wanted

    def _new(self, packet: Upcall, plan: Plan) -> KnownInterface:
        name = _text(packet.interface_name)
        slot = min(self.seen + 1, abi.SLOTS - 1)
        kind = link_type(packet.interface_type)
        is_of_drops = packet.dropped is not None
        if not is_of_drops and not self._selection.has(name, packet.netns, self._netns):
            return KnownInterface(slot)
        if kind is None:
            _LOG.warning("interface %s has an unknown type (%d) and is not captured", name, packet.interface_type)
            return KnownInterface(slot)
        if self._numbered >= INTERFACES_MAX:
            _LOG.warning("interface %s is one more than the %d of a file, and is not captured", name, INTERFACES_MAX)
            return KnownInterface(slot)
        namespace = self._describe_namespace(packet.net, packet.netns)
        if is_of_drops:
            described = f"{namespace}: {OF_DROPS}"
            description = Interface(
                name=DROPS + name_of(namespace).encode(errors="surrogateescape"),
                description=described if kind == ETHERNET else f"{described} without a link-layer header",
                link_type=kind,
                snaplen=plan.longest,
                mac=None,
                speed_bps=None,
                filter=plan.filter or None,
            )
            return KnownInterface(slot, description, self._number(description), has_drops=True)
        description = Interface(
            name=packet.interface_name,
            description=namespace,
            link_type=kind,
            snaplen=plan.longest,
            mac=packet.mac if len(packet.mac) == 6 and any(packet.mac) else None,
            speed_bps=_speed_bps(name) if packet.netns == self._netns else None,
            filter=plan.filter or None,
        )
        return KnownInterface(slot, description, self._number(description))

    def _number(self, description: Interface) -> int:
        self._numbered += 1
        return self._output.add_interface(description)

    def _tell_program(self, packet: Upcall, known: KnownInterface) -> None:
        known.told, known.told_ns = self._program.control[abi.GENERATION], time.time_ns()
        number = known.interface_id if known.description else None
        unwanted = known.description is None
        self._tell(packet.net, packet.ifindex, packet.names[16:32], slot=known.slot, unwanted=unwanted, number=number)

    def _tell(
        self, net: int, ifindex: int, name: bytes, *, slot: int, unwanted: bool, number: int | None = None
    ) -> None:
        generation = _NEVER if number is None else self._program.control[abi.GENERATION]
        device = abi.Device(name, slot, unwanted, number or 0, generation)
        for direction in (DIRECTION_IN, DIRECTION_OUT):
            key = abi.DEVICE_KEY.pack(*abi.DeviceKey(net, ifindex, direction))
            self._program.set_interface(key, abi.DEVICE.pack(*device))
        if self._program.control[abi.DEVICE_FILTER]:
            self._program.control[abi.DEVICE_FILTER] += 1


def _is_evicted(packet: Upcall, known: KnownInterface) -> bool:
    """Whether the program has forgotten an interface: it stores DEVICES_MAX, and evicts the least recently used. Then
    it counts in another row; so it does for packets from before it knew the interface.
    """
    return packet.slot != known.slot and abs(packet.time_ns - known.told_ns) > _TOLD_NS


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _is_among(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, each) for each in globs)


def _speed_bps(name: str) -> int | None:
    """The speed of an interface of our own namespace, if it is known."""
    with contextlib.suppress(OSError, ValueError):
        speed = int(Path("/sys/class/net", name, "speed").read_text())
        return speed * 1_000_000 if speed > 0 else None
    return None
