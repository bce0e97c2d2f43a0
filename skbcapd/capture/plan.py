"""The plan: everything about a capture that can change while it runs.

In: settings, and their compiled packet filters. Out: one frozen object. A reload exchanges it
completely, between two packets, so no stage sees parts of the old and of the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from skbcapd.attribution.processes import Processes
from skbcapd.capture.rules import Rules, Verdict, filters_of
from skbcapd.config.settings import Payload, Settings
from skbcapd.filter import packet_filter
from skbcapd.filter.netmask import netmask_of
from skbcapd.filter.packet_filter import Matcher, Programs
from skbcapd.kernel.abi import CAPTURE_MAX

RELOADED = frozenset(
    {"snaplen", "payload", "filter", "rules", "checksums", "dedup", "drops_rate", "comment", "process_blocks"}
)
"""Keys of the settings that take effect while a capture runs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which packets are kept, how many bytes of each, and how they are written.

    Args:
        snaplen: bytes kept of each frame.
        payload: whether payload is kept: "all" or "none".
        fill: compute checksums that the hardware would have computed.
        dedup: keep a packet only on the first interface.
        drops_rate: packets written per second and reason of those that the kernel drops.
        comment: fields of the comment, in their order.
        process_blocks: write a block for each process.
        processes: reads records of processes from /proc.
        filter: the packet filter, as text for the file.
        rules: the process rules.
        matcher: evaluates the filters of rules for packets that Python handles.
    """

    snaplen: int = CAPTURE_MAX
    payload: Payload = "all"
    fill: bool = False
    dedup: bool = False
    drops_rate: int = 1000
    comment: Sequence[str] = ("comm", "pid", "tgid", "process", "drop", "at")
    process_blocks: bool = False
    processes: Processes = field(default_factory=Processes)
    filter: str = ""
    rules: Rules = field(default_factory=Rules)
    matcher: Matcher = field(default_factory=lambda: Matcher({}))

    @property
    def longest(self) -> int:
        """The largest number of bytes that is kept of any frame."""
        return max(self.snaplen, self.rules.most)

    @property
    def is_headers_only(self) -> bool:
        """Whether payload is kept of no packet, and nothing in Python needs it: not for a filter of a rule."""
        return self.payload == "none" and not self.rules.keeps_payload and not self.rules.filters

    def cuts_payload(self, verdict: Verdict) -> bool:
        """Whether payload is cut off a packet with this verdict."""
        return (verdict.payload or self.payload) == "none"

    def kept(self, verdict: Verdict, payload: int) -> int:
        """The largest number of bytes that is kept of a frame.

        Args:
            verdict: verdict of the rules.
            payload: offset of the payload in the frame.
        """
        snaplen = verdict.snaplen or self.snaplen
        return min(snaplen, payload) if self.cuts_payload(verdict) else snaplen


def compile_filters(settings: Settings, first: int = 1) -> dict[int, Programs]:
    """Compile all packet filters of settings, by number; see rules.filters_of.

    Args:
        settings: checked.
        first: number of the filter of the first rule.

    Raises:
        FilterError: a filter cannot be used.
    """
    netmask = netmask_of(settings.interfaces, settings.namespaces)
    return packet_filter.compile_each(filters_of(settings.filter, settings.rules, first), netmask)


def plan_for(settings: Settings, filters: Mapping[int, Programs], first_filter: int = 1) -> Plan:
    """Make the plan for settings.

    Args:
        settings: checked.
        filters: by number; see rules.filters_of.
        first_filter: number of the filter of the first rule.
    """
    wants_cmdline = "cmdline" in settings.comment or any("cmdline" in rule.fields for rule in settings.rules)
    processes = Processes(cmdline=wants_cmdline)
    rules = Rules(settings.rules, first_filter, processes.parent)
    return Plan(
        snaplen=settings.snaplen,
        payload=settings.payload,
        fill=settings.checksums == "fill",
        dedup=settings.dedup == "first",
        drops_rate=settings.drops_rate,
        comment=settings.comment,
        process_blocks=settings.process_blocks,
        processes=processes,
        filter=settings.filter,
        rules=rules,
        matcher=Matcher({number: filters[number] for number in rules.filters}),
    )
