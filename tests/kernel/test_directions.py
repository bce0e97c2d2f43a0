"""`directions`: only sent or only received frames, as complete as with both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.cases import CASES
from tests.kernel.comparison import compare
from tests.kernel.namespace import Wire

SENT = [case for case in CASES if case.name in {"udp-1400", "tcp-sendfile"}]


@pytest.mark.parametrize("direction", ["out", "in"])
def test_one_direction_alone(direction: str, wire: Wire, tmp_path: Path) -> None:
    """With one direction its frames, paged ones too, are those of an AF_PACKET socket, and there
    are no others.
    """
    comparison = compare(SENT, wire, tmp_path, direction, directions=direction)
    ours = [packet for outcome in comparison.outcomes for packet in outcome.ours]

    for outcome in comparison.outcomes:
        assert [outcome.error, outcome.parting(), outcome.parting_from_sent()] == ["", "", ""]
    assert max(packet.original_len for packet in ours) > 30_000
    assert comparison.others == 0
    assert (comparison.ended.exit_code, comparison.ended.lost) == (0, 0)
