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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skbcapd.capture.capture import Capture
from skbcapd.errors import KernelError, SkbcapdError
from skbcapd.kernel import abi, btf, syscall
from skbcapd.kernel import program as kernel
from skbcapd.output.pcapng_output import PcapngOutput

# Source: capabilities(7). It has in it what PERFMON and BPF, split off in Linux 5.8, would give; neither of them
# shows frame numbers in /proc/PID/pagemap.
_CAPABILITIES = {"sys_admin": 21}
# The first namespaces' inode numbers. Source: include/linux/proc_ns.h (PROC_PID_INIT_INO, PROC_USER_INIT_INO).
_FIRST_NAMESPACE = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}
_SECCOMP_FILTER = "2"  # SECCOMP_MODE_FILTER
_OLDEST_BCC = (0, 26)  # that the tests have run with
_SEES_USES = (6, 3)  # Linux with sock_send_length and sock_recv_length
_UNMEASURED = "see processes and real-time above; if they are not the cause, report it with this output"
_MEMORY = 300 << 20  # at start: 180 MiB for the compiler, 40 for Python, 73 for the default buffer


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A fatal finding has a remedy; another has one where something can be made better."""

    name: str
    text: str
    remedy: str = ""
    fatal: bool = False


class _Discard:
    def write(self, data: bytes | memoryview, /) -> int:
        return len(data)

    def flush(self) -> None:
        """Nothing is kept."""


def findings(
    proc: Path = Path("/proc"),
    sys_: Path = Path("/sys"),
    python: str = sys.executable,
    refusal: Callable[[], str] = syscall.refusal,
) -> Iterator[Finding]:
    """Everything that can be said without loading a program.

    Args:
        proc: where procfs is.
        sys_: where sysfs is.
        python: the interpreter that shall find bcc.
        refusal: why the kernel does not take bpf(2) calls; empty if it does.
    """
    yield _kernel_version(proc)
    capabilities = _capabilities(proc)
    yield capabilities
    yield _seccomp(proc, "" if capabilities.fatal else refusal())
    yield _process_namespace(proc)
    yield _lockdown(sys_)
    yield _btf(sys_ / "kernel/btf/vmlinux")
    yield _perf(proc)
    yield _kprobes(proc, sys_)
    yield _real_time(sys_)
    yield _tracefs(proc)
    yield _statistics(proc)
    yield _memlock(proc)
    yield _cgroup(proc, sys_)
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
        word = "FAIL" if finding.fatal else "note" if finding.remedy else "ok"
        print(f"{word:4}  {finding.name:14} {finding.text}")
        if finding.remedy:
            print(f"      {'':14} -> {finding.remedy}")
    sys.stdout.flush()
    return int(any(finding.fatal for finding in found))


def _read(path: Path) -> str:
    """What a file of /proc or /sys says; nothing, where it is missing or kept from us."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _release(proc: Path) -> tuple[str, tuple[int, int]]:
    """The kernel's release, and its two first numbers."""
    release = _read(proc / "sys/kernel/osrelease")
    numbers = re.match(r"(\d+)\.(\d+)", release)
    return release, (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _status(proc: Path, key: str) -> str:
    """One line of /proc/self/status."""
    match = re.search(rf"^{key}:\s*(.*)$", _read(proc / "self/status"), re.MULTILINE)
    return match[1] if match else ""


def _kernel_version(proc: Path) -> Finding:
    release, version = _release(proc)
    oldest = ".".join(str(number) for number in kernel.OLDEST_KERNEL)
    if not release:
        return Finding("kernel", f"{proc} does not say; expected procfs", "mount -t proc proc /proc", fatal=True)
    if version < kernel.OLDEST_KERNEL:
        return Finding("kernel", f"{release}; expected {oldest} or newer", "boot a newer kernel", fatal=True)
    return Finding("kernel", f"{release} ({platform.machine()}), {oldest} or newer is needed")


def _capabilities(proc: Path) -> Finding:
    effective = _status(proc, "CapEff")
    held = int(effective, 16) if re.fullmatch("[0-9a-f]+", effective) else 0
    missing = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if missing:
        names = ", ".join(f"CAP_{name.upper()}" for name in missing)
        return Finding(
            "capabilities",
            f"{names} missing",
            "run as root; in a container add them (--cap-add), in a unit see CapabilityBoundingSet=",
            fatal=True,
        )
    if _in_first_namespace(proc, "user") is False:
        return Finding(
            "capabilities",
            "those of a user namespace, which the kernel does not count for BPF",
            "run as root of the machine itself; no rootless container, no --userns",
            fatal=True,
        )
    return Finding("capabilities", "all that are needed")


def _in_first_namespace(proc: Path, kind: str) -> bool | None:
    """Whether we are in the machine's own namespace of this kind; None where /proc does not say."""
    try:
        link = str((proc / "self/ns" / kind).readlink())
    except OSError:
        return None
    return link == f"{kind}:[{_FIRST_NAMESPACE[kind]}]"


def _seccomp(proc: Path, refusal: str) -> Finding:
    filtered = _status(proc, "Seccomp") == _SECCOMP_FILTER
    if refusal and filtered:
        return Finding(
            "seccomp",
            f"a filter is in force, and bpf(2) is refused: {refusal}",
            "in a container: --security-opt seccomp=unconfined, or a profile with bpf and perf_event_open;"
            " in a unit: SystemCallFilter=bpf perf_event_open",
            fatal=True,
        )
    if refusal:
        return Finding(
            "bpf(2)",
            f"refused: {refusal}",
            "boot a kernel with CONFIG_BPF_SYSCALL=y; where that is so, a security module (LSM) refuses: see dmesg",
            fatal=True,
        )
    return Finding("seccomp", "a filter is in force, which lets bpf(2) pass" if filtered else "no filter")


def _process_namespace(proc: Path) -> Finding:
    if _in_first_namespace(proc, "pid") is False:
        return Finding(
            "processes",
            "in a process namespace of their own: no process is named, frames are cut at their linear part",
            "run in the machine's own; in a container: --pid=host",
        )
    return Finding("processes", "all of this machine")


def _lockdown(sys_: Path) -> Finding:
    mode = re.search(r"\[(\w+)\]", _read(sys_ / "kernel/security/lockdown"))
    name = mode[1] if mode else "none"
    if name == "confidentiality":
        return Finding(
            "lockdown",
            f"{name}: BPF may not read kernel memory",
            "boot with lockdown=integrity or without it",
            fatal=True,
        )
    return Finding("lockdown", name)


def _perf(proc: Path) -> Finding:
    # Source: kernel/trace/Kconfig: BPF_EVENTS, which is all tracing by BPF, depends on PERF_EVENTS.
    if not (proc / "sys/kernel/perf_event_paranoid").exists():
        return Finding(
            "perf", "no: BPF has nothing to hook into", "boot a kernel with CONFIG_PERF_EVENTS=y", fatal=True
        )
    return Finding("perf", "yes")


def _kprobes(proc: Path, sys_: Path) -> Finding:
    if not kernel.has_kprobes(sys_ / "bus/event_source/devices/kprobe/type"):
        _, version = _release(proc)
        if version >= _SEES_USES:
            return Finding(
                "kprobes", "no: a socket's user is learned when a send or receive is over, not when it begins"
            )
        return Finding(
            "kprobes",
            "no: a socket's user is learned only by listen(2) and by packets that leave inside a system call",
            "more are named with CONFIG_KPROBE_EVENTS=y, or on Linux 6.3 and newer (docs/attribution.md)",
        )
    if _read(sys_ / "kernel/debug/kprobes/enabled") == "0":
        return Finding(
            "kprobes",
            "switched off: those who only receive, and packets in softirqs, are named less",
            "echo 1 > /sys/kernel/debug/kprobes/enabled",
        )
    return Finding("kprobes", "yes: a socket's user is learned when a send, receive or accept begins")


def _real_time(sys_: Path) -> Finding:
    if kernel.is_realtime(sys_ / "kernel/realtime"):
        return Finding(
            "real-time",
            "yes: softirqs run in tasks, so no process is named",
            "boot a kernel without PREEMPT_RT to have processes named",
        )
    return Finding("real-time", "no")


def _tracefs(proc: Path) -> Finding:
    mounted = re.search(r"^\S+ (\S+) tracefs ", _read(proc / "mounts"), re.MULTILINE)
    if mounted:
        return Finding("tracefs", mounted[1])
    return Finding("tracefs", "not mounted; not needed: kprobes go through perf")


def _statistics(proc: Path) -> Finding:
    if _read(proc / "sys/kernel/bpf_stats_enabled") not in {"", "0"}:
        return Finding(
            "bpf_stats",
            "on: the kernel takes the time of each run, twice per packet",
            "sysctl kernel.bpf_stats_enabled=0, when nobody measures",
        )
    return Finding("bpf_stats", "off")


def _memlock(proc: Path) -> Finding:
    match = re.search(r"^Max locked memory\s+(\S+)", _read(proc / "self/limits"), re.MULTILINE)
    limit = match[1] if match else "unknown"
    # Source: bpf_map_charge_memlock went with Linux 5.11.
    return Finding("memlock", f"{limit}; does not count: since Linux 5.11 BPF's memory is the cgroup's")


def _cgroup(proc: Path, sys_: Path) -> Finding:
    root = sys_ / "fs/cgroup"
    if (root / "cgroup.controllers").exists():
        version, limit = "version 2", "memory.max"
        path = re.search(r"^0::/(.*)$", _read(proc / "self/cgroup"), re.MULTILINE)
    else:
        version, limit = "version 1", "memory.limit_in_bytes"
        path = re.search(r"^\d+:(?:\w+,)*memory(?:,\w+)*:/(.*)$", _read(proc / "self/cgroup"), re.MULTILINE)
        root /= "memory"
    if not _read(proc / "self/cgroup"):
        return Finding("cgroup", "none: the kernel has no control groups")
    most = _read(root / path[1] / limit) if path else ""
    if most.isdecimal() and int(most) < _MEMORY:
        return Finding(
            "cgroup",
            f"{version}, {limit} is {most}; a start takes about {_MEMORY} with the default buffer",
            "raise MemoryMax= of the unit or --memory of the container, or set a smaller buffer.size",
        )
    return Finding("cgroup", version)


def _btf(path: Path) -> Finding:
    try:
        abi.definitions(btf.Btf.load(path), abi.Geometry(4))
    except SkbcapdError as error:
        return Finding("BTF", error.message, error.hint, fatal=True)
    return Finding("BTF", str(path))


def _bcc(python: str) -> Finding:
    """Ask a process of its own, which looks for modules where we do: importing bcc loads a compiler."""
    probe = "import bcc; print(getattr(bcc, '__version__', '?'), bcc.BPF.RAW_TRACEPOINT, bcc.__file__)"
    isolated = ["-I"] if sys.flags.isolated else []
    result = subprocess.run([python, *isolated, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return Finding(
            "bcc",
            f"cannot be used: {reason}",
            "install python3-bpfcc; the package named bcc on PyPI is something else (pip uninstall bcc)",
            fatal=True,
        )
    version, _, path = result.stdout.split(maxsplit=2)
    text = f"{version} ({path.strip()})"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers or (int(numbers[1]), int(numbers[2])) < _OLDEST_BCC:
        oldest = ".".join(str(number) for number in _OLDEST_BCC)
        return Finding("bcc", f"{text}; {oldest} is the oldest that was tried", "install a newer python3-bpfcc")
    return Finding("bcc", text)


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
        capture = Capture(program, PcapngOutput(_Discard()), ("any",), warn=warnings.append)
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
