"""New numbers for interfaces, while packets arrive.

In: an output that wants them, for example because its list of interfaces is too long. Out: a call
of the output when the last packet with an old number has been written.

The rule: a label contains the number of an interface. So labels become invalid first, and all
programs that have read one end (membarrier waits for that). Their reservations are below the cursor
then, and are drained with the old numbers, in as many drains as needed. First packets get no label in
that time: it would have an old number.
"""

from __future__ import annotations

from skbcapd.capture.interfaces import Interfaces
from skbcapd.capture.labeler import Labeler
from skbcapd.kernel import abi
from skbcapd.kernel.program import Program
from skbcapd.kernel.segments import SegmentReader
from skbcapd.output.interface import Output


class Renumbering:
    """Renumbers the interfaces: idle, or waiting until the reader reaches a position.

    Args:
        program: writes the numbers into packets.
        output: assigns the numbers.
        reader: reads the packets with old numbers.
        labeler: makes no labels in the meantime.
        interfaces: know their numbers.
    """

    def __init__(
        self, program: Program, output: Output, reader: SegmentReader, labeler: Labeler, interfaces: Interfaces
    ) -> None:
        self._program, self._output, self._reader = program, output, reader
        self._labeler, self._interfaces = labeler, interfaces
        self._end: int | None = None  # position after the last packet with an old number

    def begin(self) -> None:
        """Called between two drains: no new packets get old numbers; those in the segments are
        still read.
        """
        if self._end is None:
            self._labeler.hold()
            self._end = int(self._program.control[abi.CURSOR])
            self.finish_if_drained()  # if no packet is in the segments

    def finish_if_drained(self) -> None:
        """Called after a drain: renumber the interfaces if all old numbers have been read."""
        if self._end is None or self._reader.position < self._end:
            return
        self._output.restart_interfaces(list(self._interfaces.statistics()))
        self._interfaces.forget_numbers()
        self._labeler.release()
        self._end = None
