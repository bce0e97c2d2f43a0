"""The benchmark's arithmetic: what tools say, ratios, goals, tables, the plot. Nothing is measured here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import anonymous, loads, report
from bench.measure import Figures, busy_time, number, process_times
from bench.tools import ours, tools
from skbcapd import loader

ROW = Figures("skbcapd", "UDP 64 B unpaced", sent=1000, sending_s=0.5, captured=900, dropped=100, user_s=0.25)
LAST_WORDS = {
    "skbcapd": "capturing on eth0\n1000 packets captured\n7 packets dropped by kernel\n",
    "tcpdump": "1000 packets captured\n1007 packets received by filter\n7 packets dropped by kernel\n",
    "dumpcap": "Packets captured: 1000\nPackets received/dropped on interface 'eth0': 1000/7 (pcap:7/dumpcap:0)\n",
}


@pytest.mark.parametrize("tool", tools(), ids=lambda tool: tool.name)
def test_last_words_are_understood(tool: object) -> None:
    """What each tool says at its end gives packets captured and dropped; other words are an error."""
    assert tool.totals(LAST_WORDS[tool.name]) == (1000, 7)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="did not say"):
        tool.totals("killed")  # type: ignore[attr-defined]


def test_the_kernels_figures_are_understood() -> None:
    """Times come from /proc as proc(5) has them, whatever a process is called; a missing figure is an error."""
    assert process_times("7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 250 50 0 0 20 0 1 0") == (2.5, 0.5)
    assert busy_time("cpu  100 0 200 900 50 25 75 0 0 0\ncpu0 1 1") == 4.0
    assert number("prog_id", "prog_type: 1\nprog_id:\t42\n") == 42
    with pytest.raises(ValueError, match="no prog_id"):
        number("prog_id", "")


def test_our_command_is_whole(tmp_path: Path) -> None:
    """Device and file stand in their places, braces in arguments of our own stay."""
    command = ours("skbcapd", "--set", "rules=[{comm: a}]").command(tmp_path / "x", any_device=True)
    assert command[3:6] == ["capture", "-i", "any"]
    assert command[-4:] == ["-w", str(tmp_path / "x"), "--set", "rules=[{comm: a}]"]


def test_goals_say_whether_they_are_met() -> None:
    """A ratio to tcpdump is of the medians; where a figure is missing a goal is neither met nor missed."""
    rows = [replace(ROW, user_s=cpu) for cpu in (0.1, 0.9, 0.2)]
    rows += [replace(ROW, tool="tcpdump", user_s=0.4)]
    found = {goal.name: goal for goal in report.goals(rows, [], [])}
    assert found["CPU of tcpdump's, UDP 64 B unpaced"].value == pytest.approx(0.5)
    assert found["CPU of tcpdump's, UDP 64 B unpaced"].is_met is True
    assert found["UDP packets neither captured nor counted as lost"].value == 0
    assert found["CPU of tcpdump's, TCP bulk with GSO"].is_met is None
    assert found["cost of 100 rules, of 1"].is_met is None


def test_variants_are_compared() -> None:
    """Growth is the cost of the most to that of the least; a refused packet is compared with a copied one."""
    costs = {("rules", "1"): 1.0, ("rules", "100"): 1.3, ("filter", "none"): 2.0, ("filter", "refuses all"): 0.5}
    variants = [
        (variant, replace(ROW, user_s=cost / 1000, program_s=0.0))
        for variant in loads.variants(1.0)
        for key, cost in costs.items()
        if key == (variant.kind, variant.name)
    ]
    found = {goal.name: goal.value for goal in report.goals([ROW], [], variants)}
    assert found["cost of 100 rules, of 1"] == pytest.approx(1.3)
    assert found["cost of a packet that the filter refuses, of one that is copied"] == pytest.approx(0.25)
    assert "| filter | refuses all | 0 | 0.500 |" in report.variant_table(variants)


def test_table_and_plot_show_every_row() -> None:
    """Each tool has a line in the table and a bar in the plot, which is XML."""
    rows = [ROW, replace(ROW, tool="tcpdump", user_s=0.5)]
    assert "| UDP 64 B unpaced | tcpdump | 100 |" in report.table(rows)
    bars = ET.fromstring(report.plot(rows, "here & now")).findall("{http://www.w3.org/2000/svg}rect")  # noqa: S314  our own
    assert [float(bar.attrib["width"]) for bar in bars] == [180.0, 360.0]


def test_attribution_can_be_left_out() -> None:
    """The variant without attribution lacks one call of the program, and only that; without it there is no variant."""
    text = loader.source()
    assert len(text) - len(anonymous.without_attribution(text)) == len(anonymous.CALL)
    with pytest.raises(ValueError, match="has 0 times"):
        anonymous.without_attribution("")
