"""Labels: what the kernel program does with the next packets of a key, without Python.

In: a packet with process and verdict. Out: its options; and a label in the program, which stamps or
drops other packets.

The rule: a label has the number of an interface, so none is installed during a renumbering. A drain
decides once about a key, however many of its packets came before the label was installed.

The program makes most labels itself, if the comment needs only what the kernel knows, and no rule
decides about packets (bpf/label.h). Each label is of one generation, and is valid only in that one.
"""

from __future__ import annotations

from skbcapd.attribution.fields import FIELDS, comment_fields
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import VIA, Decision, Record, user_of
from skbcapd.kernel import abi
from skbcapd.kernel.program import Program
from skbcapd.kernel.segments import order_accesses
from skbcapd.pcapng.comment import Label, label


class Labeler:
    """Makes labels, and says which ones the program makes.

    Args:
        program: applies the labels.
        takes_stamped: whether the output accepts blocks that the program has written.
    """

    def __init__(self, program: Program, *, takes_stamped: bool) -> None:
        self._program = program
        self._takes_stamped = takes_stamped
        self._decided: dict[bytes, Decision] = {}  # in this drain
        self._naming = 0  # of the program
        self._installs = True  # whether new labels are installed in the program
        self.count = 0
        """Number of labels that were made here."""
        for via, word in enumerate(VIA[: abi.VIA_GROUP]):
            text = f" via={word}".encode().ljust(16, b"\0") if word else bytes(16)
            for half in range(2):
                program.control[abi.VIA_TEXTS + 2 * via + half] = int.from_bytes(text[8 * half :][:8], "little")

    def use(self, plan: Plan) -> None:
        """Let the program make those labels of the plan that it can."""
        self._naming = _naming(plan) if self._takes_stamped else 0
        self._tell()

    def expire(self) -> None:
        """Make all labels invalid; the program makes no new ones until `use`."""
        self._program.control[abi.NAMING] = 0
        self._program.control[abi.GENERATION] += 1

    def hold(self) -> None:
        """Invalidate all labels, and make none until `release`. On return, every packet that used a label has its space
        in a segment.
        """
        self._installs = False
        self.expire()
        self._tell()
        self._program.let_end()

    def release(self) -> None:
        """Make labels again, with other numbers of interfaces."""
        self._decided.clear()
        self._installs = True
        self.expire()
        self._tell()

    def _tell(self) -> None:
        control = self._program.control
        is_on = self._naming and self._installs
        order_accesses()  # the program uses snaplen and generation of the page only with its naming
        control[abi.NAMING] = (control[abi.GENERATION] & 0xFFFFFFFF) << 32 | self._naming if is_on else 0

    def begin_drain(self) -> None:
        """Discard the decisions of the last drain."""
        self._decided.clear()

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
                self._decided[packet.alike] = Decision(record.interface, verdict, stamp)
            # Python writes each dropped packet: their rate is limited.
            if not packet.dropped and self._installs and (self._takes_stamped or not verdict.keeps):
                self._install(record, stamp, plan)
        return record

    def _install(self, record: Record, stamp: Label, plan: Plan) -> None:
        """Install a label, so that the program treats the next packets of the key in the same way.
        With `action: dump`, the label has no options, so each packet comes to Python.
        """
        packet, verdict, known = record.packet, record.verdict, record.interface
        options = b"" if verdict.dump else stamp.options
        self.count += 1
        self._program.set_label(
            packet.key,
            abi.LABEL.pack(
                *abi.Label(
                    comm=packet.names[:16],
                    device=packet.names[16:32],
                    process=packet.names[32:],
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


def _naming(plan: Plan) -> int:
    """Which labels the program makes (control->naming); 0: none, because Python decides about packets, or /proc is
    read.
    """
    # Fields of dropped packets are in no other comment.
    names = dict.fromkeys(name for name in plan.comment if name in FIELDS and FIELDS[name].of_drop is None)
    if not plan.rules.is_empty or plan.process_blocks or not names.keys() <= abi.COMMENT_FIELDS.keys():
        return 0
    codes = (abi.COMMENT_FIELDS[name] << abi.FIELD_BITS * place for place, name in enumerate(names))
    flags = abi.Naming.ON
    flags |= abi.Naming.VIA if "none" not in plan.comment else 0
    flags |= abi.Naming.DIFFERS if "comm" in names else 0
    return flags | sum(codes)


def _stamp(record: Record, plan: Plan) -> Label:
    """The options of this packet, and of all packets of its process, interface and direction."""
    packet = record.packet
    candidates = record.group or [(user_of(packet), record.process)]
    fields: list[tuple[str, bytes | str | int]] = [*comment_fields(plan.comment, *candidates, dropped=record.dropped)]
    if packet.via and "none" not in plan.comment:
        fields.append(("via", VIA[packet.via]))
    return label(fields, 0, packet.tgid, packet.tid, linked=bool(packet.linked))
