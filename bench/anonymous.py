"""skbcapd without attribution, for the benchmark only: the difference is the cost of attribution.

It lacks the programs that record the users of sockets, and the calls that find the process of a packet. Everything else
is as in skbcapd, identifiers of packets and labels included. Each packet has `via=kernel`.
"""

from __future__ import annotations

import sys

from skbcapd.__main__ import main
from skbcapd.kernel import compiler, program

CALLS = (
    "find_sender(ctx, control, packet, skb, only_record || !control->late)",
    "find_receiver(control, packet, skb)",
)


def without_attribution(text: str) -> str:
    """The program text without these calls.

    Raises:
        ValueError: one of them is missing, or is there more than once.
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
