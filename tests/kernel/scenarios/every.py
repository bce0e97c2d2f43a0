"""All scenarios of attribution, their requirements, and the selection of a run."""

from __future__ import annotations

import pytest

from tests.kernel.scenarios import (
    contested,
    further,
    kernels_own,
    listeners,
    load,
    multipath,
    others,
    received,
    redirected,
    sharing,
    stealing,
    tcp,
    udp,
    unusual,
    waiting,
)
from tests.kernel.stage import Performance, Scenario

# `waiting` is last: its firewall table stays, and then addresses prove no receiver (bpf/guard.h).
GROUPS = (
    *(udp, tcp, sharing, others, received, listeners, unusual, further, contested, multipath),
    *(stealing, redirected, kernels_own, load, waiting),
)
SCENARIOS = [scenario for group in GROUPS for scenario in group.SCENARIOS]
DEVICES = ("lo", others.TUN_DEVICE, f"{others.QUEUES_DEVICE}*", *kernels_own.PORTS, "pair*")
MAKERS = (others.make_tun, others.make_queue, received.make_above, kernels_own.make_bridge)


def each(scenarios: list[Scenario], *, vm: bool = True) -> pytest.MarkDecorator:
    """Run a test once per scenario; with `vm`, only some in a virtual machine. Only the selected
    ones are run.
    """

    def marks(scenario: Scenario) -> list[pytest.MarkDecorator]:
        found = [pytest.mark.vm] if vm and scenario.vm else []
        found += [pytest.mark.many] if scenario.many else []
        return [*found, pytest.mark.devices(scenario.needs)] if scenario.needs else found

    return pytest.mark.parametrize("scenario", [pytest.param(one, id=one.name, marks=marks(one)) for one in scenarios])


def selected(request: pytest.FixtureRequest) -> list[Scenario]:
    """The scenarios that the tests of the module need in this run."""
    items = [item for item in request.session.items if item.getparent(pytest.Module) is request.node]
    calls = (getattr(item, "callspec", None) for item in items)
    chosen = [call.params.get("scenario") for call in calls if call]
    return [scenario for scenario in SCENARIOS if scenario in chosen]


def check_names(performance: Performance, scenario: Scenario, *, counted: bool = True) -> None:
    """No packet of the scenario names a wrong process, and no more than its number are unknown; with
    `counted`, it has as many packets as it says. Without, the machine is busy.

    Raises:
        AssertionError: it is not so, or the scenario did not go well.
    """
    [played] = [played for played in performance.played if played.scenario is scenario]
    verdicts = played.verdicts
    examples = "\n".join(verdicts.examples)
    assert not played.error, played.error
    assert verdicts.wrong == 0, f"{verdicts.wrong} packets name a wrong process\n{examples}"
    least = scenario.packets if counted else 0
    assert verdicts.packets >= least, f"{verdicts.packets} packets, expected at least {least}"
    allowed = verdicts.packets if scenario.searched and not counted else played.allowed
    assert verdicts.unknown <= allowed, f"{verdicts.unknown} unknown, allowed {allowed}\n{examples}"
