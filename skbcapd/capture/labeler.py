"""Labels: what the kernel program does with the next packets of a key, without Python.

In: a packet with process and verdict. Out: its options; and a label in the program, which stamps or
drops other packets.

The rule: a label has the number of an interface, so none is installed during a renumbering. A drain
decides once about a key, however many of its packets came before the label was installed.
"""

from __future__ import annotations

from skbcapd.attribution.fields import comment_fields
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import VIA, Decision, Record, user_of
from skbcapd.kernel import abi
from skbcapd.kernel.program import Program
from skbcapd.lru import Bounded
from skbcapd.pcapng.comment import Label, label

REMEMBERED = 4 * abi.LABELS_MAX


class Labeler:
    """Makes labels, and caches them for packets that the program could not write itself.

    Args:
        program: applies the labels.
        takes_stamped: whether the output accepts blocks that the program has written.
    """

    def __init__(self, program: Program, *, takes_stamped: bool) -> None:
        self._program = program
        self._takes_stamped = takes_stamped
        self._made: Bounded[int, tuple[int, Label]] = Bounded(REMEMBERED)
        self._decided: dict[bytes, Decision] = {}  # in this drain
        self.count = 0
        """Number of labels that were made."""
        self.installs = True
        """Whether new labels are installed in the program."""

    def begin_drain(self) -> None:
        """Discard the decisions of the last drain."""
        self._decided.clear()

    def forget(self) -> None:
        """Discard all labels: no more packets arrive with one of them."""
        self._made.clear()
        self._decided.clear()

    def known(self, number: int) -> tuple[int, Label] | None:
        """Interface number and options of a label; None if it was evicted."""
        return self._made.get(number)

    def decided(self, identity: bytes) -> Decision | None:
        """The decision for an earlier packet with the same key and names in this drain.

        None if the output needs the complete record of each packet.
        """
        return self._decided.get(identity)

    def take(self, record: Record, plan: Plan) -> Record:
        """Stage: make the options of the packet, and a label for the next packets."""
        packet, verdict = record.packet, record.verdict
        record.stamp = stamp = _stamp(record, plan)
        if not record.is_asked:
            if self._takes_stamped:
                self._decided[packet.key + packet.names] = Decision(record.interface, verdict, stamp)
            if self.installs and (self._takes_stamped or not verdict.keeps):
                self._install(record, stamp, plan)
        return record

    def _install(self, record: Record, stamp: Label, plan: Plan) -> None:
        """Install a label, so that the program treats the next packets of the key in the same way.
        With `action: dump`, the label has no options, so each packet comes to Python.
        """
        packet, verdict, known = record.packet, record.verdict, record.interface
        options = b"" if verdict.dump else stamp.options
        number = self.count & 0xFFFFFFFF
        self.count += 1
        self._made[number] = known.interface_id, stamp
        self._program.set_label(
            packet.key,
            abi.LABEL.pack(
                *abi.Label(
                    comm=packet.names[:16],
                    device=packet.names[16:32],
                    process=packet.names[32:],
                    id=number,
                    interface_id=known.interface_id,
                    slot=known.slot,
                    snaplen=(verdict.snaplen or plan.snaplen) if verdict.keeps else 0,
                    filter=verdict.filter or verdict.is_unattributed,
                    generation=self._program.control[abi.GENERATION],
                    options_len=len(options),
                    flags_at=stamp.flags_at,
                    headers_only=plan.cuts_payload(verdict),
                    options=options,
                )
            ),
        )


def _stamp(record: Record, plan: Plan) -> Label:
    """The options of this packet, and of all packets of its process, interface and direction."""
    packet = record.packet
    candidates = record.group or [(user_of(packet), record.process)]
    fields: list[tuple[str, bytes | str | int]] = [*comment_fields(plan.comment, *candidates)]
    if packet.via and "none" not in plan.comment:
        fields.append(("via", VIA[packet.via]))
    return label(fields, 0, packet.tgid, packet.tid, linked=bool(packet.linked))
