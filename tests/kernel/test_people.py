"""Every packet carries the name of its process, or says that it does not know: scenario by scenario."""

from __future__ import annotations

import re
from contextlib import closing

import pytest

from tests.kernel import table
from tests.kernel.capture import ROOT
from tests.kernel.namespace import Wire
from tests.kernel.scenarios import kernels_own, others, received, sharing, tcp, udp
from tests.kernel.sink import Sink
from tests.kernel.stage import Performance, Played, Scenario, perform

MANUAL = ROOT / "docs" / "attribution.md"
GROUPS = (udp, tcp, sharing, others, received, kernels_own)
SCENARIOS = [scenario for group in GROUPS for scenario in group.SCENARIOS]
DEVICES = {
    "lo": lambda _stage: None,
    others.TUN_DEVICE: others.make_tun,
    **dict.fromkeys(kernels_own.PORTS, kernels_own.make_bridge),
}


def selected(session: pytest.Session) -> list[Scenario]:
    """Give the scenarios that this run asks for."""
    calls = (getattr(item, "callspec", None) for item in session.items)
    chosen = [call.params.get("scenario") for call in calls if call]
    return [scenario for scenario in SCENARIOS if scenario in chosen]


@pytest.fixture(scope="module")
def performance(request: pytest.FixtureRequest, wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Performance:
    """Play the selected scenarios under one capture."""
    with closing(Sink(wire.far.namespace)):
        performed = perform(selected(request.session), wire, tmp_path_factory.mktemp("people"), DEVICES)
    table.add_played(performed)
    return performed


@pytest.fixture
def played(performance: Performance, scenario: Scenario) -> Played:
    """What one scenario gave, if it went well."""
    [found] = [played for played in performance.played if played.scenario is scenario]
    assert not found.error, found.error
    return found


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(scenario, id=scenario.name, marks=[pytest.mark.vm] if scenario.vm else []) for scenario in SCENARIOS],
)
def test_no_packet_names_a_wrong_process(played: Played) -> None:
    """No packet names another process than its own, and no more are unknown than docs/attribution.md says."""
    verdicts = played.verdicts

    assert verdicts.wrong == 0, "\n".join(verdicts.examples)
    assert verdicts.packets >= played.scenario.packets
    assert verdicts.unknown <= played.allowed, "\n".join(verdicts.examples)


def test_the_manual_says_how_many_may_be_unknown() -> None:
    """The table in docs/attribution.md has a row for each scenario, with the number that its test allows."""
    written = re.findall(r"^\| ([^|]+) \| (\d+) \| [^|]*\|$", MANUAL.read_text(), re.MULTILINE)

    assert written == [(scenario.name, str(scenario.unknown)) for scenario in SCENARIOS]


@pytest.mark.vm
def test_nothing_is_lost(performance: Performance) -> None:
    """The capture that the scenarios were judged by has lost no packet."""
    assert performance.ended.exit_code == 0, performance.ended.stderr
    assert performance.ended.lost == 0, performance.ended.stderr
