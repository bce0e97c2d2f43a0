"""The scenarios again, while each processor runs a process that never sleeps, and softirqs for
other packets.

What leaves in a softirq has any process as `current` then: the hog, the flood, another sender. None
of their names may stand on a packet that is not theirs.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.kernel import table
from tests.kernel.namespace import Wire
from tests.kernel.scenarios import load
from tests.kernel.scenarios.every import DEVICES, MAKERS, SCENARIOS, check_names, each, selected
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.kernel.stage import Performance, Player, Scenario, perform, udp_socket
from tests.support.deadline import DEADLINE_S

pytestmark = pytest.mark.faults

FLOOD_NEAR, FLOOD_FAR = "10.79.0.1", "10.79.0.2"


def spread(wire: Wire, device: str) -> None:
    """Handle the packets that an interface at the near end receives on any processor (RPS,
    networking/scaling.rst).
    """
    every = f"{(1 << (os.cpu_count() or 1)) - 1:x}"
    shell = f"echo {every} > /sys/class/net/{device}/queues/rx-0/rps_cpus"  # of the namespace: `ip` mounts its /sys
    command = ["ip", "netns", "exec", wire.near.namespace.name, "sh", "-c", shell]
    subprocess.run(command, check=True, timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def _load(wire: Wire) -> Iterator[None]:
    """A process on each processor that never sleeps, and many packets on an interface that is not
    captured.
    """
    near, far = wire.near.namespace, wire.far.namespace
    near.ip(f"link add flood0 type veth peer name flood1 netns {far.name}")
    near.ip("link set flood0 addrgenmode none up", f"address add {FLOOD_NEAR}/24 dev flood0")
    far.ip("link set flood1 addrgenmode none up", f"address add {FLOOD_FAR}/24 dev flood1")
    spread(wire, wire.near.device)
    spread(wire, "flood0")
    with ExitStack() as stack:
        stack.enter_context(udp_socket(near, FLOOD_NEAR, DISCARD_PORT))  # unread: the rest is dropped
        players = [Player(near, "crowd", "hog", "--cpu", cpu) for cpu in sorted(os.sched_getaffinity(0))]
        players.append(Player(far, "crowd", "flood", "--to", FLOOD_NEAR, "--port", DISCARD_PORT))
        for player in players:
            stack.callback(player.close)
        for player in players:
            player.says()
        yield


@pytest.fixture(scope="module")
def performance(
    request: pytest.FixtureRequest, wire: Wire, _load: None, tmp_path_factory: pytest.TempPathFactory
) -> Performance:
    """Run the selected scenarios under one capture."""
    with closing(Sink(wire.far.namespace)):
        performed = perform(selected(request), wire, tmp_path_factory.mktemp("load"), DEVICES, MAKERS)
    table.add_played(performed, "under load: ")
    return performed


@each([scenario for scenario in SCENARIOS if scenario.play is not load.short_lived], vm=False)
def test_no_packet_names_a_wrong_process(performance: Performance, scenario: Scenario) -> None:
    """No packet names another process than its own, and no more are unknown than on a quiet
    machine, except those that wait for a search through /proc.
    """
    check_names(performance, scenario, counted=False)


def test_almost_all_scenarios_have_packets(performance: Performance) -> None:
    """How many packets there are is counted on a quiet machine. Here softirqs interrupt any process,
    and a kernel that hides a process from tracing shows none of the packets of such a softirq
    (docs/limitations.md): with few packets in one burst, these can be all of a scenario.
    """
    empty = [played.scenario.name for played in performance.played if not played.verdicts.packets]
    assert len(empty) <= 2, empty


def test_nothing_is_dropped(performance: Performance) -> None:
    """The capture of the scenarios has dropped no packet."""
    assert performance.ended.exit_code == 0, performance.ended.stderr
    assert performance.ended.lost == 0, performance.ended.stderr
