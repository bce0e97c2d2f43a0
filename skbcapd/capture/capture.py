"""The drain loop: passes what the kernel program has captured to the output, and counts it.

    segments -> ready blocks ------------------------------------------------------> output
             -> no label: self-test -> interface -> drop -> owner -> descent -> process -> verdict -> label -> output
             -> no label, but its key was decided in this drain -------------------> output
             -> could not be read to its end --------------------------------------> output

In: a loaded program, an output, a selection of interfaces, a plan. Out: packets in the output, and
totals.

The rule: no code here runs per packet, except for packets without a label. Blocks with a label are
written as they are in memory. No drain takes much longer than TURN_S: the event loop has other
work, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from skbcapd.attribution.processes import User, boot_ns
from skbcapd.attribution.sockets import Flow
from skbcapd.capture import verdict
from skbcapd.capture.delivery import Delivery, Sampler
from skbcapd.capture.descent import Descent
from skbcapd.capture.drops import DropNames
from skbcapd.capture.interfaces import Interfaces, Selection
from skbcapd.capture.labeler import Labeler
from skbcapd.capture.ledger import Ledger
from skbcapd.capture.line import Line
from skbcapd.capture.plan import Plan
from skbcapd.capture.renumbering import Renumbering
from skbcapd.capture.resolver import Resolver
from skbcapd.capture.self_test import SelfTest
from skbcapd.capture.totals import Tally, Totals
from skbcapd.kernel import abi
from skbcapd.kernel.program import Counters, Filters, Program
from skbcapd.kernel.segments import SegmentReader, order_accesses
from skbcapd.output.interface import PROMPT_S, Output, Statistics
from skbcapd.pcapng.blocks import walk

TURN_S = 0.2  # a drain ends after the range during which this time has passed
FINAL_DRAIN_S = 1.5  # time for the packets in the segments when a capture ends; the rest is dropped and counted


@dataclass(frozen=True, slots=True)
class Machine:
    """Lookups outside of the kernel program.

    Args:
        find_holders: finds the processes that have a socket open; see Resolver.
        list_holders: lists them for all sockets; None if that takes too long.
        list_flows: lists the existing TCP connections and listeners.
        describe_namespace: returns the text of `if_description` for the cookie and inode number of
            a network namespace.
    """

    find_holders: Callable[[int, int], tuple[User, ...] | None] = lambda _inode, _seen_ns: None
    list_holders: Callable[[], Mapping[int, tuple[User, ...]] | None] = dict
    list_flows: Callable[[], Sequence[Flow]] = tuple
    describe_namespace: Callable[[int, int], str] = lambda _cookie, inode: f"network namespace {inode}"


class Capture:
    """One capture, from attach to the last drained packet.

    Args:
        program: loaded, not attached.
        output: takes the packets.
        selection: which interfaces are captured.
        plan: which packets are kept, and how they are written.
        machine: lookups.
        limit: stop after so many packets; 0 for no limit.
        ask_for_dump: called with the name of a rule with `action: dump`, and its `dump_after` in seconds.
    """

    def __init__(
        self,
        program: Program,
        output: Output,
        selection: Selection,
        plan: Plan,
        machine: Machine,
        limit: int = 0,
        ask_for_dump: Callable[[str, int], None] = lambda _why, _after_s: None,
    ) -> None:
        self.program, self.output, self._plan, self._machine = program, output, plan, machine
        self._tally = tally = Tally()
        self.segments = SegmentReader(program.memory, program.control, program.geometry)
        self._self_test = SelfTest(program, tally)
        self.interfaces = Interfaces(program, output, selection, tally, machine.describe_namespace)
        self._resolver = Resolver(program, machine.find_holders, boot_ns)
        self.descent = Descent(program)
        self._labeler = Labeler(program, takes_stamped=output.labels)
        self._renumbering = Renumbering(program, output, self.segments, self._labeler, self.interfaces)
        self._ledger = Ledger(program, output, tally, self.interfaces, has_limit=bool(limit))
        self._delivery = Delivery(output, tally, self.statistics, ask_for_dump)
        stages = (
            self._self_test.take,
            self.interfaces.take,
            DropNames(program).take,
            self._resolver.take,
            self.descent.take,
            verdict.find_process,
            verdict.decide,
            self._labeler.take,
            self._delivery.take,
        )
        self._line = Line(stages, self._labeler, self._delivery, tally, limit)
        self.has_more = False
        """Whether the last drain has left packets in the segments; then the next one must not wait."""
        self._has_limit = bool(limit)
        self._is_broken = False  # the output has failed: all packets are dropped and counted
        self.has_buffered = False
        """Whether the output may have buffered bytes: the end of the last range, or more if its disk is late."""
        self._set_control()
        self._resolver.refill()

    def start(self) -> None:
        """Measure, attach, and check that a paged frame is captured completely.

        Raises:
            KernelError: the kernel rejects a hook.
        """
        self._self_test.measure()
        self._resolver.add_flows(self._machine.list_flows(), self._machine.list_holders() or {})
        self.program.attach()
        self.descent.watch(self._plan.rules.roots)
        self._resolver.remove_ended_flows(self._machine.list_flows())
        self._self_test.prove(self.drain)
        self._set_control()
        self._labeler.use(self._plan)  # not before: the proof uses the words for packets without a label

    def change(self, plan: Plan, filters: Filters | None = None) -> None:
        """Use another plan from the next packet on. All labels become invalid.

        Args:
            plan: the new plan.
            filters: new packet filters; None if there are none, or if they are unchanged.
        """
        self.descent.watch(plan.rules.roots - self._plan.rules.roots)
        # First the labels: the block stage evaluates the filter again for a packet that has passed the
        # old filter and finds an old label.
        self._labeler.expire()
        if filters is not None:
            self.program.exchange_filters(filters)
        self._plan = plan
        self._set_control()
        self._labeler.use(plan)

    @property
    def is_proven(self) -> bool:
        """Whether the self-test at start has captured a paged frame completely."""
        return self._self_test.is_proven

    @property
    def interface_count(self) -> int:
        """Number of interfaces that were seen."""
        return self.interfaces.seen

    @property
    def labels(self) -> int:
        """Number of labels that were made."""
        return self._labeler.count + self.counters().labels

    def sample(self, sampler: Sampler) -> None:
        """Let something sample the delivered packets."""
        self._delivery.sampler = sampler

    def show(self, viewers: Sampler | None) -> None:
        """Pass the delivered packets to people who watch; None: nobody does."""
        self._delivery.viewers = viewers

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return self._line.is_full

    @property
    def is_complete(self) -> bool:
        """Whether all packets that the program has seen are drained and counted. After `detach` it stays true."""
        counters = self.counters()
        # A program that still runs on another processor during the detach is waited for, and counted.
        return self.segments.is_drained and counters.seen == counters.outcomes

    def drain(self) -> int:
        """Write all committed ranges, until TURN_S have passed or the output is busy.

        Returns:
            Number of bytes that were taken from the segments.

        Raises:
            OSError: the output cannot write (BrokenPipeError: its reader has ended).
        """
        self.has_more = False
        if self.segments.is_idle and not self.has_buffered and not self.output.has_pending_work:
            self._renumbering.finish_if_drained()
            return 0
        moved, end = 0, time.monotonic() + TURN_S
        self._labeler.begin_drain()
        for blocks in self.segments.ranges():
            if self.segments.is_behind:
                self.output.note_memory_pressure()
            if self._is_broken:
                self._tally.dropped += sum(1 for _ in walk(blocks.view))
            elif self.output.is_busy:
                break  # the next drain gets this range again
            elif not self._has_limit or not self.is_full:
                self._line.take(blocks, self._plan)
            moved += len(blocks.view)
            if time.monotonic() >= end:
                self.segments.consume(blocks)
                self.has_more = True
                break
        if (moved or self.has_buffered or self.output.has_pending_work) and not self._is_broken:
            self.output.flush(self.statistics)
            self._resolver.refill()
        self.has_buffered = bool(moved) or self.output.completed < self.output.accepted
        self._renumbering.finish_if_drained()
        return moved

    def current_totals(self) -> Totals:
        """Drain, and return totals that never decrease, as counters of a monitoring system must."""
        kernel, cursor = self.counters(), int(self.program.control[abi.CURSOR])
        self.drain()
        if self.has_buffered:
            self.output.flush(self.statistics)
            self.has_buffered = self.output.completed < self.output.accepted
        return self._ledger.monotonic_totals(kernel, is_drained=self.segments.position >= cursor)

    @property
    def latency_s(self) -> float:
        """Seconds that packets may wait in the segments: few with a limit, which ends the capture, and for viewers."""
        return PROMPT_S if self._has_limit or self._delivery.viewers is not None else self.output.latency_s

    def request_wakeup(self, until: abi.Sleep) -> bool:
        """Request a wakeup; False if its reason is already there. A full buffer always causes one.

        Args:
            until: the next packet, or the next packet without a label.
        """
        self.program.control[abi.SLEEPING] = until
        order_accesses()  # the program commits a packet, and then reads this
        if self.segments.is_drained or (until is abi.Sleep.UNTIL_UPCALL and not self.segments.has_upcalls):
            return True
        self.program.control[abi.SLEEPING] = abi.Sleep.NOT
        return False

    def cancel_wakeup(self) -> bool:
        """Cancel the request.

        Returns:
            Whether the packet of the request has come.
        """
        has_come = self.program.control[abi.SLEEPING] == abi.Sleep.NOT
        self.program.control[abi.SLEEPING] = abi.Sleep.NOT
        return has_come

    def detach(self) -> None:
        """Stop to capture; `drain` still gets the packets that are in the segments."""
        self.program.detach()

    def finish(self, *, broken: bool = False) -> None:
        """End a detached capture.

        Args:
            broken: the output has failed. All remaining packets are counted as dropped, as they are
                after FINAL_DRAIN_S.
        """
        self._is_broken = True
        while self.drain():
            pass
        if not broken:
            self.output.finish(self.statistics())

    def stop(self, *, broken: bool = False) -> None:
        """Detach, write the remaining packets, and end; for callers without an event loop."""
        self.detach()
        deadline = time.monotonic() + FINAL_DRAIN_S
        self._is_broken = broken
        while not self.is_complete and time.monotonic() < deadline:
            if not self.drain():
                time.sleep(0.001)  # for the output, or for a program on another processor
        self.finish(broken=broken)

    def statistics(self) -> list[Statistics]:
        """The statistics of each interface until now, without those that share a row of counters."""
        return list(self.interfaces.statistics())

    def renumber(self) -> None:
        """Begin to renumber the interfaces, at the request of the output; see Renumbering."""
        self._renumbering.begin()

    def counters(self) -> Counters:
        """The counters of the program, added up over all interfaces."""
        return self._ledger.counters()

    def totals(self) -> Totals:
        """The totals until now."""
        return self._ledger.totals()

    def _set_control(self) -> None:
        """Write what can change while the program runs to the control page."""
        control, plan = self.program.control, self._plan
        # The frame of a packet without a label must be long enough for all filters of rules.
        control[abi.SNAPLEN] = abi.CAPTURE_MAX if plan.rules.filters else plan.longest
        control[abi.HEADERS_ONLY] = plan.is_headers_only
        control[abi.FILTERED] = bool(plan.filter)
        control[abi.FILL] = plan.fill
        control[abi.DEDUP] = plan.dedup
        control[abi.DROPS_RATE] = plan.drops_rate
