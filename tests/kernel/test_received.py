"""Each received frame is captured once and completely: the same cases, captured at the far end of
the wire.
"""

from __future__ import annotations

import pytest

from tests.kernel import table
from tests.kernel.cases import CASES, Case, selected
from tests.kernel.comparison import Comparison, Outcome, compare
from tests.kernel.namespace import Wire

every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture(scope="module")
def compared(request: pytest.FixtureRequest, wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Send the selected cases under one capture at the far end."""
    comparison = compare(selected(request.session), wire, tmp_path_factory.mktemp("received"), direction="in")
    table.add(comparison.outcomes)
    return comparison


@pytest.fixture
def outcome(compared: Comparison, case: Case) -> Outcome:
    """The outcome of one case whose sender succeeded."""
    [found] = [outcome for outcome in compared.outcomes if outcome.case == case]
    assert not found.error
    return found


@every_case
def test_frames_are_those_of_the_reference(outcome: Outcome) -> None:
    """We write the frames of an AF_PACKET socket at the receiving interface: as many, the same
    bytes.
    """
    parting = outcome.parting()
    assert not parting, parting


@every_case
def test_frames_are_those_that_were_sent(outcome: Outcome) -> None:
    """As many frames arrive as were sent, with the payloads that the sender reports."""
    parting = outcome.parting_from_sent()
    assert not parting, parting


@every_case
def test_no_packet_names_the_other_end(outcome: Outcome) -> None:
    """A received packet never names its sender, which is in another namespace of this machine."""
    assert outcome.labels()["wrong"] == 0


def test_nothing_is_dropped(compared: Comparison) -> None:
    """The capture at the far end drops no packet, and its total is the number of packets in the
    file.
    """
    assert compared.ended.exit_code == 0, compared.ended.stderr
    assert (compared.ended.totals["captured"], compared.ended.lost) == (compared.written, 0)
