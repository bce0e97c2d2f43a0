"""The statistics of a running capture, as `skbcapd status` and the metrics show them.

In: a capture, its output, its settings, and a sample of its packets. Out: snapshots: numbers, text,
lists.

The rules not to break: only the length and the process of a packet get in here. The cost does not
depend on the number of packets: SAMPLES packets of each tick are sampled, and counters are read once
per second, however often a client asks. Every packet is counted once: seen = written + filtered +
other_interfaces + unattributed + duplicates + limited + self_test + in_memory + dropped + pending.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from typing import Any, Protocol, TypeAlias

from skbcapd import __version__
from skbcapd.capture.capture import Capture
from skbcapd.capture.drops import NetworkDrops, drops_of
from skbcapd.capture.interfaces import InterfaceCount
from skbcapd.capture.plan import RELOADED
from skbcapd.config.pattern import TextPattern
from skbcapd.config.settings import ROWS, Rule, Settings
from skbcapd.durations import Durations
from skbcapd.kernel.segments import Packet
from skbcapd.pcapng.blocks import (
    BLOCK_MIN,
    DIRECTION_IN,
    EPB_PROCESSID_THREADID,
    OPT_COMMENT,
    PACKET,
    PACKET_HEAD,
    block_at,
)
from skbcapd.pcapng.comment import CommentError, Label, parse
from skbcapd.text_safety import escaped, escaped_bytes

Snapshot: TypeAlias = dict[str, Any]

SAMPLES = 1009  # packets sampled between two ticks of the loop
_SAMPLES_PER_RANGE = 101  # so that one burst does not use all of them
WINDOW_S = 30  # the list covers this window and the one before
PROCESSES = 4093  # per window; with more, the half with fewer bytes is discarded
_TOP = 20
_FRESH_S = 1.0
PEAK_S = 60
INTERFACES_MAX = 256  # in the list by interface
DROPS_MAX = 256  # in the list of network drops
_END = struct.Struct("<HHII")  # option 8: code, length, process, thread
_LENGTHS = struct.Struct("<II12xII")  # of PACKET_HEAD: type, length, captured and original length of the frame


GROUPS = ("process", "user", "unit", "container", "pod")
"""Fields of a comment by which the sampled packets are summed up, too, if the comment has them."""


@dataclass(slots=True)
class _Share:
    """Sampled packets of one process."""

    comment: bytes  # parsed when somebody asks
    packets: int = 0
    size: int = 0  # bytes

    def add(self, packets: int, size: int) -> None:
        self.packets += packets
        self.size += size


class Busiest:
    """The busiest processes: a Sampler.

    It counts at most SAMPLES packets between two ticks.
    """

    def __init__(self) -> None:
        self._left = SAMPLES
        self._seconds = 0
        self._before: dict[int | bytes, _Share] = {}
        self._now: dict[int | bytes, _Share] = {}  # by tgid, or by a comment without one

    def tick(self, seconds: int = 1) -> None:
        """Called after so many seconds: allow SAMPLES more packets."""
        self._left = SAMPLES
        windows = self._seconds // WINDOW_S
        self._seconds += seconds
        if self._seconds // WINDOW_S > windows:
            self._before, self._now = self._now, {}

    def sample_blocks(self, view: memoryview) -> None:
        """Sample the first packets of complete blocks."""
        alike: dict[bytes, list[int]] = {}  # by options: the lengths
        at, last = 0, len(view) - PACKET_HEAD.size
        for _ in range(min(self._left, _SAMPLES_PER_RANGE)):
            if at > last:
                break
            kind, size, cap_len, original_len = _LENGTHS.unpack_from(view, at)
            end = at + size
            if size & 3 or not BLOCK_MIN <= size <= len(view) - at:
                block_at(view, at)  # raises the error
            if kind == PACKET:
                options = bytes(view[at + PACKET_HEAD.size + (cap_len + 3 & ~3) : end - 4])
                alike.setdefault(options, []).append(original_len)
            at = end
        for options, lengths in alike.items():
            self._sample(options, len(lengths), sum(lengths))

    def sample_packet(self, packet: Packet, _interface_id: int, stamp: Label) -> None:
        """Sample a packet that Python has written."""
        if self._left:
            self._sample(stamp.options, 1, packet.original_len)

    def _sample(self, options: bytes, packets: int, size: int) -> None:
        """Sample packets with the same options; see comment.packet_options.

        Args:
            options: of each of them.
            packets: their number.
            size: their bytes.
        """
        self._left -= packets
        key: int | bytes = b""
        if len(options) >= 16:
            code, length, tgid, _ = _END.unpack_from(options, len(options) - 16)
            key = tgid if (code, length) == (EPB_PROCESSID_THREADID, 8) else _comment(options)
        found = self._now.get(key)
        if found is None:
            if len(self._now) >= PROCESSES:
                heavy = sorted(self._now.items(), key=lambda item: -item[1].size)
                self._now = dict(heavy[: PROCESSES // 2])
            found = self._now[key] = _Share(_comment(options))
        found.add(packets, size)

    def snapshot(self) -> Snapshot:
        """The busiest processes, those with most bytes first, and the number of sampled packets."""
        sums: dict[int | bytes, _Share] = {}
        for window in (self._before, self._now):
            for key, share in window.items():
                one = sums.setdefault(key, _Share(share.comment))
                one.comment = share.comment
                one.add(share.packets, share.size)
        fields = {key: _fields(share.comment) for key, share in sums.items()}
        ordered = sorted(sums.items(), key=lambda item: -item[1].size)[:_TOP]
        return {
            "sampled": sum(one.packets for one in sums.values()),
            "seconds": min(self._seconds, self._seconds % WINDOW_S + WINDOW_S),
            "busiest": [
                {
                    "tgid": key if isinstance(key, int) else None,
                    "name": _name(fields[key]),
                    "packets": share.packets,
                    "bytes": share.size,
                }
                for key, share in ordered
            ],
            "sampled_bytes": sum(one.size for one in sums.values()),
            "groups": {
                field: _group([(fields[key].get(field), share.size) for key, share in sums.items()]) for field in GROUPS
            },
        }


class Output(Protocol):
    """The statistics of files."""

    @property
    def path(self) -> str:
        """The path of the current file."""
        ...

    @property
    def refused(self) -> tuple[int, str]:
        """Number of dumps that could not begin, and the reason of the last one."""
        ...

    @property
    def memory(self) -> dict[str, Any] | None:
        """The state of the memory; None: files.mode is files."""
        ...

    @property
    def counts(self) -> Mapping[str, int]:
        """Finished files, their disk, files that retention has deleted, indexes, by name."""
        ...

    @property
    def durations(self) -> Mapping[str, Durations]:
        """How long work on files took, by the kind of work."""
        ...


class Statistics:
    """The statistics of one capture.

    Args:
        capture: running; its packets are sampled.
        output: takes its packets.
        settings: returns the active settings; see in_force.
        clock: seconds.
        log_dropped: returns the number of log lines that could not be written.
    """

    def __init__(
        self,
        capture: Capture,
        output: Output,
        settings: Callable[[], Settings],
        clock: Callable[[], float] = time.monotonic,
        log_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self._capture, self._output, self._settings, self._clock = capture, output, settings, clock
        self._log_dropped = log_dropped
        self._busiest = Busiest()
        capture.sample(self._busiest)
        self._start, self._start_s = clock(), time.time()
        self._made = float("-inf")
        self._peaks: deque[int] = deque(maxlen=PEAK_S)  # of the buffer, second by second
        self._snapshot: Snapshot = {}

    def tick(self, seconds: int = 1) -> None:
        """Called after so many seconds."""
        self._busiest.tick(seconds)
        self._peaks.extend([self._capture.segments.take_peak()] * seconds)

    def snapshot(self) -> Snapshot:
        """All statistics, at most one second old. It drains the segments, so only the drain loop
        may call it.
        """
        now = self._clock()
        if now >= self._made + _FRESH_S:
            self._made, self._snapshot = now, self._take(now)
        return self._snapshot

    def _take(self, now: float) -> Snapshot:
        capture, settings = self._capture, self._settings()
        totals = capture.current_totals()
        kernel = totals.kernel
        dropped = {"full": kernel.full, "contended": kernel.contended, "start": kernel.start, "output": totals.dropped}
        packets = {
            "written": totals.written,
            "filtered": totals.filtered,
            "other_interfaces": totals.other_interfaces,
            "unattributed": totals.unattributed,
            "duplicates": totals.duplicates,
            "limited": totals.limited,
            "self_test": totals.self_test,
            "in_memory": totals.not_dumped,
        }
        # The counters are read one after the other, while packets arrive.
        pending = max(0, kernel.seen - sum(packets.values()) - sum(dropped.values()))
        seen = sum(packets.values()) + sum(dropped.values()) + pending
        program = capture.program
        return {
            "version": __version__,
            "pid": os.getpid(),
            "start": datetime.fromtimestamp(int(self._start_s), UTC).isoformat(),
            "start_s": self._start_s,
            "uptime_s": int(now - self._start),
            "monotonic_s": round(now, 3),
            "hooks": [str(hook) for hook in program.hooks],
            "socket_hooks": [str(hook) for hook in program.learning],
            "packets": {"seen": seen, **packets, "pending": pending},
            "dropped": dropped,
            "missed": totals.missed,
            "network_drops": _network_drops(drops_of(program, capture.interfaces)),
            "wire_bytes": kernel.wire_bytes,
            "upcalls": capture.segments.local,
            "buffer_size": program.geometry.size,
            "buffer_peak": max(self._peaks, default=0),
            "interfaces": capture.interface_count,
            "by_interface": _by_interface(capture.interfaces.counts()),
            "labels": capture.labels,
            "processes": {"count": totals.processes, **self._busiest.snapshot()},
            "files": {
                "mode": settings.files.mode,
                "directory": settings.files.directory,
                "path": self._output.path,
                **self._output.counts,
                **dict(zip(("dumps_refused", "dump_refusal"), self._output.refused, strict=True)),
            },
            "durations": {name: durations.facts for name, durations in self._output.durations.items()},
            "memory": self._output.memory,
            "log": {"dropped": self._log_dropped()},
            "settings": {key: _plain(reduce(getattr, key.split("."), settings)) for key in ROWS},
        }


def in_force(start: Settings, now: Settings) -> Settings:
    """The active settings of a capture: those of its start, with those that a reload can change."""
    return replace(start, **{key: getattr(now, key) for key in RELOADED})


def _by_interface(counts: Sequence[InterfaceCount]) -> list[dict[str, Any]]:
    """The packets by interface, for clients; the busiest INTERFACES_MAX."""
    return [
        {
            "slot": one.slot,
            "name": escaped_bytes(one.name),
            "namespace": escaped(one.namespace),
            "packets": one.packets,
            "bytes": one.size,
            "dropped": one.dropped,
        }
        for one in counts[:INTERFACES_MAX]
    ]


def _network_drops(drops: NetworkDrops | None) -> dict[str, Any] | None:
    """What the kernel has dropped, for clients; the DROPS_MAX rows with most packets. None: not counted."""
    if drops is None:
        return None
    return {
        "lost": drops.lost,
        "no_loss": drops.no_loss,
        "unlisted": drops.unlisted,
        "missed": drops.missed,
        "by_reason": [
            {"reason": reason, "loss": is_loss, "packets": packets}
            for (reason, is_loss), packets in drops.by_reason().items()
        ],
        "rows": [
            {
                "reason": row.reason,
                "loss": row.is_loss,
                "interface": escaped_bytes(row.device),
                "netns": row.netns,
                "direction": "in" if row.direction == DIRECTION_IN else "out",
                "tgid": row.tgid or None,
                "name": escaped_bytes(row.process),
                "others": row.is_of_others,
                "packets": row.packets,
            }
            for row in drops.rows[:DROPS_MAX]
        ],
    }


def _comment(options: bytes) -> bytes:
    """The comment of a packet of skbcapd, which is the first option; empty if there is none."""
    code, size = struct.unpack_from("<HH", options) if len(options) >= 4 else (0, 0)
    return options[4 : 4 + size] if code == OPT_COMMENT else b""


def _fields(comment: bytes) -> dict[str, str]:
    """The values in a comment, escaped; empty if it is not a comment of skbcapd. `process` is the name of
    the process also where the comment has only `comm`, because the two are equal.
    """
    try:
        found = {name: escaped_bytes(value) for name, value in parse(comment.decode("ascii"))}
    except (CommentError, UnicodeDecodeError):
        return {}
    if "comm" in found:
        found.setdefault("process", found["comm"])
    return found


def _name(fields: Mapping[str, str]) -> str:
    """The name of the process with this comment, or how it was looked for."""
    return fields.get("process", f"via={fields['via']}" if "via" in fields else "")


def _group(values: Iterable[tuple[str | None, int]]) -> list[dict[str, Any]]:
    """The _TOP values of a field with most bytes.

    Args:
        values: the field of each process, if it has it, and its bytes.
    """
    sums: dict[str, int] = {}
    for value, size in values:
        if value:
            sums[value] = sums.get(value, 0) + size
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return [{"name": name, "bytes": size} for name, size in ordered[:_TOP]]


def _plain(value: object) -> object:
    """The value of a setting for JSON; a pattern as in the config file."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, TextPattern):
        return value.text
    if isinstance(value, Rule):
        return {name: _plain(one) for name, one in value.given.items()}
    return value
