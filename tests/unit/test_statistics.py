"""The statistics of a running capture: each packet in one number, no counter decreases, bounded
memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skbcapd.config.parser import default_settings
from skbcapd.config.settings import ROWS
from skbcapd.daemon import statistics
from skbcapd.daemon.statistics import Busiest, Statistics, in_force
from skbcapd.kernel.program import Counters
from skbcapd.kernel.segments import Cut
from skbcapd.pcapng.blocks import PACKET
from skbcapd.pcapng.comment import Label, label
from tests.support.rig import Scene, stamped
from tests.support.writer import block, cut, upcall


def total(facts: statistics.Snapshot) -> int:
    """All totals."""
    summed: int = sum(facts["packets"].values()) - facts["packets"]["seen"] + sum(facts["dropped"].values())
    return summed


def test_every_packet_is_in_one_figure() -> None:
    """Written, filtered, duplicates, self-test, dropped by cause, and pending add up to seen."""
    scene = Scene()
    program = scene.rig.program
    scene.rig.drain(upcall(b"1"), stamped(1058))
    program.count(1, filtered=7, duplicate=5, full=3, contended=2, start=11, other_interfaces=17, unattributed=19)
    program.count(1, limited=23)
    program.rows[0] += Counters(seen=13)  # the program is processing them
    scene.output.lost = 1
    facts = scene.look()
    assert facts["packets"] == {
        "seen": 102,
        "written": 1,
        "filtered": 7,
        "other_interfaces": 17,
        "unattributed": 19,
        "duplicates": 5,
        "limited": 23,
        "self_test": 0,
        "in_memory": 0,
        "pending": 13,
    }
    assert facts["dropped"] == {"full": 3, "contended": 2, "start": 11, "output": 1}
    assert total(facts) == 102


@given(st.lists(st.sampled_from(["packet", "unwanted", "lost", "late", "seen", "stuck"]), max_size=40))
def test_no_figure_falls(steps: list[str]) -> None:
    """Whatever happens between and during two snapshots, counters only increase and add up: no rate
    is negative.
    """
    scene = Scene()
    program = scene.rig.program
    before: dict[str, int] = {}
    stuck: Iterator[bool] = iter(())
    for step in [*steps, "seen"]:
        if step == "packet":
            program.put(stamped(1058))
        elif step == "unwanted":
            program.put(upcall(b"1", device=b"eth7", ifindex=7))
        elif step == "lost":  # the disk does not write bytes that it got before
            program.put(stamped(1058))
            scene.output.lost += 1
        elif step == "late":  # it seems to write them
            program.put(stamped(1058))
            scene.output.late += 1
        elif step == "stuck":  # one writer has reserved and waits; the one before it does
            for _ in stuck:
                pass
            stuck = program.steps(stamped(1058))
            next(stuck)
            program.count(0, delivered=1)
        facts = scene.look()
        after = {**facts["packets"], **facts["dropped"]}
        del after["pending"]
        assert all(after[name] >= count for name, count in before.items())
        assert total(facts) == facts["packets"]["seen"]
        before = after
    for _ in stuck:
        pass
    facts = scene.look()
    lost = steps.count("lost") + steps.count("late")
    assert facts["packets"]["written"] == len(scene.output.written) - lost
    assert facts["packets"]["pending"] == 0


def test_packets_and_bytes_by_interface() -> None:
    """Each captured interface has its packets, their bytes on the wire and its drops, also those from
    before the program knew it; the busiest is first, excluded ones are not listed.
    """
    scene = Scene()
    scene.rig.drain(upcall(b"12345", original_len=100))
    scene.rig.drain(*[upcall(bytes(60), device=b"eth1", ifindex=3, original_len=1000)] * 3)
    scene.rig.drain(upcall(b"1", device=b"eth7", ifindex=7))
    scene.rig.program.count(1, delivered=1, wire_bytes=1500, full=3, start=2)
    where = scene.output.interfaces[0].description
    assert where
    assert scene.look()["by_interface"] == [
        {"slot": 2, "name": "eth1", "namespace": where, "packets": 3, "bytes": 3000, "dropped": 0},
        {"slot": 1, "name": "eth0", "namespace": where, "packets": 2, "bytes": 1600, "dropped": 5},
    ]


def test_facts_are_made_once_a_second() -> None:
    """However many clients ask, the counters are read once a second."""
    scene = Scene()
    first = scene.look()
    scene.rig.program.put(stamped(1058))
    scene.now += 0.999
    assert scene.statistics.snapshot() is first
    scene.now += 0.001
    assert scene.statistics.snapshot()["packets"]["written"] == 1


def test_the_busiest_processes() -> None:
    """Packets with and without a label, cut ones and those without a process count for the process
    in their comment.
    """
    scene = Scene()
    scene.rig.drain(upcall(b"12345", tgid=1058, tid=1059))
    [stamp] = scene.output.stamps
    scene.rig.drain(cut(7, b"12", 2, 100, stamp=stamp))
    scene.rig.drain(stamped(1061, b"a b", 7), stamped(0, size=3), stamped(1061, b"a b", 8), stamped(1061, b"a b", 9))
    found = scene.look()["processes"]
    assert found == {
        "count": 1,
        "sampled": 6,
        "seconds": 1,
        "busiest": [
            {"tgid": 1058, "name": "chronyd", "packets": 2, "bytes": 105},
            {"tgid": 1061, "name": "a b", "packets": 3, "bytes": 24},
            {"tgid": None, "name": "via=kernel", "packets": 1, "bytes": 3},
        ],
        "sampled_bytes": 132,
        "groups": {
            "process": [{"name": "chronyd", "bytes": 105}, {"name": "a b", "bytes": 24}],
            "user": [],
            "unit": [],
            "container": [],
            "pod": [],
        },
    }


def test_processes_are_summed_up_by_the_fields_of_their_comments() -> None:
    """Two processes of a unit are one row of it; names are escaped."""
    busiest = Busiest()
    for tgid, unit, size in ((7, b"a.service", 60), (8, b"a.service", 40), (9, b"b\n.service", 90)):
        fields: list[tuple[str, bytes | str | int]] = [("comm", b"x"), ("process", b"main"), ("unit", unit)]
        options = label(fields, 2, tgid, tgid, linked=True).options
        busiest.sample_blocks(memoryview(block(PACKET, 0, bytes(size), options)))
    found = busiest.snapshot()
    assert found["groups"]["unit"] == [{"name": "a.service", "bytes": 100}, {"name": "b\\x0a.service", "bytes": 90}]
    assert found["groups"]["process"] == [{"name": "main", "bytes": 190}]
    assert found["sampled_bytes"] == 190


def test_many_packets_are_sampled() -> None:
    """At most 101 packets of each range and 1009 per second are sampled; all are written."""
    scene = Scene()
    flood = [stamped(1058)] * 211
    scene.rig.drain(*flood)
    assert scene.look()["processes"]["sampled"] == 101
    for _ in range(11):
        scene.rig.drain(*flood)
    assert scene.look()["processes"]["sampled"] == 101 + 1009
    assert len(scene.output.written) == 12 * 211


def test_the_window_moves_on() -> None:
    """Packets from before the last two windows are not counted."""
    busiest = Busiest()
    busiest.sample_blocks(memoryview(stamped(1058)))
    for _ in range(statistics.WINDOW_S):
        busiest.tick()
    busiest.sample_blocks(memoryview(stamped(1061)))
    assert [one["tgid"] for one in busiest.snapshot()["busiest"]] == [1058, 1061]
    for _ in range(statistics.WINDOW_S):
        busiest.tick()
    assert [one["tgid"] for one in busiest.snapshot()["busiest"]] == [1061]


def test_many_processes_do_not_hide_the_busiest() -> None:
    """With more processes than are stored, each with a packet, the busiest stay, and memory is
    bounded.
    """
    busiest = Busiest()
    for tgid in range(10_007):
        busiest._left = statistics.SAMPLES  # all in one window
        busiest.sample_blocks(memoryview(stamped(tgid + 2, size=60)))
        if tgid % 101 == 0:
            busiest.sample_blocks(memoryview(stamped(1, b"busy", size=600)))
        assert len(busiest._now) <= statistics.PROCESSES
    assert busiest.snapshot()["busiest"][0]["name"] == "busy"
    assert busiest.snapshot()["busiest"][0]["packets"] == 100


@pytest.mark.fuzz
@given(st.binary(max_size=64), st.integers(0, 2**32 - 1))
def test_any_options(options: bytes, size: int) -> None:
    """Bytes that are not options of skbcapd count for no process; the output is printable ASCII."""
    busiest, stamp = Busiest(), Label(options, 0)
    busiest.sample_packet(Cut(0, memoryview(b""), size, 1, stamp, 0, 0, 0, 60), 0, stamp)
    text = json.dumps(busiest.snapshot(), ensure_ascii=False)
    assert text.isascii()
    assert text.isprintable()
    assert busiest.snapshot()["sampled"] == 1


@pytest.mark.fuzz
@given(st.binary(min_size=1, max_size=15))
def test_any_name(name: bytes) -> None:
    """For any process name the output is printable ASCII, and different names stay different."""
    busiest = Busiest()
    busiest.sample_blocks(memoryview(stamped(1058, name)))
    told = busiest.snapshot()["busiest"][0]["name"]
    assert told.isascii()
    assert told.isprintable()
    assert told.encode().decode("unicode_escape").encode("latin-1") == name


def test_settings_are_those_in_force() -> None:
    """Each key of the config file is reported; after a reload, keys that need a restart have their
    old value.
    """
    start = default_settings({"snaplen": "96", "buffer.size": "4MiB"})
    after = default_settings(
        {"snaplen": "128", "buffer.size": "8MiB", "rules": "[{comm: ssh*, action: drop}, {unit: /x/, snaplen: 64}]"}
    )
    scene = Scene()
    told = Statistics(scene.rig.capture, scene.output, lambda: in_force(start, after)).snapshot()["settings"]
    assert list(told) == list(ROWS)
    assert (told["snaplen"], told["buffer.size"], told["interfaces"]) == (128, 4 << 20, ["any"])
    assert [list(rule) for rule in told["rules"]] == [["comm", "action"], ["unit", "snaplen"]]
    assert json.loads(json.dumps(told)) == told
