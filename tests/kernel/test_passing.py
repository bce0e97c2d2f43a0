"""Packets through a host with containers have the name of their process on all interfaces, also inside
of the containers, scenario by scenario.
"""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.kernel import table
from tests.kernel.relay import relayed_wire
from tests.kernel.scenarios import contested, forgotten, links, passing, translated, twins
from tests.kernel.scenarios.every import check_names, each
from tests.kernel.scenarios.passing import DEVICES, make_host
from tests.kernel.sink import Sink
from tests.kernel.stage import Performance, Scenario, perform

SCENARIOS = [
    *(*passing.SCENARIOS, *translated.SCENARIOS, *twins.SCENARIOS),
    *(*forgotten.SCENARIOS, *contested.TRANSLATED, *links.SCENARIOS),
]
INSIDE = ("eth0", "lo")  # of the containers
TWINS = (*(f"{link}*" for link in twins.LINKS), "pair*")  # made later


@pytest.fixture(scope="module")
def performance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Performance:
    """Run the selected scenarios under one capture."""
    items = [item for item in request.session.items if item.getparent(pytest.Module) is request.node]
    calls = (getattr(item, "callspec", None) for item in items)
    chosen = [call.params.get("scenario") for call in calls if call]
    with relayed_wire() as wire, closing(Sink(wire.far.namespace)):
        scenarios = [scenario for scenario in SCENARIOS if scenario in chosen]
        directory, devices = tmp_path_factory.mktemp("passing"), (*DEVICES, *INSIDE, *TWINS, *links.DEVICES)
        performed = perform(scenarios, wire, directory, devices, (make_host,), everywhere=True)
    table.add_played(performed)
    return performed


@each(SCENARIOS)
def test_no_packet_names_a_wrong_process(performance: Performance, scenario: Scenario) -> None:
    """No packet names another process than its own on any interface; no more are unknown than the
    manual says.
    """
    check_names(performance, scenario)
