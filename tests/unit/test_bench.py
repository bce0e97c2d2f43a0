"""The calculations of the benchmark: output of tools, ratios, goals, tables, the plot. Nothing is
measured.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import anonymous, loads, report
from bench.measure import NO_CAPTURE, Figures, busy_time, cpu_time, number, private_memory, process_times
from bench.offline import Offline
from bench.place import processor, version
from bench.tools import daemon, ours, tools
from bench.wire import DEVICE
from skbcapd.kernel import compiler

OFFLINE = Offline(700, 260, 340, 90, start_kept=0.3, start_new=1.2, crashed=0.1, disk=1000)
ROW = Figures("skbcapd", "UDP 64 B unpaced", sent=1000, sending_s=0.5, captured=900, dropped=100, cpu_s=0.25)
WHERE = "Linux 1 & 2 processors"
LAST_WORDS = {
    "skbcapd": "capturing on eth0\n1000 packets captured\n7 packets dropped by kernel\n",
    "tcpdump": "1000 packets captured\n1007 packets received by filter\n7 packets dropped by kernel\n",
    "dumpcap": "Packets captured: 1000\nPackets received/dropped on interface 'eth0': 1000/7 (pcap:7/dumpcap:0)\n",
}


@pytest.mark.parametrize("tool", tools(), ids=lambda tool: tool.name)
def test_the_last_output_is_parsed(tool: object) -> None:
    """The last output of each tool gives captured and dropped packets; other output is an error."""
    assert tool.totals(LAST_WORDS[tool.name]) == (1000, 7)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="did not print"):
        tool.totals("killed")  # type: ignore[attr-defined]


def test_the_kernels_figures_are_understood() -> None:
    """Times are read from /proc as in proc(5), for any process name; a missing value is an error."""
    assert process_times("7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 250 50 0 0 20 0 1 0") == (2.5, 0.5)
    assert busy_time("cpu  100 0 200 900 50 25 75 700 0 0\ncpu0 1 1") == 4.0
    assert number("prog_id", "prog_type: 1\nprog_id:\t42\n") == 42
    with pytest.raises(ValueError, match="no prog_id"):
        number("prog_id", "")


def test_shared_buffers_are_no_memory_of_the_process() -> None:
    """Maps of BPF and rings of packet sockets are not counted as resident memory; a library named
    libbpf is.
    """
    areas = [
        ("7f0000-7f1000 r--p 00000000 fe:00 1                          /usr/lib/libbpf.so.1", 3),
        ("7f1000-7f2000 rw-s 00000000 00:0e 2                          anon_inode:bpf-map", 500),
        ("7f2000-7f3000 rw-s 00000000 00:09 3                          socket:[3]", 700),
        ("7f3000-7f4000 rw-p 00000000 00:00 0", 11),
    ]
    text = "".join(f"{area}\nSize:  999 kB\nRss:   {size} kB\nPss:  1 kB\n" for area, size in areas)
    assert private_memory(text) == (3 + 11) * 1024


def test_cpu_time_is_of_all_threads() -> None:
    """The CPU clock of another process is read before and after; a process that has ended has none."""
    words = (
        "import sys, threading, time\n"
        "def work():\n"
        "    while time.process_time() < 0.1: pass\n"
        "worker = threading.Thread(target=work); worker.start(); worker.join()\n"
        "print(time.process_time(), flush=True); sys.stdin.readline(); print(time.process_time())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        before = float(process.stdout.readline())
        found = cpu_time(process.pid)
        after, _ = process.communicate("\n", timeout=60)
    assert 0.1 <= before <= found <= float(after)
    with pytest.raises(OSError, match="No such process"):
        cpu_time(process.pid)


def test_the_place_is_understood() -> None:
    """Processor and versions are read from the output of the system and of the tools."""
    assert processor("model name\t: Good One\nflags\t\t: fpu hypervisor sse\n") == "Good One, virtual"
    assert processor("model name\t: Good One\nflags\t\t: fpu sse\n") == "Good One"
    assert version("tcpdump version 4.99.3\nlibpcap version 1.10.3") == "4.99.3"
    assert version("") == "of unknown version"


def test_our_command_is_complete(tmp_path: Path) -> None:
    """Device and file replace their placeholders; other braces in arguments stay."""
    command = ours("skbcapd", "--set", "rules=[{comm: a}]").command(tmp_path / "x", any_device=True)
    assert command[6:9] == ["capture", "-i", "any"]
    assert command[-4:] == ["-w", str(tmp_path / "x"), "--set", "rules=[{comm: a}]"]


def test_the_daemon_has_its_defaults(tmp_path: Path) -> None:
    """It is told what the other tools are told, and where its files are."""
    command = daemon().command(tmp_path / "x")
    assert command[5:] == [
        *("skbcapd", "run", "--set", f"interfaces={DEVICE}", "--set", "directions=out"),
        *("--set", f"files.directory={tmp_path / 'x'}", "--set", f"control.socket={tmp_path / 'x'}.socket"),
        *("--set", "files.every=0"),
    ]


def test_goals_say_whether_they_are_met() -> None:
    """A ratio to tcpdump is the median over the rounds; without a value, a goal is neither met nor
    missed.
    """
    rows = [replace(ROW, cpu_s=cpu) for cpu in (0.1, 0.9, 0.2)]
    rows += [replace(ROW, tool="tcpdump", cpu_s=cpu) for cpu in (0.4, 0.9, 0.8)]
    found = {goal.name: goal for goal in report.goals(rows, [], [])}
    assert found["CPU relative to tcpdump, UDP 64 B unpaced"].value == pytest.approx(0.25)
    assert found["CPU relative to tcpdump, UDP 64 B unpaced"].is_met is True
    assert found["CPU relative to tcpdump, TCP bulk with GSO"].is_met is None
    assert found["cost of 10 or 100 rules, relative to 1"].is_met is None


def test_the_time_of_the_measurement_is_separate() -> None:
    """The time of BPF programs is reported with and without the time of the measurement."""
    row = replace(ROW, captured=1000, program_s=0.5e-3, program_runs=2000, counting_s=60e-9)
    found = {goal.name: goal for goal in report.goals([], [row], [])}
    assert found["BPF time per 64 B packet, with the kernel's measurement, ns"].value == pytest.approx(500)
    assert found["BPF time per 64 B packet, without the measurement, ns"].value == pytest.approx(380)


@pytest.mark.parametrize(("captured", "missing"), [(900, 0), (893, 7), (907, 7)])
def test_every_datagram_is_accounted_for(captured: int, missing: int) -> None:
    """One packet too few is as wrong as one too many, in any round; dropped packets that were
    counted are not missing.
    """
    rows = [ROW, replace(ROW, captured=captured), ROW]
    found = {goal.name: goal for goal in report.goals(rows, [], [])}[
        "packets neither captured nor counted as dropped, UDP"
    ]
    assert (found.value, found.is_met) == (missing, not missing)


def test_variants_are_compared() -> None:
    """Growth is the cost of the worst variant relative to the first; a rejected packet is compared
    with a copied one.
    """
    costs = {
        ("rules", "1"): 1.0,
        ("rules", "10"): 1.5,
        ("rules", "100"): 1.3,
        ("drops, none dropped", "none"): 1.0,
        ("drops, none dropped", "count"): 1.25,
        ("filter", "none"): 2.0,
        ("filter", "rejects all"): 0.5,
    }
    variants = [
        (variant, replace(ROW, cpu_s=cost / 1000, program_s=0.00025))
        for variant in loads.variants(1.0)
        for key, cost in costs.items()
        if key == (variant.kind, variant.name)
    ]
    found = {goal.name: goal.value for goal in report.goals([ROW], [], variants)}
    assert found["cost of 10 or 100 rules, relative to 1"] == pytest.approx(1.75 / 1.25)
    assert found["cost of drops: count without drops, relative to none"] == pytest.approx(1.5 / 1.25)
    assert found["cost of a rejected packet, relative to a copied one"] == pytest.approx(0.75 / 2.25)
    assert "| filter | rejects all | 250 | 0.500 | 0.750 |" in report.variant_table(variants)


def test_tables_show_every_row() -> None:
    """Each tool has a row with medians in both tables; "no capture" has its rate; each table says
    where it was measured.
    """
    rows = [
        *(replace(ROW, cpu_s=cpu) for cpu in (0.27, 0.09, 0.18)),
        *(replace(ROW, tool="tcpdump", cpu_s=0.36) for _ in range(3)),
        replace(ROW, tool=NO_CAPTURE, sending_s=0.25, captured=0, cpu_s=0),
        replace(ROW, load="TCP", sent_bytes=1 << 20),
        replace(ROW, load="idle", sent=0, captured=0, dropped=0, sending_s=5.0),
    ]
    packets, captures = report.packet_table(rows).splitlines(), report.capture_table(rows).splitlines()
    ours = "| UDP 64 B unpaced | skbcapd | 0.90000 | 200.000 | 100.000 to 300.000 | 0.00 | 0.00 | 0.00 | 0 | 0.50 |"
    assert packets[2] == ours
    assert packets[3].endswith("| 400.000 | 400.000 to 400.000 | 0.00 | 0.00 | 0.00 | 0 | 1.00 |")
    assert [line.split(" | ")[0] for line in packets[2:]] == ["| UDP 64 B unpaced"] * 2 + ["| TCP"]
    assert "| UDP 64 B unpaced | no capture | 4,000/s | 1.00 |  |  |  |  |" in captures
    assert "| UDP 64 B unpaced | skbcapd | 2,000/s | 0.50 | 100 | 36.00 | 0 | 0.00 |" in captures
    assert "| TCP | skbcapd | 2 MiB/s |  | 100 | 50.00 | 0 | 0.00 |" in captures
    assert "| idle | skbcapd |  |  | 0 | 5.00 | 0 | 0.00 |" in captures
    assert report.document(rows, [], [], [], WHERE).count(f"({WHERE})\n\n|") == 3
    assert report.document(rows, [], [], [OFFLINE], WHERE).count(f"({WHERE})\n\n|") == 4


def test_plot_is_xml_with_a_bar_for_every_tool() -> None:
    """The length of a bar is the CPU time per packet, relative to tcpdump with the same load."""
    rows = [ROW, replace(ROW, tool="tcpdump", cpu_s=0.5)]
    rows += [replace(row, load="UDP 1400 B unpaced", cpu_s=row.cpu_s * 10) for row in rows]
    found = ET.fromstring(report.plot(rows, WHERE))  # noqa: S314  our own
    _, *bars = found.findall("{http://www.w3.org/2000/svg}rect")
    assert [float(bar.attrib["width"]) for bar in bars] == [180.0, 360.0] * 2
    assert WHERE in "".join(found.itertext())


def test_tables_of_a_run_are_inserted_into_a_page() -> None:
    """The text between the two marks is replaced, the rest stays; a page without marks is an error."""
    page = "before\n<!-- a run: begin -->\nold\n<!-- a run: end -->\nafter\n"
    new = page.replace("old\n", "\nnew\n\n")
    assert report.insert(page, "new\n") == new
    assert report.insert(new, "new\n") == new
    with pytest.raises(ValueError, match="has not one"):
        report.insert("before\n", "new\n")


def test_attribution_can_be_left_out() -> None:
    """Without attribution, two lines of the program text differ, those that find the user; another
    text is an error.
    """
    text = compiler.source()
    lines = zip(text.splitlines(), anonymous.without_attribution(text).splitlines(), strict=True)
    changed = [(before.strip(), after.strip()) for before, after in lines if before != after]
    assert changed == [(f"via = {call};", "via = VIA_KERNEL;") for call in anonymous.CALLS]
    with pytest.raises(ValueError, match="has 0 times"):
        anonymous.without_attribution("")


def test_goals_without_traffic_are_medians() -> None:
    """A goal for reading and starting is about the median of the rounds, and rates must be at least as high."""
    rounds = [OFFLINE, replace(OFFLINE, top=240, start_kept=0.2), replace(OFFLINE, top=250, start_kept=0.5)]
    found = {goal.name: goal for goal in report.goals([], [], [], rounds)}
    top, kept = found["`top`, 64 B frames, MB per CPU second"], found["time from start to capture, program kept, s"]
    assert (top.value, top.is_met, kept.value, kept.is_met) == (250, True, 0.3, True)
    assert found["`extract --count`, 64 B frames, MB per CPU second"].is_met is False
    assert "| start, program kept, s | 0.30 | 0.20 to 0.50 |" in report.offline_table(rounds)


def test_drops_count_where_the_disk_is_faster() -> None:
    """Packets that were dropped while the sender was faster than the disk are not counted against the goal."""
    row = replace(ROW, load="TCP bulk, GSO", sent_bytes=900_000_000, sending_s=1.0, dropped=5)
    rows = [row, replace(row, sent_bytes=1_100_000_000, dropped=9)]
    assert report.dropped_beside(rows, [OFFLINE, OFFLINE], row.load) == 5
    assert report.dropped_beside(rows[1:], [OFFLINE], row.load) is None
