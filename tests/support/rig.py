"""A capture between a program whose packets the test writes, and an output that records what it
gets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

from skbcapd.attribution.processes import Process
from skbcapd.capture.capture import Capture, Machine
from skbcapd.capture.interfaces import Selection
from skbcapd.capture.plan import Plan
from skbcapd.config.parser import default_settings
from skbcapd.daemon import statistics
from skbcapd.durations import Durations
from skbcapd.filter.packet_filter import Matcher, compile_each
from skbcapd.kernel import abi
from skbcapd.kernel.drops import Drop
from skbcapd.kernel.loader import Hook
from skbcapd.kernel.marker import Marker
from skbcapd.kernel.program import Counters, Group
from skbcapd.kernel.segments import Packet
from skbcapd.output.interface import FILE_S, Snapshot, Statistics
from skbcapd.output.memory import Memory
from skbcapd.output.pcapng_output import PcapngOutput
from skbcapd.output.retention import Usage
from skbcapd.output.rotation import RotatingOutput
from skbcapd.pcapng.blocks import PACKET, walk
from skbcapd.pcapng.comment import Label, label
from skbcapd.pcapng.interface import Interface, Loan
from tests.support.writer import Writer, block


class FakeDrops:
    """Counts of drops.

    Args:
        rows: those that are listed.
    """

    captures = False

    def __init__(self, *rows: Drop) -> None:
        self.rows = rows

    def reason(self, number: int) -> str:
        """A name for each number."""
        return f"REASON_{number}"

    def counts(self) -> list[Drop]:
        """The rows."""
        return list(self.rows)

    def unlisted(self) -> int:
        """Always five."""
        return 5

    def missed(self) -> int:
        """Always two."""
        return 2


class FakeProgram(Writer):
    """A loaded program with the packets of the test."""

    def __init__(self, *, paged: bool = False, process_context: bool = True) -> None:
        super().__init__()
        self.paged, self.process_context = paged, process_context
        self.hooks = [Hook("tracepoint", "net_dev_queue", "on_transmit")]
        self.labels: dict[bytes, bytes] = {}
        self.devices: dict[bytes, bytes] = {}
        self.holders: dict[int, bytes] = {}
        self.descendants: dict[int, abi.Descendant] = {}
        self.groups: dict[int, list[tuple[int, int]]] = {}
        self.bits = bytearray(abi.TGIDS // 8)
        self.rows: dict[int, Counters] = defaultdict(Counters)
        self.calls: list[str] = []
        self.on_attach: list[bytes] = []
        self.drops: FakeDrops | None = None
        self.on_detach: list[bytes] = []

    def put(self, *blocks: bytes, slot: int = 0) -> int:
        """Count packets as the program does: seen in row 0, the rest in the row of their interface."""
        written = super().put(*blocks)
        self.count(slot, delivered=written, full=len(blocks) - written)
        return written

    def count(self, slot: int, **outcomes: int) -> None:
        """Packets with an outcome."""
        self.rows[0] += Counters(seen=sum(outcomes.values()))
        self.rows[slot] += Counters(**outcomes)

    def set_label(self, key: bytes, value: bytes) -> None:
        """Store the label."""
        self.labels[key] = value

    def labelled(self) -> Iterator[bytes]:
        """The processes with a label of the program."""
        yield bytes(self.bits)

    def let_end(self) -> None:
        """No program runs."""
        self.calls.append("let_end")

    def set_interface(self, key: bytes, value: bytes) -> None:
        """Store the interface."""
        self.devices[key] = value

    def set_descendant(self, tgid: int, start: int, root: int) -> None:
        """Store the process."""
        self.descendants[tgid] = abi.Descendant(start, root)

    def remove_descendant(self, tgid: int) -> None:
        """Forget the process."""
        self.descendants.pop(tgid, None)

    def descendant(self, tgid: int) -> abi.Descendant | None:
        """The process, if it was stored."""
        return self.descendants.get(tgid)

    def owner(self, _sk: int) -> None:
        """No recorded owner."""

    def holder(self, _inode: int) -> None:
        """No stored process."""

    def group(self, number: int) -> Group:
        """The candidate sockets of a group."""
        return Group(0, self.groups.get(number, []))

    def set_holder(self, inode: int, user: bytes) -> None:
        """Store the process."""
        self.holders[inode] = user

    def counters(self, slot: int) -> Counters:
        """A row of counters."""
        return self.rows[slot]

    def missed(self) -> int:
        """Always three."""
        return 3

    def measure(self, _marker: Marker) -> None:
        """Pages are readable if the test said so."""
        self.calls.append("measure")
        self.control[abi.PAGE_BASE] = 4096 if self.paged else 0

    def attach(self) -> None:
        """The first packets arrive at once."""
        self.calls.append("attach")
        self.put(*self.on_attach)

    def detach(self) -> None:
        """The last packets arrive late."""
        self.calls.append("detach")
        self.put(*self.on_detach)

    def take_wakeups(self) -> None:
        """Store it."""
        self.calls.append("take_wakeups")


class Recording:
    """An output that stores everything."""

    lost = accepted = completed = flushes = 0
    dumped = None
    is_busy = has_pending_work = needs_renumbering = False
    latency_s = FILE_S

    def __init__(self, *, labels: bool = True) -> None:
        self.labels = labels
        self.statistics: list[Statistics] = []
        self.restarted: list[list[Statistics]] = []
        self.interfaces: list[Interface] = []
        self.written: list[tuple[int, bytes]] = []  # interface, frame; -1 for complete blocks
        self.stamps: list[Label] = []
        self.pressure = 0
        self.flags: list[int] = []
        self.processes: list[tuple[int, Process]] = []  # number of packets before it, process

    def add_process(self, process: Process) -> None:
        """Store a process."""
        self.processes.append((len(self.written), process))

    def restart_interfaces(self, statistics: Sequence[Statistics]) -> None:
        """Store the statistics with the old numbers."""
        self.restarted.append(list(statistics))

    def add_interface(self, interface: Interface) -> int:
        """Number the interface."""
        self.interfaces.append(interface)
        return len(self.interfaces) + 6  # a number that cannot occur by chance

    def write_packet(self, found: Packet, interface_id: int, stamp: Label, _snapshot: Snapshot) -> None:
        """Store a packet."""
        self.written.append((interface_id, bytes(found.frame)))
        self.stamps.append(stamp)
        self.flags.append(found.flags)

    def write_blocks(self, view: memoryview, _snapshot: Snapshot, _loan: Loan | None = None) -> None:
        """Store packet blocks."""
        for offset, kind, size in walk(view):
            assert kind == PACKET
            cap_len = int.from_bytes(view[offset + 20 : offset + 24], "little")
            self.written.append((-1, bytes(view[offset : offset + size][28 : 28 + cap_len])))

    def note_memory_pressure(self) -> None:
        """Count it."""
        self.pressure += 1

    def flush(self, _snapshot: Snapshot) -> None:
        """Nothing is buffered."""
        self.flushes += 1

    def finish(self, statistics: Sequence[Statistics]) -> None:
        """Store them."""
        self.statistics = list(statistics)

    @property
    def frames(self) -> list[bytes]:
        """All frames, in order."""
        return [frame for _, frame in self.written]


AnyOutput = TypeVar("AnyOutput", bound=Recording | PcapngOutput | RotatingOutput)


class Rig(Generic[AnyOutput]):
    """A capture between a fake program and an output (by default a `Recording`)."""

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
        """Let the program write, and drain."""
        self.program.put(*blocks, slot=slot)
        self.capture.drain()


def stamped(tgid: int, comm: bytes = b"chronyd", size: int = 60, **more: bytes) -> bytes:
    """A packet block of a process; tgid 0: without a process. `more`: further fields of the comment."""
    fields: list[tuple[str, bytes | str | int]] = [("via", "kernel")]
    if tgid:
        fields = [("comm", comm), ("pid", tgid), ("tgid", tgid), *more.items()]
    return block(PACKET, 0, bytes(size), label(fields, 2, tgid, tgid, linked=True).options)


class Output(Recording):
    """An output that has a file and can drop packets."""

    path = "/var/log/skbcapd/a.pcapng.part"
    counts: Mapping[str, int] = Usage(6, 6144, 1 << 30, 4 << 30)._asdict() | {
        "deleted_files": 3,
        "deleted_bytes": 3072,
        "indexes": 5,
        "index_errors": 1,
    }
    durations: Mapping[str, Durations] = {"rotation": Durations(), "flush": Durations()}
    refused = (2, "no space")
    memory: dict[str, Any] | None = Memory(8 << 20, 300).reach().facts | {"first_s": 1.0, "dump": None}
    late = 0  # packets that it reports as dropped at the second flush
    _is_asked = False

    def write_blocks(self, view: memoryview, snapshot: Snapshot, loan: Loan | None = None) -> None:
        """Buffer something."""
        super().write_blocks(view, snapshot, loan)
        self._is_asked = False

    def flush(self, _snapshot: Snapshot) -> None:
        """At the first call the end stays buffered."""
        if self._is_asked:
            self.lost, self.late = self.lost + self.late, 0
        self._is_asked = True


class Scene:
    """A capture with statistics and a clock of the test."""

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

    def everything(self) -> statistics.Snapshot:
        """Statistics with a value for each metric."""
        self.rig.program.drops = FakeDrops(Drop("NO_SOCKET", 0, 0, b"", 0, 1, 0, b"", 1))
        self.rig.drain(stamped(7, user=b"www-data", unit=b"nginx.service"))
        interface = {"slot": 1, "name": "eth0", "namespace": "", "packets": 3, "bytes": 300, "dropped": 1}
        return dict(self.look()) | {"by_interface": [interface]}

    def look(self) -> statistics.Snapshot:
        """The statistics, one second later."""
        self.now += 1
        self.statistics.tick()
        return self.statistics.snapshot()
