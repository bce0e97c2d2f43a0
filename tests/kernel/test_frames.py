"""Every frame is captured once, whole and under its sender's name: case by case against an AF_PACKET socket."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import chain

import pytest

from tests.kernel import table
from tests.kernel.cases import CASES, Case, selected
from tests.kernel.comparison import Comparison, Outcome, compare
from tests.kernel.namespace import Wire
from tests.kernel.payloads import ETHERNET_BYTES

CLOCK_SLACK_NS = 2_000_000_000  # a wrong clock is off by the time since boot, or by more


def of_cases(*names: str) -> pytest.MarkDecorator:
    """Run a test once per case: those named, or all. The others are not even sent, see `selected`."""
    cases = [case for case in CASES if not names or case.name in names]
    marks = {False: [], True: [pytest.mark.vm]}
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=marks[case.vm]) for case in cases])


@dataclass(frozen=True)
class Compared:
    """One capture over all the cases that this run has selected."""

    comparison: Comparison
    start_ns: int
    end_ns: int


@pytest.fixture(scope="module")
def compared(request: pytest.FixtureRequest, wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Send the selected cases under one capture."""
    start_ns = time.time_ns()
    comparison = compare(selected(request.session), wire, tmp_path_factory.mktemp("compared"))
    table.add(comparison.outcomes)
    return Compared(comparison, start_ns, time.time_ns())


@pytest.fixture
def outcome(compared: Compared, case: Case) -> Outcome:
    """The outcome of one case whose sender went well."""
    [found] = [outcome for outcome in compared.comparison.outcomes if outcome.case == case]
    assert not found.error
    return found


@of_cases()
def test_frames_are_those_of_the_reference(outcome: Outcome) -> None:
    """We write the frames that an AF_PACKET socket sees: as many, the same bytes, in the same order."""
    parting = outcome.parting()
    assert not parting, parting


@of_cases()
def test_frames_are_those_that_were_sent(outcome: Outcome) -> None:
    """The frames are as many as were sent, and carry what the sender says it sent."""
    parting = outcome.parting_from_sent()
    assert not parting, parting


@of_cases()
def test_every_packet_names_its_sender(outcome: Outcome) -> None:
    """Every packet's comment and option 8 name the thread that sent it; of TCP segments some may say `unknown`."""
    labels = outcome.labels()
    ids = [(packet.label.tgid, packet.label.tid) if packet.label else None for packet in outcome.ours]

    assert labels["wrong"] == 0
    assert labels["right"] > 0
    assert outcome.case.streams or labels["unknown"] == 0
    assert [packet.process for packet in outcome.ours] == ids


@of_cases("udp-threads")
def test_a_thread_is_not_its_process(outcome: Outcome) -> None:
    """A thread's packets carry the thread's own id and name beside the id of its process."""
    senders = {packet.label for packet in outcome.ours}

    assert len(senders) == 3
    assert {sender.comm for sender in senders if sender} == {"worker-0", "worker-1", "worker-2"}
    assert all(sender and sender.tid != sender.tgid for sender in senders)


@pytest.mark.vm
def test_nothing_is_dropped_and_all_is_counted(compared: Compared) -> None:
    """A capture ends with exit code 0, no drop, and a total that is the number of packets in the file."""
    comparison = compared.comparison

    assert comparison.ended.exit_code == 0, comparison.ended.stderr
    assert comparison.ended.totals["captured"] == comparison.written
    assert comparison.ended.lost == 0


@pytest.mark.vm
def test_packets_say_where_and_when(compared: Compared, wire: Wire) -> None:
    """Every packet has the device's name, Ethernet's link type, its true length and the time at which it was sent."""
    packets = list(chain.from_iterable(outcome.ours for outcome in compared.comparison.outcomes))

    assert {(packet.interface, packet.link_type) for packet in packets} == {(wire.near.device, 1)}
    assert all(packet.original_len == len(packet.data) >= ETHERNET_BYTES for packet in packets)
    assert compared.start_ns - CLOCK_SLACK_NS <= min(packet.time_ns for packet in packets)
    assert max(packet.time_ns for packet in packets) <= compared.end_ns + CLOCK_SLACK_NS
