"""`skbcapd report`: writes a page about captures.

In: capture files and selectors. Out: one HTML file. Errors in a file are on the page, and printed
on stderr; the packets before an error count.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from skbcapd import __version__
from skbcapd.analysis import target
from skbcapd.analysis.progress import Progress
from skbcapd.analysis.selectors import Selection
from skbcapd.analysis.sources import Sources, expand
from skbcapd.analysis.target import Target
from skbcapd.report.collect import Collector
from skbcapd.report.page import page, plotly
from skbcapd.text_safety import escaped, escaped_bytes

_FILES_MAX = 200  # whose names are on the page
_COMMAND_MAX = 4096  # characters


def command(options: argparse.Namespace, files: Sequence[Path], selection: Selection) -> int:
    """Write the page; 1 if a file could not be read to its end."""
    library = plotly(options.plotly)
    paths = expand(files)
    target.check(options.file, paths)
    collector = Collector(options.by, has_drops=selection.is_of_drops)
    with Progress(paths, sys.stderr) as progress:
        sources = Sources(paths, selection, progress.next_file, ended=collector.origins.add)
        collector.read(sources.unordered())
    errors = [str(error) for error in sources.wrong]
    names = [escaped_bytes(os.fsencode(path)) for path in paths]
    data = collector.result() | {
        "errors": errors,
        "settings": [
            (
                "files",
                ", ".join(names[:_FILES_MAX]) + (f", {len(names) - _FILES_MAX} more" * (len(names) > _FILES_MAX)),
            ),
            ("command", escaped(shlex.join(["skbcapd", *sys.argv[1:]]))[:_COMMAND_MAX]),
            *(
                [("dropped packets", f"{collector.left_out}, not counted here: skbcapd top --drops")]
                * bool(collector.left_out)
            ),
            ("made by", f"skbcapd {__version__}"),
        ],
    }
    output = Target(options.file)
    try:
        output.gathered += page(f"Network traffic by {_TITLES.get(options.by, options.by)}", data, library).encode()
        output.finish()
    except BaseException:
        output.discard()
        raise
    for error in errors:
        print(f"skbcapd: {error}", file=sys.stderr)
    return int(bool(errors))


_TITLES = {"tgid": "process", "process": "process name", "comm": "thread name"}
