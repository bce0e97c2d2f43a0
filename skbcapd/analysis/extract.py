"""`skbcapd extract`: writes selected packets of capture files to one file.

In: capture files and selectors. Out: one capture file with the selected packets in the order of
time, or their number.

The rules: one pass, whose memory is bounded. A packet keeps its time, its length and its options;
statistics and names in the files are not copied, TLS secrets only on request. Errors in a file are printed after the
result, with exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from skbcapd.analysis import target
from skbcapd.analysis.changes import Changes
from skbcapd.analysis.progress import Progress
from skbcapd.analysis.records import Record, records
from skbcapd.analysis.selectors import Selection
from skbcapd.analysis.sources import Sources, expand
from skbcapd.analysis.target import STDOUT
from skbcapd.analysis.writers import PcapngWriter, PcapWriter, Writer
from skbcapd.errors import UsageError


def command(options: argparse.Namespace, files: Iterable[Path], selection: Selection) -> int:
    """Write or count the selected packets; 1 if a file could not be read to its end."""
    if options.secrets == "all" and options.format == "pcap":
        raise UsageError("--secrets all with --format pcap: pcap files have no secrets", "--format pcapng")
    paths = expand(files)
    changes = Changes(options)
    said: list[str] = []
    with Progress(paths, sys.stderr) as progress:
        sources = Sources(paths, selection, progress.next_file, has_secrets=options.secrets == "all")
        if options.count:
            print(sources.count())
        else:
            target.check(options.file, paths)
            writer = (
                PcapngWriter(options.file, options.time)
                if options.format == "pcapng"
                else PcapWriter(options.file, options.time, paths)
            )
            said = _write(writer, changes.apply(records(sources.packets())))
    if options.file != STDOUT:
        for line in said:
            print(f"skbcapd: {line}", file=sys.stderr)
    return tell(changes, sources)


def tell(changes: Changes, sources: Sources) -> int:
    """Print what there is to say after the result; the exit code."""
    for note in changes.notes():
        print(f"skbcapd: {note}", file=sys.stderr)
    for error in sources.wrong:
        print(f"skbcapd: {error}", file=sys.stderr)
    return int(bool(sources.wrong))


def _write(writer: Writer, packets: Iterable[Record]) -> list[str]:
    """Write all packets; lines about what was written."""
    try:
        for record in packets:
            writer.put(record)
        return list(writer.finish())
    except BrokenPipeError:
        writer.discard()  # `extract -w - | head`
        return []
    except BaseException:
        writer.discard()
        raise
