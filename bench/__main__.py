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
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import chain, groupby
from pathlib import Path
from typing import TypeAlias, TypeVar

from bench import loads, report
from bench.loads import Variant
from bench.measure import Figures, counting_time, measure
from bench.place import place
from bench.tools import ours, tools
from bench.wire import wire

HERE = Path(__file__).parent
BUILD, DOCS = HERE.parent / "build", HERE.parent / "docs"
Rows: TypeAlias = list[Figures]
Variants: TypeAlias = list[tuple[Variant, Figures]]


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
        help="two minutes: one round, tcpdump only, only loads with a goal, no variants",
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


def _write(where: str, rows: Rows, programs: Rows, variants: Variants) -> None:
    """Write all rounds, the tables and the plot to build/, and the tables to stdout."""
    goals = report.goals(rows, programs, variants)
    (BUILD / "bench.json").write_text(
        json.dumps(
            {
                "where": where,
                "rounds": [asdict(row) for row in rows],
                "programs": [asdict(row) for row in programs],
                "variants": [{"kind": each.kind, "name": each.name, **asdict(row)} for each, row in variants],
                "goals": [asdict(goal) | {"met": goal.is_met} for goal in goals],
            },
            indent=1,
        )
    )
    text = report.document(rows, programs, variants, where)
    (BUILD / "bench.md").write_text(text)
    (BUILD / "bench.svg").write_text(report.plot(rows, where))
    print(text)


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
    where = f"{place(BUILD, found)}; {options.rounds} rounds, scale {options.scale:g}"
    rows: Rows = []
    programs: Rows = []
    variants: Variants = []
    with tempfile.TemporaryDirectory(dir=BUILD) as name, wire():
        directory, sender = Path(name), Path(name) / "send"
        subprocess.run(["cc", "-O2", "-pthread", "-o", str(sender), str(HERE / "send.c")], check=True)
        for _ in range(options.rounds):
            # What is compared comes one after another, as the machine is not always equally fast.
            for load in _shuffled(wanted):
                for turn in _shuffled([*found, *([None] if load.senders else [])]):
                    rows.append(measure(turn, load, sender, directory))
                    _say(rows[-1])
            counted = [load for load in wanted if load.name == "UDP 64 B unpaced"]
            for load in counted:
                row = measure(found[0], load, sender, directory, count_programs=True)
                programs.append(replace(row, counting_s=counting_time(load, sender)))
            changed = [] if options.load or options.quick else loads.variants(options.scale)
            kinds = [list(each) for _, each in groupby(changed, key=lambda variant: variant.kind)]
            for variant in chain.from_iterable(map(_shuffled, _shuffled(kinds))):
                tool = ours(variant.module, *variant.arguments)
                variants.append((variant, measure(tool, variant.load, sender, directory, count_programs=True)))
                _say(variants[-1][1])
    rows.sort(key=lambda row: [load.name for load in wanted].index(row.load))
    variants.sort(key=lambda each: loads.variants(options.scale).index(each[0]))
    _write(where, rows, programs, variants)
    return 0


if __name__ == "__main__":
    sys.exit(main())
