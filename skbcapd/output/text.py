"""Packets as lines of text: what `capture` prints without a file.

In: packets. Out: one line each: time, process[tgid], interface, direction, a summary of the frame.

The rule: bytes of a packet or of a process name reach the terminal only if they are printable; if
scapy cannot make a summary, the length is printed. The dissectors of scapy take half a second to
import, so only this module imports them.
"""

from __future__ import annotations

import time

from skbcapd.attribution.processes import Process
from skbcapd.kernel.segments import Packet, Upcall
from skbcapd.output.interface import PROMPT_S, Snapshot
from skbcapd.output.pipe import PipeSink
from skbcapd.pcapng.comment import Label
from skbcapd.pcapng.interface import Interface
from skbcapd.pcapng.link_type import ETHERNET
from skbcapd.text_safety import escaped_bytes


class TextOutput:
    """Prints packets; see Output in interface.py.

    Args:
        sink: takes the lines.
    """

    labels = False

    def __init__(self, sink: PipeSink) -> None:
        from scapy.layers import inet, inet6, l2  # noqa: PLC0415  see above

        self._ethernet, self._ip, self._ipv6 = l2.Ether, inet.IP, inet6.IPv6
        self._sink = sink
        self._interfaces: list[Interface] = []

    def add_interface(self, interface: Interface) -> int:
        """Store name and link type of an interface."""
        self._interfaces.append(interface)
        return len(self._interfaces) - 1

    def add_process(self, process: Process) -> None:
        """Does nothing: each line has the name of its process."""

    def write_packet(self, packet: Packet, interface_id: int, _stamp: Label, _snapshot: Snapshot) -> None:
        """Print one packet."""
        if not isinstance(packet, Upcall):
            raise TypeError("a packet with a label; expected none")
        interface = self._interfaces[interface_id]
        seconds, nanoseconds = divmod(packet.time_ns, 1_000_000_000)
        clock = time.strftime("%H:%M:%S", time.localtime(seconds))
        who = f"{_word(packet.process or packet.comm)}[{packet.tgid}]" if packet.tgid else "?"
        name = _word(packet.interface_name)
        direction = "out" if packet.direction == 2 else "in"
        summary = self._summary(bytes(packet.frame), interface.link_type)
        self._sink.write(f"{clock}.{nanoseconds:09} {who} {name} {direction} {summary}\n".encode("ascii"))

    def write_blocks(self, view: memoryview, _snapshot: Snapshot) -> None:
        """Never called: without labels, the kernel program writes no complete blocks."""
        raise AssertionError(f"{len(view)} bytes of complete blocks; expected none")

    dumped = None
    has_pending_work = needs_renumbering = False
    latency_s = PROMPT_S

    @property
    def lost(self) -> int:
        """See Output."""
        return self._sink.lost

    @property
    def is_busy(self) -> bool:
        """See Output."""
        return self._sink.is_busy

    @property
    def accepted(self) -> int:
        """See Output."""
        return self._sink.accepted

    @property
    def completed(self) -> int:
        """See Output."""
        return self._sink.completed

    def restart_interfaces(self, _statistics: object) -> None:
        """Never called: lines have names, no numbers."""
        raise AssertionError("new numbers for lines of text")

    def finish(self, _statistics: object) -> None:
        """Does nothing: lines have no statistics."""

    def note_memory_pressure(self) -> None:
        """Does nothing: lines are written as fast as they are read."""

    def flush(self, _snapshot: Snapshot) -> None:
        """Write the buffered lines."""
        self._sink.flush()

    def _summary(self, frame: bytes, link_type: int) -> str:
        if link_type == ETHERNET:
            layer = self._ethernet
        else:
            layer = self._ipv6 if frame[:1] and frame[0] >> 4 == 6 else self._ip
        try:
            text = layer(frame).summary()
        except Exception as error:  # noqa: BLE001  any frame may come; scapy's dissectors raise anything
            text = f"not understood ({type(error).__name__})"
        return f"{escaped_bytes(text.encode(errors='replace'))}, length {len(frame)}"


def _word(text: bytes) -> str:
    """A name without spaces, so that it is one word of the line."""
    return escaped_bytes(text).replace(" ", "\\x20")
