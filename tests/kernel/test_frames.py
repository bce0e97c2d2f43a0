"""Each frame is captured once, completely and with its sender: case by case, compared with an
AF_PACKET socket.
"""

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

CLOCK_SLACK_NS = 2_000_000_000  # a wrong clock differs by the time since boot, or more


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
    """The outcome of one case whose sender succeeded."""
    [found] = [outcome for outcome in compared.comparison.outcomes if outcome.case == case]
    assert not found.error
    return found


@of_cases()
def test_frames_are_those_of_the_reference(outcome: Outcome) -> None:
    """We write the frames of an AF_PACKET socket: as many, the same bytes, in the same order."""
    parting = outcome.parting()
    assert not parting, parting


@of_cases()
def test_frames_are_those_that_were_sent(outcome: Outcome) -> None:
    """The number of frames and their payloads are those that the sender reports."""
    parting = outcome.parting_from_sent()
    assert not parting, parting


@of_cases()
def test_every_packet_names_its_sender(outcome: Outcome) -> None:
    """Comment and option 8 of each packet name the thread that sent it; some TCP segments may be
    `unknown`.
    """
    labels = outcome.labels()
    ids = [(packet.label.tgid, packet.label.tid) if packet.label else None for packet in outcome.ours]

    assert labels["wrong"] == 0
    assert labels["right"] > 0
    assert outcome.case.streams or labels["unknown"] == 0
    assert [packet.process for packet in outcome.ours] == ids


@of_cases("udp-threads")
def test_a_thread_is_not_its_process(outcome: Outcome) -> None:
    """The packets of a thread have its own id and name, and the id of its process."""
    senders = {packet.label for packet in outcome.ours}

    assert len(senders) == 3
    assert {sender.comm for sender in senders if sender} == {"worker-0", "worker-1", "worker-2"}
    assert all(sender and sender.tid != sender.tgid for sender in senders)


@pytest.mark.vm
def test_nothing_is_dropped_and_all_is_counted(compared: Compared) -> None:
    """A capture ends with exit code 0, without drops, and with a total equal to the number of
    packets in the file.
    """
    comparison = compared.comparison

    assert comparison.ended.exit_code == 0, comparison.ended.stderr
    assert comparison.ended.totals["captured"] == comparison.written
    assert comparison.ended.lost == 0


@pytest.mark.vm
def test_packets_say_where_and_when(compared: Compared, wire: Wire) -> None:
    """Each packet has the name of the interface, the link type Ethernet, its original length and
    the time when it was sent.
    """
    packets = list(chain.from_iterable(outcome.ours for outcome in compared.comparison.outcomes))

    assert {(packet.interface, packet.link_type) for packet in packets} == {(wire.near.device, 1)}
    assert all(packet.original_len == len(packet.data) >= ETHERNET_BYTES for packet in packets)
    assert compared.start_ns - CLOCK_SLACK_NS <= min(packet.time_ns for packet in packets)
    assert max(packet.time_ns for packet in packets) <= compared.end_ns + CLOCK_SLACK_NS
