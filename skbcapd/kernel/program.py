"""The kernel program, seen from Python: choose, load, measure, attach; its memory and its tables.

In: the wanted hooks, the size of the buffer. Out: a Program: shared memory for the reader, tables
for labels and interfaces, counters.

The rule: this process has descriptors and makes bpf(2) calls; a child compiles and loads
(loader.py). Attaching comes last: all measurements are in the control page before the first packet
is seen.

Source: include/uapi/linux/bpf.h; Documentation/bpf/ringbuf.rst.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from skbcapd import clocks
from skbcapd.errors import KernelError
from skbcapd.filter import packet_filter
from skbcapd.kernel import abi, drops, kept_btf, loader, syscall
from skbcapd.kernel.abi import Geometry, Measurement
from skbcapd.kernel.btf import Btf
from skbcapd.kernel.loader import Hook
from skbcapd.kernel.marker import Marker
from skbcapd.kernel.taps import Taps

_MAPS = (
    *("segments", "controls", "labels", "devices", "owners", "flows", "holders", "groups", "forks", "fragments"),
    *("descendants", "counters", "labelled", "measurements", "wakeups", "packets", "headers_windows", "drafts"),
    *("sightings", "heads"),
    *("stages_out", "stages_in"),  # the kernel empties these maps when no descriptor of them is open
)
_MARKER_TRIES = 64
_KALLSYMS = Path("/proc/kallsyms")

# The kprobe and the tracepoint for each place where frames are captured.
_PLACES = {
    "queue": (Hook("kprobe", "__dev_queue_xmit", "on_transmit"), Hook("tracepoint", "net_dev_queue", "on_transmit")),
    "driver": (
        None,  # dev_hard_start_xmit gets a list of frames: a kprobe would see only the first one
        Hook("tracepoint", "net_dev_start_xmit", "on_transmit"),
    ),
    "in": (
        Hook("kprobe", "__netif_receive_skb_core", "on_receive"),
        Hook("tracepoint", "netif_receive_skb", "on_receive"),
    ),
}


# Hooks that record the users of sockets. inet_sendmsg and similar functions run for IPv4 and IPv6
# sockets only, so other sockets cost nothing. Without kprobes, a use is recorded when it is over
# (since Linux 6.3).
_USE_PROBES = (
    *(Hook("kprobe", name, "on_use") for name in ("inet_sendmsg", "inet_recvmsg", "inet6_sendmsg", "inet6_recvmsg")),
    Hook("kprobe", "security_sock_graft", "on_accept"),
)
_USE_TRACEPOINTS = (
    Hook("tracepoint", "sock_send_length", "on_used"),
    Hook("tracepoint", "sock_recv_length", "on_used"),
)
_ALWAYS = (
    Hook("tracepoint", "inet_sock_set_state", "on_state"),
    Hook("tracepoint", "sched_process_fork", "on_fork"),
)


def has_kprobes(pmu: Path = syscall.KPROBE_PMU) -> bool:
    """Whether this kernel was built with kprobes."""
    return pmu.exists()


def kernel_symbol(name: str, kallsyms: Path = _KALLSYMS) -> str:
    """The name of a kernel function in the symbol table, which can have a suffix of the compiler
    (.constprop.0).

    Returns:
        The symbol; the plain name if it exists.

    Raises:
        KernelError: there is no such function, or the table is hidden.
    """
    try:
        symbols = kallsyms.read_bytes()
    except OSError as error:
        raise KernelError(
            f"{kallsyms}: {error.strerror}; expected the names of the kernel's functions for attach: kprobe",
            "use attach: auto, or, in a systemd unit, ProtectKernelTunables=no: that setting hides them",
        ) from None
    found = re.findall(rb"\s[tT] (" + re.escape(name.encode()) + rb"(?:\.[\w.]+)?)$", symbols, re.MULTILINE)
    if not found:
        raise KernelError(f"this kernel has no function {name}", "use attach: tracepoint")
    return str(min(found, key=len), "ascii")


def choose_learning_hooks(attach: str, transmit: str, btf: Btf) -> list[Hook]:
    """Choose the hooks that record the users of sockets.

    Args:
        attach: as for choose_hooks.
        transmit: as for choose_hooks.
        btf: types of the running kernel, which include its tracepoints.

    Returns:
        Those that this kernel has. With fewer hooks, more packets have no known process.
    """
    chosen = [*_ALWAYS]
    if attach != "tracepoint" and has_kprobes():
        is_hidden = not os.access(_KALLSYMS, os.R_OK)
        for probe in _USE_PROBES:
            # such as in a systemd unit; these functions are called from other files, so their names
            # have no suffix
            if is_hidden:
                chosen.append(probe)
                continue
            with contextlib.suppress(KernelError):  # IPv6 may be a module that is not loaded
                chosen.append(replace(probe, target=kernel_symbol(probe.target)))
    else:
        chosen += _USE_TRACEPOINTS
    if transmit == "driver":
        chosen.append(replace(choose_hooks(attach, ("out",), "queue")[0], function="on_queue"))
    return [hook for hook in chosen if hook.kind == "kprobe" or btf.tracepoint(hook.target)]


def choose_hooks(attach: str, directions: Sequence[str], transmit: str) -> list[Hook]:
    """Choose the hooks that capture frames.

    Args:
        attach: "auto" (frames at tracepoints; users of sockets by kprobes, where there are
            kprobes), "kprobe" or "tracepoint" for all.
        directions: "out", "in" or both.
        transmit: where sent frames are captured: "queue" or "driver".

    Raises:
        KernelError: kprobes are required, and this kernel has none, or lacks the function.
    """
    places = [_PLACES[transmit if direction == "out" else "in"] for direction in directions]
    if attach != "kprobe":
        return [tracepoint for _, tracepoint in places]
    if not has_kprobes():
        raise KernelError(
            "this kernel has no kprobes; expected CONFIG_KPROBES=y for attach: kprobe",
            "use attach: auto, which uses tracepoints instead",
        )
    probes = [probe for probe, _ in places if probe]
    if len(probes) < len(places):
        raise KernelError(
            "transmit: driver has no kprobe; expected attach: auto or tracepoint",
            "use attach: auto, which uses tracepoints",
        )
    return [replace(probe, target=kernel_symbol(probe.target)) for probe in probes]


@dataclass(frozen=True, slots=True)
class Counters:
    """The counters of one slot of interfaces, in packets; names as in `enum counter` of
    bpf/layout.h.

    `seen` counts each packet that reached the program, in slot 0 only; `wire_bytes` are the lengths of the
    delivered packets; `labels` are those that the program has made; the others are outcomes.
    """

    seen: int = 0
    delivered: int = 0
    wire_bytes: int = 0
    filtered: int = 0
    full: int = 0
    contended: int = 0
    start: int = 0
    duplicate: int = 0
    other_interfaces: int = 0
    unattributed: int = 0
    limited: int = 0
    labels: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def outcomes(self) -> int:
        """Packets with an outcome: equal to `seen` if no program is running."""
        left_out = self.filtered + self.duplicate + self.other_interfaces + self.unattributed + self.limited
        return self.delivered + left_out + self.lost

    @property
    def lost(self) -> int:
        """Packets that the program dropped, by any cause."""
        return self.full + self.contended + self.start


class Filters(NamedTuple):
    """Packet filters that are loaded but not used yet.

    Args:
        places: map and slot of each program.
        descriptors: descriptors of the programs; the receiver closes them.
        source: their text.
    """

    places: Sequence[tuple[str, int]]
    descriptors: Sequence[int]
    source: packet_filter.Source


class Group(NamedTuple):
    """The candidate sockets of a packet: when the program last asked for their processes (ns since
    1970), and the address and inode of each, with OPEN_IN_SEVERAL.
    """

    asked_ns: int
    sockets: list[tuple[int, int]]


class Program:
    """The loaded program. `load` makes one; `attach` starts the capture; `close` ends it and releases all."""

    def __init__(
        self,
        geometry: Geometry,
        hooks: list[Hook],
        learning: list[Hook],
        child: loader.Loader,
        maps: dict[str, int],
        definitions: Mapping[str, int | str],
        filters: str = "",
    ) -> None:
        self.geometry = geometry
        self.hooks = hooks
        self.learning = learning
        self.measured = Measurement(0, 0, 0, 0, b"")
        self.drops: drops.Drops | None = None
        self.taps = Taps(maps, definitions, filters)
        self._definitions = definitions
        self._child: loader.Loader | None = child
        self._maps = maps
        self._links: list[int] = []
        self._programs: list[int] = []  # of `hooks`, then of `learning`
        self._segments = mmap.mmap(
            maps["segments"], abi.SEGMENT_STRIDE * geometry.segment_count, mmap.MAP_SHARED, mmap.PROT_READ
        )
        size = -(-geometry.control_size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._control = mmap.mmap(maps["controls"], size)
        self._consumer = mmap.mmap(maps["wakeups"], mmap.PAGESIZE)
        self._producer = mmap.mmap(
            maps["wakeups"], mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE
        )
        self.memory = memoryview(self._segments)
        self.control = memoryview(self._control).cast("Q")
        self._cpus = _possible_cpus()

    @property
    def paged(self) -> bool:
        """Whether page fragments can be read; if not, frames are cut at the end of their linear part."""
        return bool(self.measured.address_base)

    @property
    def process_context(self) -> bool:
        """Whether the program can tell a system call from a softirq; if not, `current` is never named."""
        return bool(self.measured.entry_regs)

    def set_clock(self) -> None:
        """Set the difference between wall clock and monotonic clock, in ns (suspend and steps
        change it).
        """
        before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        offset = wall - (before + after) // 2 + clocks.offsets().monotonic_ns
        known = self.control[abi.CLOCK_OFFSET]
        if abs(offset - known) > 20_000:  # reading two clocks has less jitter, a step is larger
            self.control[abi.CLOCK_OFFSET] = offset % (1 << 64)

    def set_label(self, key: bytes, value: bytes) -> None:
        """Install a label for the packets of a key. key: abi.KEY; value: abi.LABEL."""
        self._update("labels", key, value)

    def labelled(self) -> Iterator[bytes]:
        """The processes that have got a label from the program: a bit for each process id, in pieces of a page."""
        with mmap.mmap(self._maps["labelled"], abi.TGIDS // 8, mmap.MAP_SHARED, mmap.PROT_READ) as bits:
            yield from iter(lambda: bits.read(mmap.PAGESIZE), b"")

    def let_end(self) -> None:
        """Wait for the programs that run now: when this returns, what they have read is out of use."""
        syscall.wait_for_programs()

    def set_interface(self, key: bytes, value: bytes) -> None:
        """Set what the program knows about an interface: abi.DEVICE_KEY, DEVICE."""
        self._update("devices", key, value)

    def set_holder(self, inode: int, user: bytes) -> None:
        """Set the process that has a socket open: abi.USER; tgid 0: none or several."""
        self._update("holders", struct.pack("<Q", inode), user)

    def holder(self, inode: int) -> abi.User | None:
        """The last user of a socket that was evicted, or the process that was set as its holder."""
        with contextlib.suppress(FileNotFoundError):
            return abi.USER.unpack(self._lookup("holders", struct.pack("<Q", inode), abi.USER.size))
        return None

    def group(self, number: int) -> Group:
        """The candidate sockets of a packet; none if they were evicted."""
        with contextlib.suppress(FileNotFoundError):
            found = abi.GROUP.unpack(self._lookup("groups", struct.pack("<Q", number), abi.GROUP.size))
            _references, time, count = found[:3]
            sockets = zip(found[abi.GROUP_SOCKETS], found[abi.GROUP_INODES], strict=True)
            return Group((time + self.control[abi.CLOCK_OFFSET]) % (1 << 64), list(sockets)[:count])
        return Group(0, [])

    def may_have_forked(self, tgid: int, since: int) -> bool:
        """Whether a process may have forked since a time, in ns since boot."""
        with contextlib.suppress(FileNotFoundError):
            return int.from_bytes(self._lookup("forks", struct.pack("<I", tgid), 8), "little") > since
        return True

    def add_flow(self, flow: bytes, owner: bytes) -> None:
        """Set the owner of a connection: abi.FLOW, OWNER. An owner that the program has recorded itself stays."""
        with contextlib.suppress(FileExistsError):
            syscall.add(self._maps["flows"], flow, owner)

    def remove_flow(self, flow: bytes) -> None:
        """Delete the owner of a connection: abi.FLOW."""
        with contextlib.suppress(FileNotFoundError):
            syscall.remove(self._maps["flows"], flow)

    def set_descendant(self, tgid: int, start: int, root: int) -> None:
        """Make a process one whose descendants are recorded, from now on.

        Args:
            tgid: its id.
            start: its start, ns since boot, or somewhat less.
            root: the process that it descends from, or itself.
        """
        self._update("descendants", struct.pack("<I", tgid), abi.DESCENDANT.pack(start, root))

    def remove_descendant(self, tgid: int) -> None:
        """Forget a process."""
        with contextlib.suppress(FileNotFoundError):
            syscall.remove(self._maps["descendants"], struct.pack("<I", tgid))

    def descendant(self, tgid: int) -> abi.Descendant | None:
        """The last process with this id, if it is one of the descendants."""
        try:
            return abi.DESCENDANT.unpack(self._lookup("descendants", struct.pack("<I", tgid), abi.DESCENDANT.size))
        except FileNotFoundError:
            return None

    def owner(self, sk: int) -> abi.Owner | None:
        """The recorded owner of a socket, by the address of the socket."""
        with contextlib.suppress(FileNotFoundError):
            return abi.OWNER.unpack(self._lookup("owners", struct.pack("<Q", sk), abi.OWNER.size))
        return None

    def counters(self, slot: int) -> Counters:
        """The counters of one slot of interfaces, added up over all processors."""
        row = abi.COUNTER_ROW.size
        data = self._lookup("counters", struct.pack("<I", slot), row * self._cpus)
        rows = [abi.COUNTER_ROW.unpack_from(data, row * cpu) for cpu in range(self._cpus)]
        return Counters(*(sum(column) for column in list(zip(*rows, strict=True))[: len(Counters.__slots__)]))

    def missed(self) -> int:
        """How often the kernel skipped the program because it was already running there."""
        return sum(map(syscall.misses, self._programs[: len(self.hooks)]))

    @property
    def wakeup_fd(self) -> int:
        """Readable when the program requests a drain."""
        return self._maps["wakeups"]

    def take_wakeups(self) -> None:
        """Reset wakeup_fd."""
        self._consumer[:8] = self._producer[:8]

    def measure(self, marker: Marker) -> None:
        """Measure where pages are mapped, and where the registers of user space are on a stack; 0 if not found."""
        table, key = "measurements", struct.pack("<I", 0)
        unknown = Measurement(abi.UNKNOWN_SELF, 0, 0, 0, marker.bytes)
        self._update(table, key, abi.MEASUREMENT.pack(*unknown))
        marker.send_datagram()
        found = abi.MEASUREMENT.unpack(self._lookup(table, key, abi.MEASUREMENT.size))
        for attempt in range(_MARKER_TRIES):
            wanted = found._replace(
                frame_number=marker.frame_number(),
                candidate=attempt // 2 * abi.CANDIDATES,  # each range twice: the kernel can move the page meanwhile
                syscall_number=abi.machine().sendfile,
                packets=0,
            )
            self._update(table, key, abi.MEASUREMENT.pack(*wanted))
            marker.send()
            found = abi.MEASUREMENT.unpack(self._lookup(table, key, abi.MEASUREMENT.size))
            if found.address_base or not found.packets or not found.frame_number:
                break
        marker.send_datagram()
        found = abi.MEASUREMENT.unpack(self._lookup(table, key, abi.MEASUREMENT.size))
        self._update(table, key, abi.MEASUREMENT.pack(*found._replace(tgid=0)))
        self.measured = found
        self.control[abi.PAGE_BASE] = found.page_base if found.address_base else 0
        self.control[abi.ADDRESS_BASE] = found.address_base
        self.control[abi.ENTRY_REGS] = found.entry_regs
        self.control[abi.STACK_SIZE] = found.stack_size
        self.control[abi.UDP_TABLE] = found.udp_table

    def attach(self) -> None:
        """Start the capture: the first packet can arrive before this returns.

        Raises:
            KernelError: the kernel rejects a hook.
        """
        if self._child is None:
            raise KernelError("the program was attached before")
        self.set_clock()
        _, descriptors = self._child.attach()
        self._links, self._programs = descriptors[: len(descriptors) // 2], descriptors[len(descriptors) // 2 :]
        if self.drops is not None:
            self.drops.program = self._programs[-1]
        self._child.close()
        self._child = None

    def load_filters(self, filters: packet_filter.Source) -> Filters:
        """Compile and load other packet filters for the attached program, in a child; see
        loader.load_filters.
        """
        definitions = {**self._definitions, "WINDOW": filters.window}
        places, loaded = loader.load_filters(self._maps, definitions, [*self.hooks, *self.learning], filters.text)
        tap_places, tap_loaded = self.taps.load_filters(definitions, filters.text)
        return Filters([*places, *tap_places], [*loaded, *tap_loaded], filters)

    def exchange_filters(self, filters: Filters) -> None:
        """Replace the filters between two packets, for each direction."""
        maps = self.taps.exchange(filters.source, {table for table, _ in filters.places})
        for (table, place), descriptor in zip(filters.places, filters.descriptors, strict=True):
            syscall.update(maps[table], struct.pack("<I", place), struct.pack("<I", descriptor))

    def detach(self) -> None:
        """Stop the capture; the content of the segments can still be read."""
        self.taps.detach()
        for descriptor in self._links:
            os.close(descriptor)
        self._links = []

    def close(self) -> None:
        """Release everything."""
        self.detach()
        self.taps.close()
        if self._child is not None:
            self._child.close()
        self.control.release()
        for memory in (self._control, self._consumer, self._producer):
            memory.close()
        with contextlib.suppress(BufferError):  # the traceback of an error may still refer to a range
            self.memory.release()
            self._segments.close()
        for descriptor in [*self._programs, *self._maps.values()]:
            os.close(descriptor)
        self._programs, self._maps = [], {}

    def _update(self, table: str, key: bytes, value: bytes) -> None:
        syscall.update(self._maps[table], key, value)

    def _lookup(self, table: str, key: bytes, size: int) -> bytes:
        return syscall.lookup(self._maps[table], key, size)


def load(
    geometry: Geometry,
    hooks: list[Hook],
    attach: str = "auto",
    transmit: str = "queue",
    filters: packet_filter.Source | None = None,
    meanwhile: Callable[[], object] = lambda: None,
    *,
    dropped: drops.Wanted = "none",
) -> Program:
    """Compile and load the program for the running kernel. Nothing is captured yet.

    Args:
        geometry: size of the shared memory.
        hooks: from choose_hooks.
        attach: as given to choose_hooks.
        transmit: as given to choose_hooks.
        filters: packet filters; None for none.
        meanwhile: called while the compiler works.
        dropped: what to do with the packets that the kernel drops.

    Raises:
        BtfError: the types of the kernel are missing or unknown.
        KernelError: the program cannot be compiled or loaded, or there is no memory.
    """
    btf = kept_btf.load()
    definitions = abi.definitions(btf, geometry) | {"CPUS": _possible_cpus()}
    definitions |= {"WINDOW": filters.window} if filters else {}
    learning = choose_learning_hooks(attach, transmit, btf)
    parts = drops.parts(btf, dropped)
    definitions |= parts.definitions
    learning += parts.hooks
    measure = replace(choose_hooks(attach, ("out",), "queue")[0], function="on_measure")
    every = _with_types((measure, *hooks, *learning), btf)
    text = filters.text if filters else ""
    child = loader.start(_MAPS + parts.maps, definitions, every[1:], every[0], text)
    try:
        meanwhile()
        reasons = drops.Reasons(btf) if parts.maps else None
        btf.keep()
        message, descriptors = child.receive()
        maps = dict(zip(message["maps"], descriptors, strict=True))
        _compare_sizes(geometry, maps)
        program = Program(geometry, every[1 : 1 + len(hooks)], every[1 + len(hooks) :], child, maps, definitions, text)
        program.control[abi.LATE] = transmit == "driver"
        if reasons is not None:
            program.drops = drops.Drops(maps, reasons, _possible_cpus())
    except OSError as error:
        child.close()
        if error.errno in (errno.ENOMEM, errno.EPERM):
            raise KernelError(
                f"no shared memory of {abi.SEGMENT_STRIDE * geometry.segment_count} bytes: {error.strerror}",
                "set a smaller buffer.size",
            ) from None
        raise
    except KernelError:
        child.close()
        raise
    return program


def _with_types(hooks: Sequence[Hook], btf: Btf) -> list[Hook]:
    """Hooks with the type ids of their tracepoints."""
    return [
        replace(hook, type_id=btf.tracepoint(hook.target) or 0) if hook.kind == "tracepoint" else hook for hook in hooks
    ]


def _compare_sizes(geometry: Geometry, maps: dict[str, int]) -> None:
    sizes = geometry.record_sizes() | drops.RECORD_SIZES
    for name in maps.keys() & sizes.keys():
        found, expected = struct.unpack_from("<II", syscall.info(maps[name]), 8), sizes[name]
        if found != expected:
            raise KernelError(f"map {name} has keys and values of {found} bytes; abi.py expects {expected}")


def _possible_cpus(path: Path = Path("/sys/devices/system/cpu/possible")) -> int:
    """The number of values that a per-CPU map returns."""
    return int(re.split(r"[-,]", path.read_text().strip())[-1]) + 1
