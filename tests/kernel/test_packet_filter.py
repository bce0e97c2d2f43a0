"""Packet filters choose what libpcap chooses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from skbcapd import packet_filter
from tests.kernel import expressions, table
from tests.kernel.expressions import ETHERNET, RAW
from tests.kernel.libpcap import Judge
from tests.kernel.verdicts import verdicts

BATCH = 37  # filters in one program: more compile faster, but one failure tells less


def usable(texts: Iterator[str] | tuple[str, ...]) -> Iterator[str]:
    """Those that libpcap takes for at least one link type, and that are no longer than we allow."""
    return (
        text
        for text in texts
        if len(text) <= packet_filter.EXPRESSION_MAX and any(Judge(text, link).compiles for link in (ETHERNET, RAW))
    )


CHOSEN = {
    "written": list(usable(expressions.WRITTEN)),
    "random": list(itertools.islice(usable(expressions.drawn(59)), expressions.RANDOM)),
}
FRAMES = expressions.frames()
BATCHES = [
    pytest.param(kind, texts[at : at + BATCH], id=f"{kind}-{at}")
    for kind, texts in CHOSEN.items()
    for at in range(0, len(texts), BATCH)
]


@pytest.mark.parametrize(("kind", "texts"), BATCHES)
def test_every_verdict_is_libpcaps(kind: str, texts: list[str]) -> None:
    """Compiled and run in the kernel, an expression takes the frames that pcap_offline_filter takes, and no other."""
    taken = refused = 0
    different = []
    for text, ours in zip(texts, verdicts(texts, FRAMES), strict=True):
        judges = {link: Judge(text, link) for link in (ETHERNET, RAW)}
        theirs = [judges[frame.link_type].takes(frame.data, frame.wire_len) for frame in FRAMES]
        different += [(text, frame) for frame, our, their in zip(FRAMES, ours, theirs, strict=True) if our != their]
        taken += sum(ours)
        refused += len(ours) - sum(ours)
    table.add_verdicts(kind, len(texts), len(FRAMES), taken, refused, len(different))

    assert not different
    assert taken > len(texts)
    assert refused > len(texts)


def test_the_conformance_is_broad() -> None:
    """At least 300 expressions are tried, each on frames of both link types."""
    assert sum(map(len, CHOSEN.values())) > 300
    assert {frame.link_type for frame in FRAMES} == {ETHERNET, RAW}
