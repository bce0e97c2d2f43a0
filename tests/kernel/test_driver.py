"""Sent frames captured at the driver: the same cases as at the queue, the same frames, and no wrong
name.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel import table
from tests.kernel.capture import Capture, read, with_value
from tests.kernel.cases import CASES, Case, selected
from tests.kernel.comparison import Comparison, Outcome, compare
from tests.kernel.namespace import Wire
from tests.kernel.sink import DISCARD_PORT, Sink
from tests.support.blocks import comment_fields

every_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.vm] if case.vm else []) for case in CASES]
)


@pytest.fixture(scope="module")
def compared(request: pytest.FixtureRequest, wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Send the selected cases under one capture at the driver, which has no kprobe."""
    directory = tmp_path_factory.mktemp("driver")
    comparison = compare(selected(request.session), wire, directory, transmit="driver", attach="auto")
    table.add(comparison.outcomes, "driver")
    return comparison


@pytest.fixture
def outcome(compared: Comparison, case: Case) -> Outcome:
    """The outcome of one case whose sender succeeded."""
    [found] = [outcome for outcome in compared.outcomes if outcome.case == case]
    assert not found.error
    return found


@every_case
def test_frames_are_those_of_the_reference(outcome: Outcome) -> None:
    """We write the frames of an AF_PACKET socket, which is at the same place: the same bytes and
    order.
    """
    parting = outcome.parting()
    assert not parting, parting


@every_case
def test_names_are_remembered_from_the_queue(outcome: Outcome) -> None:
    """At the driver `current` can be any process: packets name the sender from the queue, or no
    process.
    """
    labels = outcome.labels()

    assert labels["wrong"] == 0
    assert labels["right"] > 0
    assert outcome.case.streams or labels["unknown"] == 0


@pytest.mark.parametrize("place", ["small table", "lo"])
def test_threads_that_share_a_socket(wire: Wire, tmp_path: Path, place: str) -> None:
    """Each packet has the name of the thread that sent it, and not of the last one that used the socket: also where
    another packet has taken its entry of the table, and on an interface whose packets are on no other one.
    """
    [case] = [case for case in CASES if case.threads]
    lo = replace(wire.near, device="lo", ipv4="127.0.0.1")
    # With few entries, packets of two processors use the same one.
    through = with_value("skbcapd.kernel.abi", "SIGHTINGS", 2) if place == "small table" else ()
    used = Wire(lo, lo) if place == "lo" else wire
    [outcome] = compare([case], used, tmp_path, through=through, transmit="driver", attach="auto").outcomes

    assert not outcome.error
    assert outcome.labels() == {"right": case.frames}
    assert not any(comment_fields(packet.comment).get("via") for packet in outcome.ours)


_TWO_PROCESSES = """
import os, socket, sys
from pathlib import Path
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)  # its packets have no identification
def send(comm):
    Path("/proc/self/comm").write_text(comm)
    for _ in range(int(sys.argv[3])):
        sender.sendto(bytes(200), (sys.argv[1], int(sys.argv[2])))
send("dropped")
print("sent", flush=True)
sys.stdin.readline()
if not os.fork():
    send("heir")
    os._exit(0)
os.wait()
"""


def test_packet_after_one_that_the_queue_dropped(wire: Wire, tmp_path: Path) -> None:
    """The kernel uses the sk_buff of a packet that never reached the driver again: the next packet has the name of
    its own sender, also if it is equal to the last one and sent on the same socket.
    """
    near, file, count = wire.near, tmp_path / "driver.pcapng", 23
    queue = ["tc", "-n", near.namespace.name, "qdisc"], ["dev", near.device, "root"]
    words = [wire.far.ipv6, str(DISCARD_PORT), str(count)]
    command = [sys.executable, "-E", "-s", "-S", "-c", _TWO_PROCESSES, *words]
    arguments = ["-i", near.device, "-w", str(file)]
    with (
        closing(Sink(wire.far.namespace)),
        closing(Capture(near.namespace, *arguments, transmit="driver", attach="auto")) as capture,
    ):
        subprocess.run([*queue[0], "add", *queue[1], "bfifo", "limit", "1"], check=True)
        try:
            process = near.namespace.do(
                subprocess.Popen, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            with process:
                assert process.stdout
                assert process.stdout.readline() == "sent\n"
                subprocess.run([*queue[0], "del", *queue[1]], check=True)
                process.communicate("\n")
        finally:
            subprocess.run([*queue[0], "replace", *queue[1], "noqueue"], check=True)
        ended = capture.stop()

    assert (ended.exit_code, ended.lost) == (0, 0), ended.stderr
    assert [comment_fields(packet.comment).get("comm") for packet in read(file)] == ["heir"] * count
