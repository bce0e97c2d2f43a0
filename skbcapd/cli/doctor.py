"""`skbcapd doctor`: check whether this system can capture, and how to fix what is missing.

In: the findings of `kernel.requirements`, and one short capture of the marker packet. Out: a line
for each finding, and a remedy for each one that prevents a capture.

The rule: the last check is a real capture, with the same code as any other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from skbcapd.capture.capture import Capture, Machine
from skbcapd.capture.interfaces import Selection
from skbcapd.capture.plan import Plan
from skbcapd.errors import SkbcapdError
from skbcapd.kernel import abi
from skbcapd.kernel import program as kernel
from skbcapd.kernel.requirements import Finding, findings
from skbcapd.output.pcapng_output import PcapngOutput

_UNMEASURED = "see processes and softirqs above; if they are ok, report this with the output of doctor"


def add(_command: argparse.ArgumentParser) -> None:
    """It has no arguments."""


def run(_options: argparse.Namespace) -> int:
    """Print the report; 0 if capture works, 1 if not."""
    found = list(findings())
    if not any(finding.fatal for finding in found):
        found += _trial()
    return report(found)


def report(found: Sequence[Finding]) -> int:
    """Print each finding, and its remedy on a second line; 1 if one of them is fatal, otherwise 0."""
    for finding in found:
        word = "FAIL" if finding.fatal else "note" if finding.remedy else "ok"
        print(f"{word:4}  {finding.name:14} {finding.text}")
        if finding.remedy:
            print(f"      {'':14} -> {finding.remedy}")
    sys.stdout.flush()
    return int(any(finding.fatal for finding in found))


class _Discard:
    def write(self, data: bytes | memoryview, /) -> int:
        return len(data)

    def flush(self) -> None:
        """Does nothing."""


def _trial() -> Iterator[Finding]:
    """Load the program, attach it, and capture the marker packet."""
    try:
        hooks = kernel.choose_hooks("auto", ("out", "in"), "queue")
        program = kernel.load(abi.Geometry(4), hooks)
    except SkbcapdError as error:
        yield Finding("program", error.message, error.hint, fatal=True)
        return
    try:
        output = PcapngOutput(_Discard())
        capture = Capture(program, output, Selection(), Plan(), Machine())
        capture.start()
        capture.stop()
    except SkbcapdError as error:
        yield Finding("hooks", error.message, error.hint, fatal=True)
        return
    else:
        yield Finding("hooks", ", ".join(str(hook) for hook in hooks))
        yield Finding("socket hooks", ", ".join(str(hook) for hook in program.learning))
        if program.control[abi.PAGE_BASE]:
            yield Finding("paged frames", "can be read")
        else:
            yield Finding(
                "paged frames", "cannot be read; such frames are cut at the end of their linear part", _UNMEASURED
            )
        if program.process_context:
            yield Finding("system calls", "distinguished from softirqs")
        else:
            yield Finding(
                "system calls", "not distinguished from softirqs; skbcapd cannot find any process", _UNMEASURED
            )
    finally:
        program.close()
