"""Packets that the kernel drops: their counts in the kernel program, and the names of the reasons.

In: the BTF of the kernel, and a map of bpf/drops.h. Out: definitions for compiling, and a count for
each reason, interface, direction and process.

The rule: no number of a reason and no position of an argument is known here. Both differ between
kernels, and come from BTF.

Source: include/net/dropreason-core.h, include/net/dropreason.h, include/trace/events/skb.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from skbcapd.kernel import syscall
from skbcapd.kernel.abi import Record
from skbcapd.kernel.btf import Btf
from skbcapd.kernel.loader import Hook
from skbcapd.pcapng.interface import NO_LOSS

TRACEPOINT = "kfree_skb"
MAPS = ("drops", "drops_of_others", "drops_unlisted")
_CAPTURE_MAPS = ("drop_works", "stages_drop", "drop_rates")  # see program.py
_FUNCTIONS = {"count": "on_drop", "capture": "on_dropped"}
DROPS_MAX = 4096  # combinations of reason, interface, direction and process
DROPS_OF_OTHERS_MAX = 2048  # combinations of reason, interface and direction, once there are more than DROPS_MAX
UNKNOWN = 0xFFFFFFFF  # DROP_REASON_UNKNOWN of bpf/drops.h
_REASONS, _SUBSYSTEMS = "skb_drop_reason", "skb_drop_reason_subsys"
_PREFIXES = ("SKB_DROP_REASON_SUBSYS_", "SKB_DROP_REASON_", "SKB_")
_SUBSYSTEM_SHIFT = 16
_NO_REASONS = {"MAX", "SUBSYS_MASK"}
_BEFORE_QUEUE = ("TC_EGRESS", "NETFILTER_DROP")  # see is_before_queue of bpf/drops.h


Wanted: TypeAlias = Literal["none", "count", "capture"]
"""What to do with the packets that the kernel drops."""


class DropKey(NamedTuple):
    """struct drop_key of bpf/drops.h."""

    net: int
    ifindex: int
    direction: int
    reason: int
    tgid: int
    device: bytes
    process: bytes


class DropCount(NamedTuple):
    """struct drop_count of bpf/drops.h."""

    packets: int
    netns: int
    limited: int


KEY = Record(DropKey, "<QIIII16s16s")
COUNT = Record(DropCount, "<QQQ")
_UNLISTED = struct.Struct("<Q")
_ROW_SIZES = KEY.size, COUNT.size
RECORD_SIZES = {"drops": _ROW_SIZES, "drops_of_others": _ROW_SIZES, "drops_unlisted": (4, _UNLISTED.size)}


@dataclass(frozen=True, slots=True)
class Drop:
    """Packets that the kernel has dropped.

    Args:
        reason: the kernel's own name for it, or "unknown".
        net: cookie of the network namespace.
        ifindex: number of the interface there; 0: not known.
        device: name of the interface; empty if it is not known.
        netns: inode number of the network namespace; 0: not known.
        direction: pcapng.blocks.DIRECTION_IN or DIRECTION_OUT.
        tgid: process id of the sender or receiver; 0: not known.
        process: its name.
        packets: their number.
        limited: those of them that were more than the rate, before it was decided whether their interface is captured.
        is_of_others: whether they are of all processes for which the list had no space.
    """

    reason: str
    net: int
    ifindex: int
    device: bytes
    netns: int
    direction: int
    tgid: int
    process: bytes
    packets: int
    limited: int = 0
    is_of_others: bool = False

    @property
    def is_loss(self) -> bool:
        """Whether somebody has lost them."""
        return self.reason not in NO_LOSS


class Reasons:
    """The names of the reasons of one kernel, from its BTF."""

    def __init__(self, btf: Btf) -> None:
        names = {number: _short(name) for number, name in btf.enumerators(_REASONS)}
        self._names = {number: name for number, name in names.items() if name not in _NO_REASONS}
        self._subsystems = {number: _short(name) for number, name in btf.enumerators(_SUBSYSTEMS)}

    def __len__(self) -> int:
        """The number of reasons; 0 on a kernel without them."""
        return len(self._names)

    def name(self, number: int) -> str:
        """The name of a reason. One of a module has the name of the subsystem and a number."""
        if number == UNKNOWN:
            return "unknown"
        subsystem, own = divmod(number, 1 << _SUBSYSTEM_SHIFT)
        if subsystem:
            return f"{self._subsystems.get(subsystem, f'SUBSYSTEM_{subsystem}')}_{own}"
        return self._names.get(number, f"REASON_{number}")


def definitions(btf: Btf, *, captures: bool = False) -> dict[str, int | str]:
    """The definitions for compiling bpf/drops.h; with them, it is compiled.

    Args:
        btf: types of the running kernel.
        captures: whether bpf/drop_frame.h is compiled, too.

    Raises:
        BtfError: the kernel lacks a required field.
    """
    values: dict[str, int | str] = {
        "DROPS_MAX": DROPS_MAX,
        "DROPS_OF_OTHERS_MAX": DROPS_OF_OTHERS_MAX,
        "SKB_REFDST": btf.offset("sk_buff", "_skb_refdst"),
        "DST_DEV": btf.offset("dst_entry", "dev", "dev_rcu"),
    }
    arguments = btf.arguments(TRACEPOINT)
    if _REASONS in arguments:  # since Linux 5.17
        values["DROP_REASON"] = arguments.index(_REASONS)
    if "sock" in arguments:  # since Linux 6.11
        values["DROP_RECEIVER"] = arguments.index("sock")
    if captures:
        values["DROPS_CAPTURED"] = 1
        if "" in arguments:  # void *
            values["DROP_LOCATION"] = arguments.index("")
    numbers = {_short(name): number for number, name in btf.enumerators(_REASONS)}
    values |= {f"DROP_{name}": numbers[name] for name in _BEFORE_QUEUE if name in numbers}
    return values


class Parts(NamedTuple):
    """What the kernel program needs for drops.

    Args:
        definitions: for compiling.
        hooks: at most one.
        maps: names of maps that stay open.
    """

    definitions: Mapping[str, int | str]
    hooks: Sequence[Hook]
    maps: tuple[str, ...]


def parts(btf: Btf, wanted: Wanted) -> Parts:
    """What the kernel program needs; nothing for "none".

    Raises:
        BtfError: the kernel lacks a required field.
    """
    if wanted == "none":
        return Parts({}, (), ())
    captures = wanted == "capture"
    hook = Hook("tracepoint", TRACEPOINT, _FUNCTIONS[wanted])
    return Parts(definitions(btf, captures=captures), [hook], MAPS + _CAPTURE_MAPS * captures)


class Drops:
    """The counts in the kernel program.

    Args:
        maps: descriptors of the maps of `parts`, and others, by name.
        reasons: names of the reasons of this kernel.
        cpus: number of processors of a per-CPU map.
    """

    def __init__(self, maps: Mapping[str, int], reasons: Reasons, cpus: int) -> None:
        self._own, self._of_others, self._unlisted = (maps[name] for name in MAPS)
        self._reasons, self._cpus = reasons, cpus
        self.captures = maps.keys() >= {*_CAPTURE_MAPS}
        """Whether the packets are captured, too."""
        self.program: int | None = None
        """The descriptor of the program, once it is attached."""

    def reason(self, number: int) -> str:
        """The name of a reason."""
        return self._reasons.name(number)

    def missed(self) -> int:
        """How often the kernel skipped the program because it was already running on that processor."""
        return 0 if self.program is None else syscall.misses(self.program)

    def unlisted(self) -> int:
        """The dropped packets for which there was no space in the list, on all interfaces."""
        data = syscall.lookup(self._unlisted, bytes(4), _UNLISTED.size * self._cpus)
        return sum(number for (number,) in _UNLISTED.iter_unpack(data))

    def counts(self) -> list[Drop]:
        """The packets by reason, interface, direction and process, those with most packets first."""
        own = self._rows(self._own, DROPS_MAX, is_of_others=False)
        found = [*own, *self._rows(self._of_others, DROPS_OF_OTHERS_MAX, is_of_others=True)]
        return sorted(found, key=lambda drop: (-drop.packets, drop.reason))

    def _rows(self, table: int, most: int, *, is_of_others: bool) -> Iterator[Drop]:
        for data, value in syscall.entries(table, KEY.size, COUNT.size, most):
            key, count = KEY.unpack(data), COUNT.unpack(value)
            yield Drop(
                reason=self._reasons.name(key.reason),
                net=key.net,
                ifindex=key.ifindex,
                device=key.device.split(b"\0")[0],
                netns=count.netns,
                direction=key.direction,
                tgid=key.tgid,
                process=key.process.split(b"\0")[0],
                packets=count.packets,
                limited=count.limited,
                is_of_others=is_of_others,
            )


def _short(name: str) -> str:
    """The name of a reason without the prefix that all have."""
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
