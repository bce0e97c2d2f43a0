"""Reports of a running capture and of its end: to the service manager, the journal, or a terminal.

In: a capture and the file that it writes. Out: states for sd_notify, log messages, a status line,
totals.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from skbcapd import standard_streams
from skbcapd.capture.capture import Capture
from skbcapd.capture.drops import NetworkDrops, drops_of
from skbcapd.capture.totals import Totals
from skbcapd.daemon.log import LOG
from skbcapd.daemon.notify import Notifier
from skbcapd.errors import KernelError
from skbcapd.events import Event
from skbcapd.kernel.drops import Drop
from skbcapd.output.ring import Recorder
from skbcapd.output.rotation import RotatingOutput
from skbcapd.pcapng import link_type
from skbcapd.pcapng.blocks import DIRECTION_IN
from skbcapd.text_safety import escaped, escaped_bytes

_LOG = logging.getLogger(__name__)
_SECONDS_BETWEEN_STATES = 10  # reading the counters costs a system call for each interface
_IDS_MAX = 7  # process ids in a line
_DROP_LINES_MAX = 20


class Report:
    """The state of a capture that writes files.

    On a terminal, the status line is updated in place; elsewhere it is printed every few seconds.

    Args:
        capture: the running capture.
        output: writes its packets.
    """

    def __init__(self, capture: Capture, output: RotatingOutput | Recorder) -> None:
        self._capture = capture
        self._output = output
        self._notifier = Notifier()
        self._is_served = LOG.is_journal or self._notifier.is_listening
        self._terminal = sys.stderr.isatty()
        self._seconds = 0
        self._dropped = 0

    def started(self, text: str) -> None:
        """Report that the hooks are attached and the self-test is over.

        Raises:
            KernelError: the self-test has failed, and a service manager waits for the start.
        """
        if self._notifier.is_listening and not self._capture.is_proven:
            raise KernelError(
                "the self-test failed: a test frame was not captured completely; the service does not start",
                "`skbcapd doctor` shows what is missing; `skbcapd capture` captures without this test",
            )
        _LOG.info("%s", text, extra=Event.STARTED.extra(file=self._output.path))
        self._notifier.status(self._state())
        self._notifier.ready()

    def reloading(self, is_going_on: bool) -> None:  # noqa: FBT001  a callback's argument
        """A reload begins or ends."""
        (self._notifier.reloading if is_going_on else self._notifier.ready)()

    def tick(self, seconds: int = 1) -> bool:
        """Called after so many seconds; returns whether a terminal or the watchdog needs it each second."""
        before, self._seconds = self._seconds, self._seconds + seconds
        is_due = self._seconds // _SECONDS_BETWEEN_STATES > before // _SECONDS_BETWEEN_STATES
        is_late = self._notifier.feed()
        LOG.tick()
        if self._is_served:
            if is_due:
                self._notifier.status(self._state())
        elif self._terminal or is_due:
            self._print()
        return is_late or (self._terminal and not self._is_served)

    def close(self) -> None:
        """End the status line."""
        if self._terminal and self._seconds and not self._is_served:
            print(file=sys.stderr)
        LOG.close()

    def stopped(self) -> None:
        """Report the totals: to the journal, or as lines."""
        totals = self._capture.totals()
        network = drops_of(self._capture.program, self._capture.interfaces)
        if not LOG.is_journal:
            print_totals(totals)
            print_drops(network)
            return
        dropped = totals.kernel.lost + totals.missed + totals.dropped
        text = f"stopped: {totals.written} packets captured, {dropped} dropped"
        if network is not None:
            text += f"; the network stack dropped {network.lost}"
        fields = Event.STOPPED.extra(file=self._output.path, packets=totals.written, dropped=dropped)
        _LOG.info("%s", text, extra=fields)

    def _state(self) -> str:
        """Update the status line, and log new drops."""
        totals = self._capture.totals()
        dropped = totals.kernel.lost + totals.missed + totals.dropped
        if self._is_served and dropped > self._dropped:
            text = f"{dropped - self._dropped} packets dropped, {dropped} since the start"
            fields = Event.DROPPED.extra(file=self._output.path, packets=totals.written, dropped=dropped)
            _LOG.warning("%s", text, extra=fields)
        self._dropped = dropped
        return f"{totals.written} packets, {dropped} dropped, {totals.processes} processes, {self._output.path}"

    def _print(self) -> None:
        text = escaped(self._state())
        if self._terminal:
            print(f"\r\x1b[K{text[: standard_streams.width() - 1]}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def print_link_types(links: Sequence[int], path: Path) -> None:
    """Print a line if many programs cannot read a file because it has several link types.

    Args:
        links: LINKTYPE_* of the interfaces in the file.
        path: of the file, or of the directory of the files.
    """
    if len(links) > 1:
        names = ", ".join(map(link_type.name, links))
        print(
            f"several link types ({names}), and many programs read only one; for one file each: "
            f"skbcapd split {escaped(str(path))} --by link-type",
            file=sys.stderr,
        )


def print_descendants(tgids: Sequence[int]) -> None:
    """Print a line if descendants of a command run longer than the command.

    Args:
        tgids: their process ids.
    """
    if tgids:
        ids = ", ".join(map(str, tgids[:_IDS_MAX])) + (", ..." if len(tgids) > _IDS_MAX else "")
        print(
            f"{len(tgids)} processes of the command still run ({ids}); to capture them further: "
            f"skbcapd capture --pid {tgids[0]} --children",
            file=sys.stderr,
        )


def print_totals(totals: Totals, *, quiet: bool = False) -> None:
    """Print the totals on stderr: the lines of tcpdump, and one line for each other outcome.

    Args:
        totals: of the capture.
        quiet: print only drops in the kernel.
    """
    kernel_counters = totals.kernel
    losses = [
        (kernel_counters.full + kernel_counters.contended, "dropped by kernel", not quiet),
        (kernel_counters.start, "dropped, because the start of the frame is unknown", False),
        (totals.missed, "missed while the kernel program was already running", False),
        (kernel_counters.seen - kernel_counters.outcomes, "seen, but not accounted for", False),
    ]
    others = [
        (totals.not_dumped, "not dumped from memory", False),
        (totals.dropped, "dropped by the output", False),  # for example because its reader has closed the pipe
        (totals.filtered, "filtered", False),
        (totals.other_interfaces, "on other interfaces", False),
        (totals.unattributed, "left out, because their process is not known", False),
        (totals.duplicates, "seen before on another interface", False),
        (totals.limited, "dropped by the network and not written, more than drops_rate allows", False),
    ]
    for packets, what, always in losses if quiet else [(totals.written, "captured", True), *losses, *others]:
        if packets or always:
            print(f"{packets} packets {what}", file=sys.stderr)


def print_drops(drops: NetworkDrops | None) -> None:
    """Print what the kernel has dropped on stderr: a sum, and a line for each reason, interface and process.

    Args:
        drops: of the capture; None: they were not counted.
    """
    if drops is None:
        return
    print(f"the network stack dropped {drops.lost} packets; {drops.no_loss} more drops were no loss", file=sys.stderr)
    for row in drops.rows[:_DROP_LINES_MAX]:
        print(f"  {row.packets} {row.reason} {drop_place(row)}", file=sys.stderr)
    if len(drops.rows) > _DROP_LINES_MAX:
        print(f"  and {len(drops.rows) - _DROP_LINES_MAX} lines more", file=sys.stderr)
    missed = "missed while the kernel program was already running"
    for packets, what in ((drops.unlisted, "unlisted, on any interface: the list was full"), (drops.missed, missed)):
        if packets:
            print(f"  {packets} {what}", file=sys.stderr)


def drop_place(drop: Drop) -> str:
    """Where packets were dropped, and whose they are, as text."""
    direction = "in" if drop.direction == DIRECTION_IN else "out"
    process = f", {escaped_bytes(drop.process)} ({drop.tgid})" if drop.tgid else ""
    if drop.is_of_others:
        process = ", other processes"
    return f"{direction} {escaped_bytes(drop.device) or '-'}{process}"
