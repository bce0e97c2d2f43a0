"""Which process a process descends from: forks, /proc, and ids that are used again."""

from __future__ import annotations

from pathlib import Path

import pytest

from skbcapd.attribution.processes import User
from skbcapd.capture.descent import SCANS, Descent
from skbcapd.capture.plan import Plan
from skbcapd.capture.record import Record
from skbcapd.capture.rules import Rules
from skbcapd.config.parser import default_settings
from skbcapd.kernel import abi
from skbcapd.kernel.segments import read_local
from tests.support.frames import NTP_FRAME
from tests.support.proc import TICK, Proc
from tests.support.rig import FakeProgram, Rig
from tests.support.writer import upcall


def child(proc: Proc, tgid: int, parent: int, ticks: int = 5900) -> None:
    """Add a process with its parent."""
    line = b"%d (x) S %d " % (tgid, parent) + b"7 " * 17 + b"%d 9 9 9\n" % ticks
    (proc.add(tgid, ticks=ticks) / "stat").write_bytes(line)


def plan(text: str) -> Plan:
    """A plan with rules."""
    return Plan(rules=Rules(default_settings({"rules": text}).rules))


def test_running_descendants_are_found(tmp_path: Path) -> None:
    """Children and their children are found, whatever their ids; others are not."""
    proc, program = Proc(tmp_path), FakeProgram()
    for tgid, parent, ticks in (
        (100, 1, 50),
        (99, 100, 60),
        (98, 99, 70),
        (97, 98, 80),
        (101, 1, 60),
        (102, 101, 60),
        (103, 100, 49),  # older than its parent: that has the id of an earlier parent
        (104, 2, 60),
    ):
        child(proc, tgid, parent, ticks)
    Descent(program, proc.path).watch({100, 104, 7777})  # type: ignore[arg-type]
    assert program.descendants == {
        100: (50 * TICK, 100),
        99: (60 * TICK, 100),
        98: (70 * TICK, 100),
        97: (80 * TICK, 100),
        104: (60 * TICK, 104),
    }


def test_descendants_that_run(tmp_path: Path) -> None:
    """Those that are in /proc with their start; not the process itself, nor another one with the id."""
    proc, program = Proc(tmp_path), FakeProgram()
    for tgid, ticks, root in ((100, 50, 100), (101, 60, 100), (102, 60, 100), (103, 60, 7)):
        program.set_descendant(tgid, ticks * TICK + 3, root)
    for tgid, ticks in ((100, 50), (101, 60), (102, 59), (103, 60), (104, 60)):
        child(proc, tgid, 1, ticks)
    program.set_descendant(105, 60 * TICK, 100)
    program.set_descendant(106, 60 * TICK, 100)
    child(proc, 106, 1, 60)
    stat = proc.path / "106" / "stat"
    stat.write_bytes(stat.read_bytes().replace(b" S ", b" Z "))  # it has ended
    assert Descent(program, proc.path).running(100) == [101]  # type: ignore[arg-type]


def test_scans_are_bounded(tmp_path: Path) -> None:
    """A chain that grows with each scan ends the search after SCANS."""
    proc = Proc(tmp_path)

    class Forking(FakeProgram):
        def set_descendant(self, tgid: int, start: int, root: int) -> None:
            super().set_descendant(tgid, start, root)
            child(proc, tgid + 1, tgid)

    program = Forking()
    child(proc, 100, 1)
    Descent(program, proc.path).watch({100})  # type: ignore[arg-type]
    assert len(program.descendants) >= SCANS


@pytest.mark.parametrize(
    ("start", "roots"),
    [(5900 * TICK, {1058: 7}), (5900 * TICK + 3, {1058: 7}), (6000 * TICK, {1058: 7}), (5899 * TICK, {})],
)
def test_an_earlier_process_with_the_id_is_none(start: int, roots: dict[int, int]) -> None:
    """A thread that began before the descendant with its id is of another process; starts are
    compared in clock ticks, as /proc has them.
    """
    program = FakeProgram()
    program.set_descendant(1058, 5900 * TICK + 5, 7)
    packet = read_local(memoryview(upcall(NTP_FRAME, tgid=1058, start=start)), 0)
    record = Record(packet)  # type: ignore[arg-type]
    found = Descent(program).take(record, plan("[{tgid: 7, children: true}]"))  # type: ignore[arg-type]
    assert found.roots == roots


def test_nothing_is_looked_up_without_such_a_rule() -> None:
    """Rules on a process without its children, and on others with theirs, ask for nothing."""
    asked = plan("[{tgid: 7}, {comm: x, children: true}, {tgid: 8, children: true}]")
    assert asked.rules.roots == {8}
    record = Record(read_local(memoryview(upcall(NTP_FRAME)), 0))  # type: ignore[arg-type]
    Descent(None).take(record, plan("[{tgid: 7}]"))  # type: ignore[arg-type]
    assert record.roots == {}


def test_a_rule_keeps_descendants_whose_parents_have_ended() -> None:
    """A packet of a process that is not in /proc any more is kept by descent; of another one it is not."""
    rig = Rig(rules=Rules(default_settings({"rules": "[{tgid: 7, children: true}, {action: drop}]"}).rules))
    rig.program.set_descendant(4_000_000, 10, 7)
    rig.drain(
        upcall(NTP_FRAME, tgid=4_000_000, tid=4_000_000, start=TICK),
        upcall(b"of another", tgid=4_000_001, tid=4_000_001, start=TICK),
        upcall(b"of itself", tgid=7, tid=7, start=TICK),
    )
    assert rig.output.frames == [NTP_FRAME, b"of itself"]
    assert rig.capture.totals().filtered == 1


def test_a_group_is_kept_if_all_descend() -> None:
    """A packet for several candidates belongs to the command only if each of them does."""
    members = ((4_000_000, 4_000_001), (4_000_000, 4_000_002))
    written = []
    for first, second in members:
        rig = Rig(rules=Rules(default_settings({"rules": "[{tgid: 7, children: true}, {action: drop}]"}).rules))
        for tgid in (4_000_000, 4_000_001):
            rig.program.set_descendant(tgid, 10, 7)
        resolver = rig.capture._resolver
        number = resolver._number(tuple(User(tgid, tgid, TICK, b"x", b"x") for tgid in (first, second)))
        rig.drain(upcall(NTP_FRAME, via=abi.VIA_GROUP, tgid=0, tid=0, start=number))
        written.append(rig.capture.totals().written)
        assert rig.capture.totals().unattributed == 1 - written[-1]
    assert written == [1, 0]
