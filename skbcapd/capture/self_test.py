"""The self-test: packets with known bytes that are sent at start, and must be captured completely.

In: a loaded program. Out: whether it can read paged frames. As a stage: ends the way of packets of
the self-test.

The rule: these packets are counted and never written, even if they arrive late.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from skbcapd.capture.plan import Plan
from skbcapd.capture.record import Record
from skbcapd.capture.totals import Tally
from skbcapd.errors import KernelError
from skbcapd.kernel import abi
from skbcapd.kernel.marker import Marker
from skbcapd.kernel.program import Program

_LOG = logging.getLogger(__name__)
_PROOF_S = 2.0  # of CPU time: the loop never sleeps, and may have to wait for a processor


class SelfTest:
    """Measures the kernel, then proves that the attached program captures a paged frame.

    Args:
        program: loaded.
        tally: counts the packets of the self-test.
    """

    def __init__(self, program: Program, tally: Tally) -> None:
        self._program, self._tally = program, tally
        self._marker: Marker | None = None
        self.is_proven = False
        self.private_net = 0
        """Cookie of the namespace that has only self-test packets; 0 if there is none."""

    def measure(self) -> None:
        """Before the attach: measure what the program needs to know; log a warning for what cannot
        be measured.
        """
        program = self._program
        try:
            self._marker = Marker()
            self.private_net = self._marker.net if self._marker.is_private else 0
            program.control[abi.OWN_NET] = self.private_net
            program.measure(self._marker)
        except (KernelError, OSError) as error:
            _LOG.warning("cannot measure where the kernel maps its pages: %s", error)
        if not program.process_context:
            _LOG.warning(
                "cannot tell system calls from softirqs on this kernel: packets are captured without a process"
            )

    def prove(self, drain: Callable[[], object]) -> None:
        """After the attach: send the marker until it is captured completely; otherwise disable
        reading of pages.

        Args:
            drain: passes packets to `take`.
        """
        program = self._program
        # Frames on loopback are captured when they are sent.
        is_seen = any(hook.function == "on_transmit" for hook in program.hooks)
        if self._marker is not None and program.paged and is_seen:
            deadline = time.thread_time() + _PROOF_S
            program.control[abi.SNAPLEN] = abi.CAPTURE_MAX
            program.control[abi.HEADERS_ONLY] = 0
            self._marker.send()
            while not self.is_proven and time.thread_time() < deadline:
                drain()
            if not self.is_proven:
                program.control[abi.PAGE_BASE] = 0
        if not program.control[abi.PAGE_BASE]:
            _LOG.warning("paged frames cannot be read on this kernel: they are cut at the end of their linear part")
        if self._marker is not None:
            self._marker.close()
            self._marker = None

    def take(self, record: Record, _plan: Plan) -> Record | None:
        """Stage: ends the way of self-test packets."""
        packet = record.packet
        is_marker = self._marker is not None and self._marker.is_in(packet.net, packet.frame)
        self.is_proven |= is_marker
        if is_marker or packet.net == self.private_net:
            self._tally.self_test += 1
            return None
        return record
