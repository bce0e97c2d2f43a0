"""Packets of real servers have the name of their process, scenario by scenario."""

from __future__ import annotations

import pytest

from tests.kernel import table
from tests.kernel.namespace import Wire
from tests.kernel.scenarios import servers
from tests.kernel.scenarios.every import check_names, each
from tests.kernel.stage import Performance, Scenario, perform

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def performance(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Performance:
    """Run the scenarios under one capture."""
    for name in servers.PACKAGES:
        servers.program(name)
    performed = perform(servers.SCENARIOS, wire, tmp_path_factory.mktemp("servers"), (), ())
    table.add_played(performed)
    return performed


@each(servers.SCENARIOS)
def test_no_packet_names_a_wrong_process(performance: Performance, scenario: Scenario) -> None:
    """No packet names another process than its own; no more are unknown than the manual says."""
    check_names(performance, scenario)
