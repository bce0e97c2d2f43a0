"""`skbcapd extract`: writes selected packets of capture files to one file.

In: capture files and selectors. Out: one capture file with the selected packets in the order of
time, or their number.

The rules: one pass, whose memory is bounded. A packet keeps its time, its length and its options;
statistics, names and secrets in the files are not copied. Errors in a file are printed after the
result, with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from skbcapd.analysis import target
from skbcapd.analysis.pcapng_file import PcapngFile
from skbcapd.analysis.progress import Progress
from skbcapd.analysis.records import records
from skbcapd.analysis.selectors import Selection
from skbcapd.analysis.sources import Sources, Timed, expand
from skbcapd.analysis.target import STDOUT, Target
from skbcapd.text_safety import escaped_bytes


def command(options: argparse.Namespace, files: Iterable[Path], selection: Selection) -> int:
    """Write or count the selected packets; 1 if a file could not be read to its end."""
    paths = expand(files)
    with Progress(paths, sys.stderr) as progress:
        sources = Sources(paths, selection, progress.next_file)
        if options.count:
            print(sum(1 for _ in sources.packets()))
        else:
            _write(options, sources.packets(), paths)
    for error in sources.wrong:
        print(f"skbcapd: {error}", file=sys.stderr)
    return int(bool(sources.wrong))


def _write(options: argparse.Namespace, packets: Iterable[Timed], paths: list[Path]) -> None:
    target.check(options.file, paths)
    goal = Target(options.file)
    try:
        file = PcapngFile(goal)
        for record in records(packets):
            file.put(record)
        goal.finish()
    except BrokenPipeError:
        goal.discard()  # `extract -w - | head`
    except BaseException:
        goal.discard()
        raise
    if options.file != STDOUT:
        print(f"skbcapd: {file.packets} packets to {escaped_bytes(os.fsencode(options.file))}", file=sys.stderr)
