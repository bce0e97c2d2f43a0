"""Sends cases while an AF_PACKET socket and `skbcapd capture` capture on the same interface, and
compares both.

Cases go in; an outcome per case comes out: who sent, what the reference saw, what we wrote. One
capture serves all cases, as starting one is what costs: a marker frame that only this module sends
stands behind each case in both recordings. Nobody waits for our capture: it is stopped when the
last marker has passed, and must have drained what came before.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tests.kernel.capture import ROOT, Capture, Ended, read
from tests.kernel.cases import Case
from tests.kernel.namespace import Namespace, Wire
from tests.kernel.payloads import UDP_HEADER_BYTES, datagrams, ip_packet, stream
from tests.kernel.reference import Frame, Reference
from tests.kernel.send.identity import MAGIC, WHO, pattern, payload
from tests.kernel.sink import Sink
from tests.support.blocks import Label, Packet
from tests.support.deadline import DEADLINE_S

ETH_P_802_EX1 = 0x88B5  # for local experiments: nobody else sends it
TRIES = 3
CAN_HIDE = "SKBCAPD_SLOWNESS" not in os.environ  # standard kernels, in virtual machines, hide no process


@dataclass(frozen=True)
class Outcome:
    """The results of one case, in the direction that was compared."""

    case: Case
    direction: str
    senders: list[Label]
    error: str
    reference: list[Frame]
    ours: list[Packet]

    @property
    def identical(self) -> int:
        """The number of frames that are equal in both, byte for byte."""
        theirs = Counter(frame.data for frame in self.reference)
        return (theirs & Counter(packet.data for packet in self.ours)).total()

    def parting(self) -> str:
        """Describe the difference to the reference; empty if both have the same frames in the same
        order.

        The order is left out where two CPUs may pass the two points at once: threads that send,
        frames that arrive.
        """
        theirs, ours = [frame.data for frame in self.reference], [packet.data for packet in self.ours]
        if self.direction == "in" or self.case.threads > 1:
            theirs, ours = sorted(theirs), sorted(ours)
        return difference(theirs, ours)

    def parting_from_sent(self) -> str:
        """Describe the difference to the payloads that the sender reports; empty if there is none."""
        case, ours = self.case, [packet.data for packet in self.ours]
        if case.streams:
            return difference([pattern(case.size)], [stream(ours)])
        if len(ours) != case.frames:
            return f"{case.frames} frames were to be sent, ours {len(ours)}"
        sent = [
            bytes.fromhex(case.hex) or payload(case.size, sender.tgid, sender.tid, sequence)
            for sender in self.senders
            for sequence in range(case.count)
        ]
        return difference(sorted(sent), sorted(datagrams(ours, case.protocol) if case.protocol else ours))

    def labels(self) -> Counter[str]:
        """Count our packets by their label: `right`, `unknown` or `wrong`."""
        return Counter(self._verdict(packet) for packet in self.ours)

    def _verdict(self, packet: Packet) -> str:
        """A frame that says who sent it must be labelled so; another one with a sender of the case.

        One that arrives belongs to its receiver, which is this process; its sender's name would be
        wrong.
        """
        if packet.label is None:
            return "unknown"
        if self.direction == "in":
            return "right" if packet.label.tgid == os.getpid() else "wrong"
        carried = ip_packet(packet.data)
        data = carried.data[UDP_HEADER_BYTES:] if carried and not carried.offset else b""
        if data.startswith(MAGIC) and len(data) >= WHO.size:
            _, tgid, tid, _ = WHO.unpack_from(data)
            said = [sender for sender in self.senders if (sender.tgid, sender.tid) == (tgid, tid)]
        else:
            said = self.senders
        return "right" if packet.label in said else "wrong"


class Marker:
    """Sends frames that stand between the cases.

    Args:
        namespace: of the device that sends them.
        device: the one that is watched, or that leads there.
        size: bytes of a frame.
    """

    def __init__(self, namespace: Namespace, device: str, size: int = 60) -> None:
        self._socket = namespace.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((device, 0))
        self._device, self._size = device, size
        self.sent: list[bytes] = []

    def send(self) -> bytes:
        """Send the next marker and give its bytes."""
        _run_on_each_processor()
        addresses = b"\x02skb00\x02skb01"  # locally administered, nobody's
        frame = addresses + ETH_P_802_EX1.to_bytes(2, "big") + f"marker {len(self.sent)} of {self._device}".encode()
        self.sent.append(frame.ljust(self._size, b"\0"))
        self._socket.send(self.sent[-1])
        return self.sent[-1]

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _run_on_each_processor() -> None:
    """Return when each softirq that is at work now has ended. A packet socket gets what is sent before the capture
    does: without this, the marker could overtake a frame that a test has seen already.
    """
    allowed = os.sched_getaffinity(0)
    try:
        for processor in allowed:
            os.sched_setaffinity(0, {processor})
    finally:
        os.sched_setaffinity(0, allowed)


def run_sender(namespace: Namespace, command: Sequence[str]) -> tuple[list[Label], str]:
    """Run a sender to its end.

    Returns:
        Who sent, and what went wrong (empty when all went well).
    """
    done = namespace.do(
        subprocess.run,
        [sys.executable, "-E", "-s", "-S", "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S * 0.9,
        check=False,
    )
    if done.returncode:
        return [], done.stderr
    return [Label(**sender) for sender in json.loads(done.stdout)], ""


@dataclass(frozen=True)
class Comparison:
    """The outcomes of a capture over several cases, and how it ended; `written` counts all packets
    in its file.

    `others` are those of them that passed in the other direction.
    """

    outcomes: list[Outcome]
    ended: Ended
    written: int
    others: int

    @property
    def unseen(self) -> int:
        """How many frames no BPF program saw, if there is no other difference: the reference has them, and the
        capture, which has seen no more packets than are in its file, has all others.

        A kernel that hides a process from tracing runs no program for what a softirq sends or receives while that
        process is `current`. A kprobe can miss frames, too, which are counted (docs/limitations.md).
        """
        theirs = Counter(frame.data for outcome in self.outcomes for frame in outcome.reference)
        ours = Counter(packet.data for outcome in self.outcomes for packet in outcome.ours)
        seen = sum(self.ended.totals.values()) - self.ended.totals.get("on other interfaces", 0) - self.ended.missed
        is_alike = self.ended.exit_code == 0 and not ours - theirs and seen == self.written
        missing = (theirs - ours).total()
        return missing if is_alike and (CAN_HIDE or missing <= self.ended.missed) else 0


def difference(theirs: list[bytes], ours: list[bytes]) -> str:
    """Describe the first difference of two recordings in one line; empty if they are equal."""
    for number, (reference, own) in enumerate(zip(theirs, ours, strict=False)):
        if reference != own:
            at = next(
                (i for i, (a, b) in enumerate(zip(reference, own, strict=False)) if a != b),
                min(len(reference), len(own)),
            )
            shown = f"{reference[at : at + 32].hex()}, ours {own[at : at + 32].hex()}"
            return f"frame {number} ({len(reference)} bytes, ours {len(own)}) parts at byte {at}: {shown}"
    return "" if len(theirs) == len(ours) else f"{len(theirs)} frames, ours {len(ours)}"


def compare(
    cases: Iterable[Case],
    wire: Wire,
    directory: Path,
    direction: str = "out",
    through: Sequence[str] = (),
    **settings: str,
) -> Comparison:
    """Send cases from the near end of a wire, watched there, or watched where they arrive. If no BPF
    program saw some of the frames, send all again, and say so.

    Args:
        cases: in the order to send them.
        wire: where.
        directory: for the capture file and what the senders read.
        direction: `out` to watch the near end, `in` to watch the far end; what passes the other way
            is left out.
        through: as for `Capture`.
        settings: of the capture.
    """
    cases = list(cases)
    for _ in range(TRIES):
        made = _compare(cases, wire, directory, direction, through, settings)
        if not made.unseen:
            break
        print(f"{made.unseen} frames that the reference saw, but no BPF program: all cases are sent again")
    return made


def _compare(
    cases: Sequence[Case],
    wire: Wire,
    directory: Path,
    direction: str,
    through: Sequence[str],
    settings: Mapping[str, str],
) -> Comparison:
    near, watched = wire.near, wire.near if direction == "out" else wire.far
    capture_file, sent_file = directory / "compared.pcapng", directory / "sent.bin"
    arguments = ["-i", watched.device, "-w", str(capture_file)]
    seen: list[tuple[Case, str, list[Label], str, list[Frame]]] = []
    with (
        closing(Sink(wire.far.namespace)),
        closing(Marker(near.namespace, near.device)) as marker,
        closing(Reference(watched.namespace, watched.device)) as reference,
        closing(Capture(watched.namespace, *arguments, through=through, **settings)) as capture,
    ):
        reference.read_until(marker.send())
        for case in cases:
            sent_file.write_bytes(pattern(case.size))
            senders, error = run_sender(near.namespace, case.command(wire, sent_file))
            both = reference.read_until(marker.send())
            frames = [frame for frame in both if frame.outgoing == (direction == "out")]
            seen.append((case, direction, senders, error, frames))
        ended = capture.stop()
    packets = read(capture_file)
    others = sum(packet.direction != direction for packet in packets)
    ours = between([packet for packet in packets if packet.direction == direction], marker.sent)
    return Comparison([Outcome(*one, own) for one, own in zip(seen, ours, strict=True)], ended, len(packets), others)


def between(packets: list[Packet], markers: list[bytes]) -> list[list[Packet]]:
    """Split a capture at its markers, each of which must be there once and in order."""
    places = [place for place, packet in enumerate(packets) if packet.data in markers]
    assert [packets[place].data for place in places] == markers, "a marker is missing, doubled or out of order"
    return [packets[start + 1 : end] for start, end in pairwise(places)]
