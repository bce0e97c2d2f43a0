"""Each packet has the name of its process, or its comment says that it is unknown: scenario by
scenario.
"""

from __future__ import annotations

import re
from contextlib import closing

import pytest

from tests.kernel import table
from tests.kernel.capture import ATTACH, ROOT
from tests.kernel.namespace import Wire
from tests.kernel.scenarios import modules, passing, servers, translated, twins
from tests.kernel.scenarios.every import DEVICES, MAKERS, SCENARIOS, each, outcome, selected
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
    played = outcome(performance, scenario)

    assert played.verdicts.wrong == 0, "\n".join(played.verdicts.examples)
    assert played.verdicts.packets >= scenario.packets
    assert played.verdicts.unknown <= played.allowed, "\n".join(played.verdicts.examples)


def test_the_manual_says_how_many_may_be_unknown() -> None:
    """The table in docs/attribution.md has a row for each scenario, with the number that its test
    allows.
    """
    written = re.findall(r"^\| ([^|]+) \| (\d+) \| [^|]*\|$", MANUAL.read_text(), re.MULTILINE)

    groups = (passing, translated, twins, modules, servers)
    every = (*SCENARIOS, *(scenario for group in groups for scenario in group.SCENARIOS))
    assert written == [(scenario.name, str(scenario.unknown)) for scenario in every]


@pytest.mark.vm
def test_nothing_is_dropped(performance: Performance) -> None:
    """The capture of the scenarios has dropped no packet, except those that a kprobe cannot see."""
    ended = performance.ended
    missed = ended.totals.get("missed while the kernel program was already running", 0) if ATTACH == "kprobe" else 0
    assert ended.exit_code == 0, ended.stderr
    assert ended.lost == missed, ended.stderr
