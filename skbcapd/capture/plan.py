"""The plan: everything about a capture that can change while it runs.

In: settings, and their compiled packet filters. Out: one frozen object. A reload exchanges it
completely, between two packets, so no stage sees parts of the old and of the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from skbcapd.attribution.processes import Processes
from skbcapd.capture.rules import Rules, filters_of
from skbcapd.config.settings import Settings
from skbcapd.filter import packet_filter
from skbcapd.filter.netmask import netmask_of
from skbcapd.filter.packet_filter import Matcher, Programs
from skbcapd.kernel.abi import CAPTURE_MAX

RELOADED = frozenset({"snaplen", "filter", "rules", "checksums", "dedup", "comment", "process_blocks"})
"""Keys of the settings that take effect while a capture runs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is kept of which packets, and how it is written.

    Args:
        snaplen: bytes kept of each frame.
        fill: complete checksums that hardware was to complete.
        dedup: take a packet only where it is seen first.
        comment: which fields of the process a packet's comment has, in order.
        process_blocks: describe each process to the output.
        processes: what is known of processes beside their names and ids.
        filter: the packet filter that the program was loaded with, for the file to name.
        rules: the process rules; the program was loaded with their filters.
        matcher: the rules' filters once more, for packets that come to Python.
    """

    snaplen: int = CAPTURE_MAX
    fill: bool = False
    dedup: bool = False
    comment: Sequence[str] = ("comm", "pid", "tgid", "process")
    process_blocks: bool = False
    processes: Processes = field(default_factory=Processes)
    filter: str = ""
    rules: Rules = field(default_factory=Rules)
    matcher: Matcher = field(default_factory=lambda: Matcher({}))

    @property
    def longest(self) -> int:
        """The most bytes that are kept of any frame."""
        return max(self.snaplen, self.rules.most)


def compile_filters(settings: Settings, first: int = 1) -> dict[int, Programs]:
    """All packet filters of settings by number; see rules.filters_of.

    Args:
        settings: checked.
        first: number of the first rule's filter.

    Raises:
        FilterError: a filter cannot be used.
    """
    netmask = netmask_of(settings.interfaces, settings.namespaces)
    return packet_filter.compile_each(filters_of(settings.filter, settings.rules, first), netmask)


def plan_for(settings: Settings, filters: Mapping[int, Programs], first_filter: int = 1) -> Plan:
    """The plan that settings ask for.

    Args:
        settings: checked.
        filters: by number; see rules.filters_of.
        first_filter: number of the first rule's filter.
    """
    wants_cmdline = "cmdline" in settings.comment or any("cmdline" in rule.fields for rule in settings.rules)
    processes = Processes(cmdline=wants_cmdline)
    rules = Rules(settings.rules, first_filter, processes.parent)
    return Plan(
        snaplen=settings.snaplen,
        fill=settings.checksums == "fill",
        dedup=settings.dedup == "first",
        comment=settings.comment,
        process_blocks=settings.process_blocks,
        processes=processes,
        filter=settings.filter,
        rules=rules,
        matcher=Matcher({number: filters[number] for number in rules.filters}),
    )
