"""The program in the kernel, seen from Python: chosen, loaded, measured, attached; its memory and its tables.

In: which hooks are wanted, the size of the buffer. Out: a Program: shared memory for the reader, tables for labels and
devices, counters.

The rule: this process holds descriptors and makes plain bpf(2) calls; compiling and loading is the child's (loader.py).
Attaching comes last: the measurements are in the program's control words before the first packet is seen.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skbcapd.errors import KernelError
from skbcapd.filter import packet_filter
from skbcapd.kernel import abi, loader, syscall
from skbcapd.kernel.abi import Geometry, Measurement
from skbcapd.kernel.btf import Btf
from skbcapd.kernel.loader import Hook
from skbcapd.kernel.marker import Marker

OLDEST_KERNEL = (5, 15)
_MAPS = (
    *("segments", "controls", "labels", "devices", "owners", "flows", "holders", "groups", "fragments"),
    *("counters", "measurements", "wakeups", "packets"),
    *("stages_out", "stages_in"),  # these empty themselves when nobody holds them
)
_RECURSION_MISSES = 208  # offset in struct bpf_prog_info
_MARKER_TRIES = 64
_KALLSYMS = Path("/proc/kallsyms")

# For each place where frames are taken: the kprobe and the tracepoint that stand for it.
_PLACES = {
    "queue": (Hook("kprobe", "__dev_queue_xmit", "on_transmit"), Hook("tracepoint", "net_dev_queue", "on_transmit")),
    "driver": (
        None,  # dev_hard_start_xmit is given a list of frames: a kprobe there would miss all but the first
        Hook("tracepoint", "net_dev_start_xmit", "on_transmit"),
    ),
    "in": (
        Hook("kprobe", "__netif_receive_skb_core", "on_receive"),
        Hook("tracepoint", "netif_receive_skb", "on_receive"),
    ),
}


# Where the users of sockets are learned. inet_sendmsg and its like are called for IPv4 and IPv6 sockets only: nothing
# is added to the cost of other ones. Without kprobes a use is seen when it is over (since Linux 6.3).
_USE_PROBES = (
    *(Hook("kprobe", name, "on_use") for name in ("inet_sendmsg", "inet_recvmsg", "inet6_sendmsg", "inet6_recvmsg")),
    Hook("kprobe", "security_sock_graft", "on_accept"),
)
_USE_TRACEPOINTS = (
    Hook("tracepoint", "sock_send_length", "on_used"),
    Hook("tracepoint", "sock_recv_length", "on_used"),
)
_STATE_TRACEPOINT = Hook("tracepoint", "inet_sock_set_state", "on_state")


def has_kprobes(pmu: Path = syscall.KPROBE_PMU) -> bool:
    """Whether this kernel was built with kprobes."""
    return pmu.exists()


def is_realtime(flag: Path = Path("/sys/kernel/realtime")) -> bool:
    """Whether this is a PREEMPT_RT kernel."""
    return flag.exists()


def kernel_symbol(name: str, kallsyms: Path = _KALLSYMS) -> str:
    """The name of a kernel function in the symbol table: with the compiler's suffix (.constprop.0) if it has one.

    Returns:
        The symbol; the plain name where there is one.

    Raises:
        KernelError: there is none, or the table is hidden.
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
    """Which hooks tell who uses a socket, beside those where frames are taken.

    Args:
        attach: as for choose_hooks.
        transmit: as for choose_hooks.
        btf: the running kernel's types: they name its tracepoints.

    Returns:
        Those that this kernel has. The fewer, the more packets are of nobody known.
    """
    chosen = [_STATE_TRACEPOINT]
    if attach != "tracepoint" and has_kprobes():
        is_hidden = not os.access(_KALLSYMS, os.R_OK)
        for probe in _USE_PROBES:
            if is_hidden:  # as from a systemd unit; other parts of the kernel call them, so their names are plain
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
    """Which hooks to take on this kernel.

    Args:
        attach: "auto" (frames at tracepoints; users of sockets by kprobes, where there are kprobes), "kprobe" or
            "tracepoint" for all.
        directions: "out", "in" or both.
        transmit: where frames that leave are taken: "queue" or "driver".

    Raises:
        KernelError: kprobes were asked for and this kernel has none, or lacks the function.
    """
    places = [_PLACES[transmit if direction == "out" else "in"] for direction in directions]
    if attach != "kprobe":
        return [tracepoint for _, tracepoint in places]
    if not has_kprobes():
        raise KernelError(
            "this kernel has no kprobes; expected CONFIG_KPROBES=y for attach: kprobe",
            "use attach: auto, which takes tracepoints instead",
        )
    probes = [probe for probe, _ in places if probe]
    if len(probes) < len(places):
        raise KernelError(
            "transmit: driver has no kprobe; expected attach: auto or tracepoint",
            "use attach: auto, which takes tracepoints",
        )
    return [replace(probe, target=kernel_symbol(probe.target)) for probe in probes]


@dataclass(frozen=True, slots=True)
class Counters:
    """What happened to the packets of one interface slot, in packets; names as in `enum counter` of bpf/layout.h.

    `seen` counts every packet that reached the program and stands in slot 0 only; the others are its outcomes.
    """

    seen: int = 0
    delivered: int = 0
    filtered: int = 0
    full: int = 0
    contended: int = 0
    start: int = 0
    duplicate: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def outcomes(self) -> int:
        """Packets that have come to an end: `seen`, when no program is running."""
        return self.delivered + self.filtered + self.duplicate + self.lost

    @property
    def lost(self) -> int:
        """Packets that should have been delivered and were not, by any cause."""
        return self.full + self.contended + self.start


class Program:
    """The loaded program. `load` makes one; `attach` starts the capture; `close` ends it and gives everything back."""

    def __init__(
        self,
        geometry: Geometry,
        hooks: list[Hook],
        learning: list[Hook],
        child: loader.Loader,
        maps: dict[str, int],
        definitions: Mapping[str, int | str],
    ) -> None:
        self.geometry = geometry
        self.hooks = hooks
        self.learning = learning
        self.measured = Measurement(0, 0, 0, 0, b"")
        self._definitions = definitions
        self._child: loader.Loader | None = child
        self._maps = maps
        self._links: list[int] = []
        self._programs: list[int] = []
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
        """Whether page fragments can be read; if not, frames are cut at their linear part."""
        return bool(self.measured.address_base)

    @property
    def process_context(self) -> bool:
        """Whether the program can tell a system call from a softirq; if not, no packet is given to `current`."""
        return bool(self.measured.entry_regs)

    def set_clock(self) -> None:
        """Tell the program how far the wall clock is from the monotonic one, in ns (suspend and steps change it)."""
        before = time.monotonic_ns()
        wall = time.time_ns()
        offset = wall - (before + time.monotonic_ns()) // 2
        known = self.control[abi.CLOCK_OFFSET]
        if abs(offset - known) > 20_000:  # the jitter of reading two clocks is below; steps are above
            self.control[abi.CLOCK_OFFSET] = offset % (1 << 64)

    def set_label(self, key: bytes, value: bytes) -> None:
        """Stamp the packets of a key from now on. key: layout.KEY; value: layout.LABEL."""
        self._update("labels", key, value)

    def clear_labels(self) -> None:
        """Forget all labels; when this returns, what bears one has been reserved."""
        syscall.clear(self._maps["labels"], abi.KEY.size)

    def set_device(self, key: bytes, value: bytes) -> None:
        """Say where to count a device's packets, and whether they are wanted. Bytes as layout.DEVICE_KEY, DEVICE."""
        self._update("devices", key, value)

    def set_holder(self, inode: int, user: bytes) -> None:
        """Say who holds a socket: layout.USER; with tgid 0, that it is nobody or several."""
        self._update("holders", struct.pack("<Q", inode), user)

    def holder(self, inode: int) -> tuple[int, int, int, bytes] | None:
        """Who was the last to use a socket whose place another one has taken, or was set as its holder.

        Returns:
            tgid, tid, start and comm.
        """
        try:
            return abi.USER.unpack(self._lookup("holders", struct.pack("<Q", inode), abi.USER.size))
        except FileNotFoundError:
            return None

    def group(self, number: int) -> list[tuple[int, int]]:
        """The sockets of which any may get a packet, by address and inode; none where they are forgotten."""
        try:
            count, *both = abi.GROUP.unpack(self._lookup("groups", struct.pack("<Q", number), abi.GROUP.size))
        except FileNotFoundError:
            return []
        return list(zip(both[:count], both[abi.GROUP_MAX : abi.GROUP_MAX + count], strict=True))

    def add_flow(self, flow: bytes, owner: bytes) -> None:
        """Say whose a connection is: layout.FLOW, OWNER. What the program has learned itself stands."""
        with contextlib.suppress(FileExistsError):
            syscall.add(self._maps["flows"], flow, owner)

    def remove_flow(self, flow: bytes) -> None:
        """Forget whose a connection is: layout.FLOW."""
        with contextlib.suppress(FileNotFoundError):
            syscall.remove(self._maps["flows"], flow)

    def owner(self, sk: int) -> tuple[int, int, int, bytes, int, int] | None:
        """What the program has learned of a socket: its user's tgid, tid, start and comm; its inode and identity."""
        try:
            found = self._lookup("owners", struct.pack("<Q", sk), abi.OWNER.size)
        except FileNotFoundError:
            return None
        tgid, tid, start, comm, inode, identity, _, _ = abi.OWNER.unpack(found)
        return tgid, tid, start, comm, inode, identity

    def counters(self, slot: int) -> Counters:
        """The counters of one interface slot, over all processors."""
        row = abi.COUNTER_ROW.size
        data = self._lookup("counters", struct.pack("<I", slot), row * self._cpus)
        rows = [abi.COUNTER_ROW.unpack_from(data, row * cpu) for cpu in range(self._cpus)]
        return Counters(*(sum(column) for column in list(zip(*rows, strict=True))[: len(Counters.__slots__)]))

    def missed(self) -> int:
        """Times the kernel skipped the program because it was already running on that processor (recursion_misses)."""
        taking = self._programs[: len(self.hooks)]
        return sum(struct.unpack_from("<Q", syscall.info(fd), _RECURSION_MISSES)[0] for fd in taking)

    @property
    def wakeup_fd(self) -> int:
        """Readable when the program wants the reader."""
        return self._maps["wakeups"]

    def take_wakeups(self) -> None:
        """Make wakeup_fd wait again."""
        self._consumer[:8] = self._producer[:8]

    def measure(self, marker: Marker) -> None:
        """Find where pages are mapped and where a stack keeps its user's registers; what is not found stays 0."""
        table, key = "measurements", struct.pack("<I", 0)
        found = self.measured
        for attempt in range(_MARKER_TRIES):
            wanted = Measurement(
                os.getpid(),
                marker.frame_number(),
                attempt // 2 * abi.CANDIDATES,  # each range twice: the kernel may move the page meanwhile
                abi.machine().sendfile,
                marker.bytes,
                stack_size=found.stack_size,
                entry_regs=found.entry_regs,
            )
            self._update(table, key, abi.MEASUREMENT.pack(*wanted))
            marker.send()
            found = Measurement(*abi.MEASUREMENT.unpack(self._lookup(table, key, abi.MEASUREMENT.size)))
            if found.address_base or not found.packets or not found.frame_number:
                break
        marker.send_datagram()
        found = Measurement(*abi.MEASUREMENT.unpack(self._lookup(table, key, abi.MEASUREMENT.size)))
        if is_realtime():
            found = found._replace(entry_regs=0)  # softirqs run in tasks there: the proof does not hold
        self._update(table, key, abi.MEASUREMENT.pack(*found._replace(tgid=0)))
        self.measured = found
        self.control[abi.PAGE_BASE] = found.page_base if found.address_base else 0
        self.control[abi.ADDRESS_BASE] = found.address_base
        self.control[abi.ENTRY_REGS] = found.entry_regs
        self.control[abi.STACK_SIZE] = found.stack_size
        self.control[abi.UDP_TABLE] = found.udp_table

    def attach(self) -> None:
        """Start capturing: the first packet may be seen before this returns.

        Raises:
            KernelError: the kernel refuses a hook.
        """
        if self._child is None:
            raise KernelError("the program was attached before")
        self.set_clock()
        _, descriptors = self._child.attach()
        hooks = len(descriptors) // 2
        self._links, self._programs = descriptors[:hooks], descriptors[hooks:]
        self._child.close()
        self._child = None

    def compile_filters(self, filters: packet_filter.Source) -> loader.Loader:
        """Begin to compile other packet filters for the attached program; take them with `exchange_filters`.

        Returns:
            The child that does it: readable when it is done.
        """
        definitions = {**self._definitions, "WINDOW": filters.window}
        return loader.start_filters(self._maps, definitions, self.hooks, filters.text)

    def exchange_filters(self, child: loader.Loader) -> None:
        """Put the new filters in the place of the present ones: from one packet to the next, for each direction.

        Raises:
            KernelError: they could not be compiled or loaded; the present ones stay.
        """
        try:
            message, descriptors = child.receive()
            for (table, place), descriptor in zip(message["places"], descriptors, strict=True):
                self._update(table, struct.pack("<I", place), struct.pack("<I", descriptor))
                os.close(descriptor)
        finally:
            child.close()

    def detach(self) -> None:
        """Stop capturing; what is in the segments stays to be read."""
        for descriptor in self._links:
            os.close(descriptor)
        self._links = []

    def close(self) -> None:
        """Give everything back to the kernel."""
        self.detach()
        if self._child is not None:
            self._child.close()
        self.control.release()
        for memory in (self._control, self._consumer, self._producer):
            memory.close()
        with contextlib.suppress(BufferError):  # the traceback of an error may still hold a range
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
) -> Program:
    """Compile and load the program for the running kernel and measure what it needs; nothing is captured yet.

    Args:
        geometry: size of the shared memory.
        hooks: from choose_hooks.
        attach: as given to choose_hooks.
        transmit: as given to choose_hooks.
        filters: packet filters; None for none.
        meanwhile: what to do while the compiler works.

    Raises:
        BtfError: the kernel's types are missing or unknown.
        KernelError: the program cannot be compiled or loaded, or shared memory cannot be had.
    """
    btf = Btf.load()
    definitions = abi.definitions(btf, geometry) | {"CPUS": _possible_cpus()}
    if filters:
        definitions["WINDOW"] = filters.window
    learning = choose_learning_hooks(attach, transmit, btf)
    measure = choose_hooks(attach, ("out",), "queue")[0]
    measure = replace(measure, function="on_measure")
    every = [
        replace(hook, type_id=btf.tracepoint(hook.target) or 0) if hook.kind == "tracepoint" else hook
        for hook in (measure, *hooks, *learning)
    ]
    child = loader.start(_MAPS, definitions, every[1:], every[0], filters.text if filters else "")
    try:
        meanwhile()
        message, descriptors = child.receive()
        maps = dict(zip(message["maps"], descriptors, strict=True))
        _compare_sizes(geometry, maps)
        program = Program(geometry, every[1 : 1 + len(hooks)], learning, child, maps, definitions)
        program.control[abi.LATE] = transmit == "driver"
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


def _compare_sizes(geometry: Geometry, maps: dict[str, int]) -> None:
    for name, expected in geometry.record_sizes().items():
        found = struct.unpack_from("<II", syscall.info(maps[name]), 8)
        if found != expected:
            raise KernelError(f"map {name} has keys and values of {found} bytes; layout.py expects {expected}")


def _possible_cpus(path: Path = Path("/sys/devices/system/cpu/possible")) -> int:
    """How many values a per-CPU map returns."""
    return int(re.split(r"[-,]", path.read_text().strip())[-1]) + 1
