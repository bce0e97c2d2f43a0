"""What arrives carries its receiver's name also where nothing is seen that leaves (`directions: in`).

A flow of before is not renewed then by the SYN or the request of the next process at its port.
"""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.kernel import table
from tests.kernel.namespace import Wire
from tests.kernel.scenarios import answers
from tests.kernel.scenarios.every import check_names, each
from tests.kernel.sink import Sink
from tests.kernel.stage import Performance, Scenario, perform


@pytest.fixture(scope="module")
def performance(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Performance:
    """Play the scenarios under one capture."""
    directory = tmp_path_factory.mktemp("received")
    with closing(Sink(wire.far.namespace)):
        performed = perform(answers.SCENARIOS, wire, directory, (), (), marked_at_far=True, directions="in")
    table.add_played(performed, "received alone: ")
    return performed


@each(answers.SCENARIOS)
def test_no_packet_names_a_wrong_process(performance: Performance, scenario: Scenario) -> None:
    """No packet names another process than its own."""
    check_names(performance, scenario)
