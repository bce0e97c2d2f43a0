"""`make bench`: compare skbcapd with tcpdump and dumpcap, in one run, on one machine.

In: the number of rounds, the amount of each load. Out: tables in Markdown on stdout and in build/bench.md, every round
in build/bench.json, a plot in build/bench.svg. `--docs` copies the tables and the plot of the last run into docs/ and
measures nothing.

A veth pair connects two network namespaces. Each tool captures complete frames on the sender's interface, into a file
on this disk. The loads, and the tools for each load, run in random order. A figure is the median of the rounds; a ratio
is the median of the ratios of the rounds. CPU is the user and system time of the capture process, from the first packet
until the file stops growing. It does not include compiling at the start.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path
from typing import TypeAlias, TypeVar

from bench import loads, offline, report
from bench.loads import Load, Variant
from bench.measure import Figures, counting_time, measure
from bench.offline import Captures, Offline
from bench.place import place
from bench.tools import Tool, daemon, ours, tools
from bench.wire import wire

HERE = Path(__file__).parent
BUILD, DOCS = HERE.parent / "build", HERE.parent / "docs"
Rows: TypeAlias = list[Figures]
Variants: TypeAlias = list[tuple[Variant, Figures]]
FEW_ROUNDS = 1  # of what no goal is about, so that a run takes less than an hour


_T = TypeVar("_T")


def _shuffled(items: Iterable[_T]) -> list[_T]:
    found = list(items)
    random.shuffle(found)
    return found


def _say(row: Figures) -> None:
    print(f"{row.tool}, {row.load}: {report.cpu_per_packet(row):.3f} us/packet, {row.dropped} dropped", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="amount of traffic: 1 is 1,000,000 small datagrams")
    parser.add_argument("--load", action="append", help="only loads whose name contains this text")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="some minutes: one round, tcpdump only, only loads with a goal, no variants",
    )
    parser.add_argument(
        "--docs", action="store_true", help="copy the tables of the last run into docs/ and measure nothing"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.scale = 1, 0.2
    return options


def _write_docs() -> None:
    """Copy the tables and the plot of the last run into docs/."""
    page = DOCS / "performance.md"
    tables = (BUILD / "bench.md").read_text()
    plot = "![CPU of the capture process per packet, relative to tcpdump](performance.svg)"
    page.write_text(report.insert(page.read_text(), f"{tables}\n{plot}\n"))
    shutil.copyfile(BUILD / "bench.svg", DOCS / "performance.svg")


@dataclass(frozen=True, slots=True)
class Results:
    """All rounds.

    Args:
        rows: loads under tools.
        programs: rounds in which the kernel counted the time of BPF programs.
        variants: of skbcapd.
        files: figures without traffic.
    """

    rows: Rows = field(default_factory=list)
    programs: Rows = field(default_factory=list)
    variants: Variants = field(default_factory=list)
    files: list[Offline] = field(default_factory=list)

    def write(self, where: str) -> None:
        """Write all rounds, the tables and the plot to build/, and the tables to stdout."""
        goals = report.goals(self.rows, self.programs, self.variants, self.files)
        (BUILD / "bench.json").write_text(
            json.dumps(
                {
                    "where": where,
                    "rounds": [asdict(row) for row in self.rows],
                    "programs": [asdict(row) for row in self.programs],
                    "variants": [{"kind": each.kind, "name": each.name, **asdict(row)} for each, row in self.variants],
                    "files": [asdict(one) for one in self.files],
                    "goals": [asdict(goal) | {"met": goal.is_met} for goal in goals],
                },
                indent=1,
            )
        )
        text = report.document(self.rows, self.programs, self.variants, self.files, where)
        (BUILD / "bench.md").write_text(text)
        (BUILD / "bench.svg").write_text(report.plot(self.rows, where))
        print(text)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured in each round.

    Args:
        wanted: loads.
        found: tools, skbcapd first.
        changed: variants of skbcapd.
        directory: for files, on the disk of the captures.
        sender: bench/send.c, compiled.
        captures: files that are read; None: figures without traffic are left out.
    """

    wanted: Sequence[Load]
    found: Sequence[Tool]
    changed: Sequence[Variant]
    directory: Path
    sender: Path
    captures: Captures | None

    def measure(self, results: Results, number: int) -> None:
        """One round; what is compared comes one after another, as the machine is not always equally fast."""
        is_complete = number < FEW_ROUNDS
        for load in _shuffled(each for each in self.wanted if each.has_goal or is_complete):
            # Goals compare skbcapd with tcpdump.
            turns = [*(self.found if is_complete else self.found[:2]), *([None] if load.senders else [])]
            turns += [daemon()] if load.has_daemon else []
            for turn in _shuffled(turns):
                results.rows.append(measure(turn, load, self.sender, self.directory))
                _say(results.rows[-1])
        for load in [each for each in self.wanted if each.name == "UDP 64 B unpaced"]:
            row = measure(self.found[0], load, self.sender, self.directory, count_programs=True)
            results.programs.append(replace(row, counting_s=counting_time(load, self.sender)))
        if self.captures is not None:
            results.files.append(offline.measure(self.captures, self.directory))
        chosen = [variant for variant in self.changed if variant.has_goal or is_complete]
        kinds = [list(each) for _, each in groupby(chosen, key=lambda variant: variant.kind)]
        for variant in chain.from_iterable(map(_shuffled, _shuffled(kinds))):
            tool = ours(variant.module, *variant.arguments)
            row = measure(tool, variant.load, self.sender, self.directory, count_programs=True)
            results.variants.append((variant, row))
            _say(row)


def main() -> int:
    """Run the rounds and write the report."""
    options = _options()
    if options.docs:
        _write_docs()
        return 0
    BUILD.mkdir(exist_ok=True)
    wanted = [
        load
        for load in loads.loads(options.scale)
        if any(word in load.name for word in options.load or [""]) and (load.has_goal or not options.quick)
    ]
    found = tools()[: 2 if options.quick else None]
    is_all = not options.load and not options.quick
    where = f"{place(BUILD, found)}; {options.rounds} rounds, scale {options.scale:g}"
    results = Results()
    with tempfile.TemporaryDirectory(dir=BUILD) as name, wire():
        directory, sender = Path(name), Path(name) / "send"
        subprocess.run(["cc", "-O2", "-pthread", "-o", str(sender), str(HERE / "send.c")], check=True)
        captures = Captures(directory, options.scale) if is_all else None
        plan = Plan(wanted, found, loads.variants(options.scale) if is_all else [], directory, sender, captures)
        for number in range(options.rounds):
            plan.measure(results, number)
    results.rows.sort(key=lambda row: [load.name for load in wanted].index(row.load))
    results.variants.sort(key=lambda each: plan.changed.index(each[0]))
    results.write(where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
