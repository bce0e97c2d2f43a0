"""Each packet has the name of its process, or its comment says that it is unknown: scenario by
scenario.
"""

from __future__ import annotations

import re
from contextlib import closing

import pytest

from skbcapd.kernel import abi
from skbcapd.kernel.abi import Geometry
from skbcapd.kernel.btf import Btf
from tests.kernel import table
from tests.kernel.capture import ROOT
from tests.kernel.namespace import Wire
from tests.kernel.scenarios import contested, forgotten, links, modules, passing, servers, translated, tunnels, twins
from tests.kernel.scenarios.every import DEVICES, MAKERS, SCENARIOS, check_names, each, selected
from tests.kernel.sink import Sink
from tests.kernel.stage import Performance, Scenario, perform

MANUAL = ROOT / "docs" / "attribution.md"


@pytest.fixture(scope="module")
def performance(request: pytest.FixtureRequest, wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Performance:
    """Run the selected scenarios under one capture."""
    with closing(Sink(wire.far.namespace)):
        performed = perform(selected(request), wire, tmp_path_factory.mktemp("people"), DEVICES, MAKERS)
    table.add_played(performed)
    return performed


@each(SCENARIOS)
def test_no_packet_names_a_wrong_process(performance: Performance, scenario: Scenario) -> None:
    """No packet names another process than its own, and no more are unknown than
    docs/attribution.md says.
    """
    check_names(performance, scenario)


def test_the_manual_says_how_many_may_be_unknown() -> None:
    """The table in docs/attribution.md has a row for each scenario, with the number that its test
    allows.
    """
    written = re.findall(r"^\| ([^|]+) \| (\d+) \| [^|]*\|$", MANUAL.read_text(), re.MULTILINE)

    groups = (passing, translated, twins, forgotten)
    after = (scenario for group in (modules, tunnels, servers) for scenario in group.SCENARIOS)
    hosts = (scenario for group in groups for scenario in group.SCENARIOS)
    every = (*SCENARIOS, *hosts, *contested.TRANSLATED, *links.SCENARIOS, *after)
    assert written == [(scenario.name, str(scenario.unknown)) for scenario in every]


@pytest.mark.vm
def test_the_kernel_shows_what_conntrack_has_translated() -> None:
    """The addresses of a conntrack entry are known: without them, a flow on the wire stays valid after its entry."""
    assert "CONNTRACK_TUPLES" in abi.definitions(Btf.load(), Geometry(4))


@pytest.mark.vm
def test_nothing_is_dropped(performance: Performance) -> None:
    """The capture of the scenarios has dropped no packet."""
    ended = performance.ended
    assert ended.exit_code == 0, ended.stderr
    assert ended.lost == 0, ended.stderr
