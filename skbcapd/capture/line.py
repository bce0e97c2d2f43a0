"""Passes a range of blocks on: blocks with a label to the output, the others through the stages.

In: a range of the segments. Out: its packets are in the output, or counted.

The rule: packets keep their order. With a limit, nothing is written after the last packet.
"""

from __future__ import annotations

from collections.abc import Sequence

from skbcapd.capture.delivery import Delivery
from skbcapd.capture.labeler import Labeler
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import Record, Stage
from skbcapd.capture.totals import Tally
from skbcapd.kernel.segments import Cut, Range, identity_of, read_local, read_repeated
from skbcapd.pcapng.blocks import PACKET, walk


class Line:
    """The stages in their order.

    Args:
        stages: for packets without a label.
        labeler: knows what was decided in this drain.
        delivery: writes those packets, and complete blocks.
        tally: counts written packets.
        limit: maximum number of packets; 0: no limit.
    """

    def __init__(self, stages: Sequence[Stage], labeler: Labeler, delivery: Delivery, tally: Tally, limit: int) -> None:
        self._stages, self._labeler, self._delivery, self._tally = tuple(stages), labeler, delivery, tally
        self._limit = limit

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return bool(self._limit) and self._tally.written >= self._limit

    def take(self, blocks: Range, plan: Plan) -> None:
        """Write one range."""
        view, local, loan = blocks
        if not local and not self._limit:
            self._delivery.take_blocks(view, loan)
            return
        if self._limit:
            local = [offset for offset, _, _ in walk(view)]
        done = 0
        for offset in local:
            if self.is_full:
                return
            if offset > done:
                self._delivery.take_blocks(view[done:offset], blocks.loan_from(done))
            size = int.from_bytes(view[offset + 4 : offset + 8], "little")
            if int.from_bytes(view[offset : offset + 4], "little") == PACKET:
                self._delivery.take_blocks(view[offset : offset + size], blocks.loan_from(offset))
                self._tally.written += 1
            else:
                self._take_local(view, offset, plan)
            done = offset + size
        if done < len(view):
            self._delivery.take_blocks(view[done:], blocks.loan_from(done))

    def _take_local(self, view: memoryview, offset: int, plan: Plan) -> None:
        """Process one local block."""
        decision = self._labeler.decided(identity_of(view, offset))
        if decision is not None:
            self._delivery.take_repeated(read_repeated(view, offset), decision, plan)
            return
        packet = read_local(view, offset)
        if isinstance(packet, Cut):
            self._delivery.take_cut(packet)
            return
        record: Record | None = Record(packet)
        for stage in self._stages:
            if record is None:
                return
            record = stage(record, plan)
