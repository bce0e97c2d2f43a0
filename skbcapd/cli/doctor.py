"""`skbcapd doctor`: can this system capture, and how to fix what is missing.

In: the findings of `kernel.requirements`, and one short capture of our own marker. Out: a line per finding, and a
remedy for each that makes capture impossible.

The rule: the last check is the capture itself, run as it will be run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from skbcapd.capture.capture import Capture, Machine
from skbcapd.capture.interfaces import Selection
from skbcapd.capture.plan import Plan
from skbcapd.cli.arguments import Commands
from skbcapd.errors import SkbcapdError
from skbcapd.kernel import abi
from skbcapd.kernel import program as kernel
from skbcapd.kernel.requirements import Finding, findings
from skbcapd.output.pcapng_output import PcapngOutput

_UNMEASURED = "see processes and real-time above; if they are not the cause, report it with this output"


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    commands.add("doctor", run, "Check whether this system can capture, and how to fix what is missing.")


def run(_options: argparse.Namespace) -> int:
    """Print the report; 0 when capture works, 1 when it cannot."""
    found = list(findings())
    if not any(finding.fatal for finding in found):
        found += _trial()
    return report(found)


def report(found: Sequence[Finding]) -> int:
    """Print findings, a line each and one more for a remedy; 1 when one of them is fatal, else 0."""
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
        """Nothing is kept."""


def _trial() -> Iterator[Finding]:
    """Load the program, attach it, capture our own marker."""
    warnings: list[str] = []
    try:
        hooks = kernel.choose_hooks("auto", ("out", "in"), "queue")
        program = kernel.load(abi.Geometry(4), hooks)
    except SkbcapdError as error:
        yield Finding("program", error.message, error.hint, fatal=True)
        return
    try:
        output = PcapngOutput(_Discard())
        capture = Capture(program, output, Selection(), Plan(), Machine(), warn=warnings.append)
        capture.start()
        capture.stop()
    except SkbcapdError as error:
        yield Finding("hooks", error.message, error.hint, fatal=True)
        return
    else:
        yield Finding("hooks", ", ".join(str(hook) for hook in hooks))
        yield Finding("users by", ", ".join(str(hook) for hook in program.learning))
        if program.control[abi.PAGE_BASE]:
            yield Finding("paged frames", "read back whole")
        else:
            yield Finding("paged frames", "cannot be read: captured up to their linear part", _UNMEASURED)
        if program.process_context:
            yield Finding("system calls", "told from softirqs")
        else:
            yield Finding("system calls", "not told from softirqs: no process is named", _UNMEASURED)
        for line in warnings:
            yield Finding("warning", line)
    finally:
        program.close()
