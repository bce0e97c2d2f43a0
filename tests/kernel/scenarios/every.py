"""All scenarios of attribution, what they need, and which of them a run asks for."""

from __future__ import annotations

import pytest

from tests.kernel.scenarios import kernels_own, listeners, load, others, received, sharing, tcp, udp, unusual, waiting
from tests.kernel.stage import Performance, Played, Scenario

# `waiting` last: its firewall's table stays, and behind that addresses prove no receiver (bpf/guard.h).
GROUPS = (udp, tcp, sharing, others, received, listeners, unusual, kernels_own, load, waiting)
SCENARIOS = [scenario for group in GROUPS for scenario in group.SCENARIOS]
DEVICES = ("lo", others.TUN_DEVICE, *kernels_own.PORTS)
MAKERS = (others.make_tun, others.make_queue, received.make_above, kernels_own.make_bridge)


def each(scenarios: list[Scenario], *, vm: bool = True) -> pytest.MarkDecorator:
    """Run a test once per scenario, with `vm` some in a virtual machine. What no test asks for is not played."""
    marks = {False: [], True: [pytest.mark.vm]}
    return pytest.mark.parametrize(
        "scenario", [pytest.param(one, id=one.name, marks=marks[vm and one.vm]) for one in scenarios]
    )


def selected(request: pytest.FixtureRequest) -> list[Scenario]:
    """Give the scenarios that the tests of the fixture's module ask for in this run."""
    items = [item for item in request.session.items if item.getparent(pytest.Module) is request.node]
    calls = (getattr(item, "callspec", None) for item in items)
    chosen = [call.params.get("scenario") for call in calls if call]
    return [scenario for scenario in SCENARIOS if scenario in chosen]


def outcome(performance: Performance, scenario: Scenario) -> Played:
    """What one scenario gave.

    Raises:
        AssertionError: it did not go well.
    """
    [found] = [played for played in performance.played if played.scenario is scenario]
    assert not found.error, found.error
    return found
