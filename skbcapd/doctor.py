"""What this kernel offers, what will be used, and what stands in the way.

In: /proc, /sys, bcc, and one short capture of our own marker. Out: a line per finding, and a remedy for each that
makes capture impossible.

The rule: a remedy is something the reader can do. The last check is the capture itself, run as it will be run.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skbcapd import btf, kernel, layout
from skbcapd.capture import Capture, PcapngOutput
from skbcapd.errors import KernelError, SkbcapdError

# Source: capabilities(7). SYS_ADMIN stands for the two that Linux 5.8 split off from it.
_CAPABILITIES = {"net_admin": 12, "sys_admin": 21, "perfmon": 38, "bpf": 39}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: fatal findings carry a remedy."""

    name: str
    text: str
    remedy: str = ""
    fatal: bool = False


class _Discard:
    def write(self, data: bytes | memoryview, /) -> int:
        return len(data)

    def flush(self) -> None:
        """Nothing is kept."""


def findings(proc: Path = Path("/proc"), sys_: Path = Path("/sys"), python: str = sys.executable) -> Iterator[Finding]:
    """Everything that can be said without loading a program.

    Args:
        proc: where procfs is.
        sys_: where sysfs is.
        python: the interpreter that shall find bcc.
    """
    yield _kernel_version(proc)
    yield _capabilities(proc)
    lockdown = sys_ / "kernel/security/lockdown"
    mode = re.search(r"\[(\w+)\]", lockdown.read_text()) if lockdown.exists() else None
    mode_name = mode[1] if mode else "none"
    if mode_name == "confidentiality":
        yield Finding(
            "lockdown",
            mode_name,
            "BPF may not read kernel memory: boot with lockdown=integrity or without it",
            fatal=True,
        )
    else:
        yield Finding("lockdown", mode_name)
    yield _btf(sys_ / "kernel/btf/vmlinux")
    yield Finding("kprobes", "yes" if kernel.has_kprobes(sys_ / "bus/event_source/devices/kprobe/type") else "no")
    yield Finding("real-time", "yes: no process is named" if kernel.is_realtime(sys_ / "kernel/realtime") else "no")
    yield _bcc(python)


def refuse_hopeless(proc: Path = Path("/proc")) -> None:
    """Stop early, with the remedy, where a capture cannot work.

    Args:
        proc: where procfs is.

    Raises:
        KernelError: the first fatal finding.
    """
    for finding in (_kernel_version(proc), _capabilities(proc)):
        if finding.fatal:
            raise KernelError(f"{finding.name}: {finding.text}", finding.remedy)


def command(_options: argparse.Namespace) -> int:
    """Print the report; 0 when capture works, 1 when it cannot."""
    found = list(findings())
    if not any(finding.fatal for finding in found):
        found += _trial()
    return report(found)


def report(found: Sequence[Finding]) -> int:
    """Print findings, a line each and one more for a remedy; 1 when one of them is fatal, else 0."""
    for finding in found:
        print(f"{'FAIL' if finding.fatal else 'ok':4}  {finding.name:14} {finding.text}")
        if finding.remedy:
            print(f"      {'':14} -> {finding.remedy}")
    sys.stdout.flush()
    return int(any(finding.fatal for finding in found))


def _kernel_version(proc: Path) -> Finding:
    release = (proc / "sys/kernel/osrelease").read_text().strip()
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    oldest = ".".join(str(number) for number in kernel.OLDEST_KERNEL)
    if version < kernel.OLDEST_KERNEL:
        return Finding("kernel", f"{release}; expected {oldest} or newer", "boot a newer kernel", fatal=True)
    return Finding("kernel", f"{release} ({platform.machine()}), {oldest} or newer is needed")


def _capabilities(proc: Path) -> Finding:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", (proc / "self/status").read_text(), re.MULTILINE)
    effective = int(match[1], 16) if match else 0
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        names = ", ".join(f"CAP_{name.upper()}" for name in missing)
        return Finding("capabilities", f"{names} missing", "run as root", fatal=True)
    return Finding("capabilities", "all that are needed")


def _btf(path: Path) -> Finding:
    try:
        layout.definitions(btf.Btf.load(path), layout.Geometry(4))
    except SkbcapdError as error:
        return Finding("BTF", error.message, error.hint, fatal=True)
    return Finding("BTF", str(path))


def _bcc(python: str) -> Finding:
    """Ask a process of its own: importing bcc loads a compiler."""
    probe = "import bcc; print(getattr(bcc, '__version__', '?'), bcc.BPF.RAW_TRACEPOINT, bcc.__file__)"
    result = subprocess.run([python, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return Finding(
            "bcc",
            f"cannot be used: {reason}",
            "install python3-bpfcc; the package named bcc on PyPI is something else (pip uninstall bcc)",
            fatal=True,
        )
    version, _, path = result.stdout.split(maxsplit=2)
    return Finding("bcc", f"{version} ({path.strip()})")


def _trial() -> Iterator[Finding]:
    """Load the program, attach it, capture our own marker."""
    warnings: list[str] = []
    try:
        hooks = kernel.choose_hooks("auto", ("out", "in"), "queue")
        program = kernel.load(layout.Geometry(4), hooks)
    except SkbcapdError as error:
        yield Finding("program", error.message, error.hint, fatal=True)
        return
    try:
        capture = Capture(program, PcapngOutput(_Discard()), ("any",), warn=warnings.append)
        capture.start()
        capture.stop()
    except SkbcapdError as error:
        yield Finding("hooks", error.message, error.hint, fatal=True)
        return
    else:
        yield Finding("hooks", ", ".join(str(hook) for hook in hooks))
        proven = bool(program.control[layout.PAGE_BASE])
        yield Finding(
            "paged frames", "read back whole" if proven else "cannot be read: captured up to their linear part"
        )
        context = "told from softirqs" if program.process_context else "not told from softirqs: no process is named"
        yield Finding("system calls", context)
        for line in warnings:
            yield Finding("warning", line)
    finally:
        program.close()
