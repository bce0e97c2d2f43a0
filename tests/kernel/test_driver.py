"""Sent frames captured at the driver: the same cases as at the queue, the same frames, and no wrong
name.
"""

from __future__ import annotations

import pytest

from tests.kernel import table
from tests.kernel.cases import CASES, Case, selected
from tests.kernel.comparison import Comparison, Outcome, compare
from tests.kernel.namespace import Wire

every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.vm] if case.vm else []) for case in CASES]
)


@pytest.fixture(scope="module")
def compared(request: pytest.FixtureRequest, wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Send the selected cases under one capture at the driver, which has no kprobe."""
    directory = tmp_path_factory.mktemp("driver")
    comparison = compare(selected(request.session), wire, directory, transmit="driver", attach="auto")
    table.add(comparison.outcomes, "driver")
    return comparison


@pytest.fixture
def outcome(compared: Comparison, case: Case) -> Outcome:
    """The outcome of one case whose sender succeeded."""
    [found] = [outcome for outcome in compared.outcomes if outcome.case == case]
    assert not found.error
    return found


@every_case
def test_frames_are_those_of_the_reference(outcome: Outcome) -> None:
    """We write the frames of an AF_PACKET socket, which is at the same place: the same bytes and
    order.
    """
    parting = outcome.parting()
    assert not parting, parting


@every_case
def test_names_are_remembered_from_the_queue(outcome: Outcome) -> None:
    """At the driver `current` can be any process: packets name the sender from the queue, or no
    process.
    """
    labels = outcome.labels()

    assert labels["wrong"] == 0
    assert labels["right"] > 0
    assert outcome.case.streams or labels["unknown"] == 0
