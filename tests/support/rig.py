"""A capture between a program that a test writes packets for and an output that remembers what it got."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, overload

from skbcapd.attribution.processes import Process
from skbcapd.capture.capture import Capture, Machine
from skbcapd.capture.interfaces import Selection
from skbcapd.capture.plan import Plan
from skbcapd.config.parser import default_settings
from skbcapd.daemon import statistics
from skbcapd.filter.packet_filter import Matcher, compile_each
from skbcapd.kernel import abi
from skbcapd.kernel.loader import Hook
from skbcapd.kernel.marker import Marker
from skbcapd.kernel.program import Counters
from skbcapd.kernel.segments import Packet
from skbcapd.output.interface import FILE_S, Snapshot, Statistics
from skbcapd.output.pcapng_output import PcapngOutput
from skbcapd.output.rotation import RotatingOutput
from skbcapd.pcapng.blocks import PACKET, walk
from skbcapd.pcapng.comment import Label, label
from skbcapd.pcapng.interface import Interface
from tests.support.writer import Writer, block


class FakeProgram(Writer):
    """A loaded program whose packets are those that a test puts."""

    def __init__(self, *, paged: bool = False, process_context: bool = True) -> None:
        super().__init__()
        self.paged, self.process_context = paged, process_context
        self.hooks = [Hook("tracepoint", "net_dev_queue", "on_transmit")]
        self.labels: dict[bytes, bytes] = {}
        self.devices: dict[bytes, bytes] = {}
        self.holders: dict[int, bytes] = {}
        self.groups: dict[int, list[tuple[int, int]]] = {}
        self.rows: dict[int, Counters] = defaultdict(Counters)
        self.calls: list[str] = []
        self.on_attach: list[bytes] = []
        self.on_detach: list[bytes] = []

    def put(self, *blocks: bytes, slot: int = 0) -> int:
        """Packets, counted as the program does: seen in row 0, the rest in the row of their device."""
        written = super().put(*blocks)
        self.count(slot, delivered=written, full=len(blocks) - written)
        return written

    def count(self, slot: int, **outcomes: int) -> None:
        """Packets that the program dealt with."""
        self.rows[0] += Counters(seen=sum(outcomes.values()))
        self.rows[slot] += Counters(**outcomes)

    def set_label(self, key: bytes, value: bytes) -> None:
        """Remember a label."""
        self.labels[key] = value

    def clear_labels(self) -> None:
        """Forget them."""
        self.labels.clear()

    def set_device(self, key: bytes, value: bytes) -> None:
        """Remember a device."""
        self.devices[key] = value

    def owner(self, _sk: int) -> None:
        """Nothing was learned."""

    def holder(self, _inode: int) -> None:
        """Nor of a socket that has given its place to another one."""

    def group(self, number: int) -> list[tuple[int, int]]:
        """The sockets of which any may get a packet."""
        return self.groups.get(number, [])

    def set_holder(self, inode: int, user: bytes) -> None:
        """Remember who holds a socket."""
        self.holders[inode] = user

    def counters(self, slot: int) -> Counters:
        """A row."""
        return self.rows[slot]

    def missed(self) -> int:
        """Three, always."""
        return 3

    def measure(self, _marker: Marker) -> None:
        """Pages are readable if the test said so."""
        self.calls.append("measure")
        self.control[abi.PAGE_BASE] = 4096 if self.paged else 0

    def attach(self) -> None:
        """The first packets come at once."""
        self.calls.append("attach")
        self.put(*self.on_attach)

    def detach(self) -> None:
        """The last packets come late."""
        self.calls.append("detach")
        self.put(*self.on_detach)

    def take_wakeups(self) -> None:
        """Remember it."""
        self.calls.append("take_wakeups")


class Recording:
    """An output that keeps everything."""

    lost = accepted = completed = 0
    dumped = None
    is_busy = has_pending_work = needs_renumbering = False
    latency_s = FILE_S

    def __init__(self, *, labels: bool = True) -> None:
        self.labels = labels
        self.statistics: list[Statistics] = []
        self.restarted: list[list[Statistics]] = []
        self.interfaces: list[Interface] = []
        self.written: list[tuple[int, bytes]] = []  # interface, frame; -1 for blocks that were ready
        self.stamps: list[Label] = []
        self.pressure = 0
        self.flags: list[int] = []
        self.processes: list[tuple[int, Process]] = []  # in front of which packet

    def add_process(self, process: Process) -> None:
        """Take a process."""
        self.processes.append((len(self.written), process))

    def restart_interfaces(self, statistics: Sequence[Statistics]) -> None:
        """Remember what was told with the old numbers."""
        self.restarted.append(list(statistics))

    def add_interface(self, interface: Interface) -> int:
        """Number it."""
        self.interfaces.append(interface)
        return len(self.interfaces) + 6  # no number that could come about by chance

    def write_packet(self, found: Packet, interface_id: int, stamp: Label, _snapshot: Snapshot) -> None:
        """Take a packet."""
        self.written.append((interface_id, bytes(found.frame)))
        self.stamps.append(stamp)
        self.flags.append(found.flags)

    def write_blocks(self, view: memoryview, _snapshot: Snapshot) -> None:
        """Take blocks of packets, nothing else."""
        for offset, kind, size in walk(view):
            assert kind == PACKET
            cap_len = int.from_bytes(view[offset + 20 : offset + 24], "little")
            self.written.append((-1, bytes(view[offset : offset + size][28 : 28 + cap_len])))

    def note_memory_pressure(self) -> None:
        """Note it."""
        self.pressure += 1

    def flush(self, _snapshot: Snapshot) -> None:
        """Nothing is held back."""

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """Remember them."""
        self.statistics = list(statistics)

    @property
    def frames(self) -> list[bytes]:
        """All frames, in order."""
        return [frame for _, frame in self.written]


AnyOutput = TypeVar("AnyOutput", bound=Recording | PcapngOutput | RotatingOutput)


class Rig(Generic[AnyOutput]):
    """A capture between a fake program and an output, which is a `Recording` if the test gives none."""

    @overload
    def __init__(self: Rig[Recording], output: None = None, **arguments: Any) -> None: ...

    @overload
    def __init__(self, output: AnyOutput, **arguments: Any) -> None: ...

    def __init__(self, output: Any = None, **arguments: Any) -> None:
        self.program = FakeProgram()
        used: Any = Recording() if output is None else output
        self.output: AnyOutput = used
        parts: dict[type, dict[str, Any]] = {name: {} for name in (Selection, Plan, Machine)}
        for key in list(arguments):
            for part, chosen in parts.items():
                if key in part.__dataclass_fields__:  # type: ignore[attr-defined]
                    chosen[key] = arguments.pop(key)
        if rules := parts[Plan].get("rules"):
            parts[Plan]["matcher"] = Matcher(compile_each(rules.filters))
        self.plan = Plan(**parts[Plan])
        self.capture = Capture(
            self.program,  # type: ignore[arg-type]
            self.output,
            Selection(**parts[Selection]),
            self.plan,
            Machine(**parts[Machine]),
            **arguments,
        )

    def drain(self, *blocks: bytes, slot: int = 0) -> None:
        """Let the program write, and the capture read."""
        self.program.put(*blocks, slot=slot)
        self.capture.drain()


def stamped(tgid: int, comm: bytes = b"chronyd", size: int = 60) -> bytes:
    """A ready block of a process; no process for tgid 0."""
    fields: list[tuple[str, bytes | str | int]] = [("via", "kernel")]
    if tgid:
        fields = [("comm", comm), ("pid", tgid), ("tgid", tgid)]
    return block(PACKET, 0, bytes(size), label(fields, 2, tgid, tgid, linked=True).options)


class Output(Recording):
    """An output that has a file and can lose packets."""

    path = "/var/log/skbcapd/a.pcapng.part"
    deleted = (3, 3072)
    late = 0  # packets that it will not have taken when it is asked a second time
    _is_asked = False

    def write_blocks(self, view: memoryview, snapshot: Snapshot) -> None:
        """Hold something back."""
        super().write_blocks(view, snapshot)
        self._is_asked = False

    def flush(self, _snapshot: Snapshot) -> None:
        """The first time the end is held back."""
        if self._is_asked:
            self.lost, self.late = self.lost + self.late, 0
        self._is_asked = True


class Scene:
    """A capture that is looked at, by a clock of the test's own."""

    def __init__(self, **settings: str) -> None:
        self.output = Output()
        self.rig = Rig(self.output, exclude=("eth7",))
        self.rig.program.learning = [Hook("tracepoint", "sock_send_length", "on_used")]  # type: ignore[attr-defined]
        self.now = 0.0
        self.log_dropped = 0
        self.statistics = statistics.Statistics(
            self.rig.capture,
            self.output,
            lambda: default_settings(settings),
            lambda: self.now,
            lambda: self.log_dropped,
        )

    def look(self) -> statistics.Snapshot:
        """The facts, one second later."""
        self.now += 1
        self.statistics.tick()
        return self.statistics.snapshot()
