"""A host with containers and interfaces that not every kernel has: packets have the name of their process,
scenario by scenario.
"""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.kernel import table
from tests.kernel.relay import relayed_wire
from tests.kernel.scenarios import modules, tunnels
from tests.kernel.scenarios.every import check_names, each
from tests.kernel.scenarios.passing import DEVICES, make_host
from tests.kernel.sink import Sink
from tests.kernel.stage import Performance, Scenario, perform

SCENARIOS = [*modules.SCENARIOS, *tunnels.SCENARIOS]


@pytest.fixture(scope="module")
def performance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Performance:
    """Run the selected scenarios under one capture."""
    items = [item for item in request.session.items if item.getparent(pytest.Module) is request.node]
    calls = (getattr(item, "callspec", None) for item in items)
    chosen = [call.params.get("scenario") for call in calls if call]
    with relayed_wire() as wire, closing(Sink(wire.far.namespace)):
        scenarios = [scenario for scenario in SCENARIOS if scenario in chosen]
        devices, makers = (*DEVICES, *modules.DEVICES, *tunnels.DEVICES), (make_host, modules.make_modules)
        performed = perform(scenarios, wire, tmp_path_factory.mktemp("modules"), devices, makers)
    table.add_played(performed)
    return performed


@each(SCENARIOS)
def test_no_packet_names_a_wrong_process(performance: Performance, scenario: Scenario) -> None:
    """No packet names another process than its own on any interface; no more are unknown than the
    manual says.
    """
    check_names(performance, scenario)
