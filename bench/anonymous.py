"""skbcapd without attribution, for the benchmark only: what it costs is the difference.

Two things are left out: the programs that learn who uses a socket, and the calls that ask whose a packet is. All else
is `skbcapd` itself, identifiers of packets and labels included; every packet is the kernel's own.
"""

from __future__ import annotations

import sys

from skbcapd.__main__ import main
from skbcapd.kernel import compiler, program

CALLS = (
    "find_sender(ctx, control, packet, skb, only_remember || !control->late)",
    "find_receiver(control, packet, skb)",
)


def without_attribution(text: str) -> str:
    """The program's text without the calls.

    Raises:
        ValueError: one is not there, or not once.
    """
    for call in CALLS:
        if text.count(f"via = {call};") != 1:
            raise ValueError(f"bpf/skbcapd.bpf.c has {text.count(f'via = {call};')} times {call}; expected one")
        text = text.replace(f"via = {call};", "via = VIA_KERNEL;")
    return text


if __name__ == "__main__":
    whole = compiler.source
    compiler.source = lambda *which: without_attribution(whole(*which))
    program.choose_learning_hooks = lambda attach, transmit, btf: []  # noqa: ARG005  names as there
    sys.exit(main())
