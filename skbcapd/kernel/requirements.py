"""What this system offers for a capture, and what is missing.

In: /proc, /sys, bcc. Out: a finding per requirement, and a remedy for each that makes capture
impossible.

The rule: a remedy is something the reader can do.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from skbcapd import clocks
from skbcapd.errors import KernelError, SkbcapdError
from skbcapd.kernel import abi, btf, drops, limits, syscall
from skbcapd.kernel import program as kernel

# Source: capabilities(7). CAP_SYS_ADMIN includes CAP_PERFMON and CAP_BPF, which exist since Linux
# 5.8 but do not show frame numbers in /proc/PID/pagemap.
_CAPABILITIES = {"sys_admin": 21}
# Inode numbers of the initial namespaces. Source: include/linux/proc_ns.h (PROC_PID_INIT_INO,
# PROC_USER_INIT_INO).
_FIRST_NAMESPACE = {"pid": 0xEFFFFFFC, "user": 0xEFFFFFFD}
_SECCOMP_FILTER = "2"  # SECCOMP_MODE_FILTER
_OLDEST_BCC = (0, 26)  # the oldest version that was tested
_DEFAULT_BUFFER = 64 << 20  # buffer.size
_COMPILER = 110 << 20  # for the compiler, in addition to the capture, if no program is cached


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A fatal finding has a remedy; other findings have one if something
    can be improved.
    """

    name: str
    text: str
    remedy: str = ""
    fatal: bool = False


def findings(
    proc: Path = Path("/proc"),
    sys_: Path = Path("/sys"),
    python: str = sys.executable,
    refusal: Callable[[], str] = syscall.refusal,
    lacking: Callable[[], str] = syscall.lacking_atomics,
) -> Iterator[Finding]:
    """All findings that need no loaded program.

    Args:
        proc: directory of procfs.
        sys_: directory of sysfs.
        python: the interpreter that must find bcc.
        refusal: why the kernel rejects bpf(2) calls; empty if it does not.
        lacking: why it rejects compare-and-exchange in programs; empty if it does not.
    """
    version = _kernel_version(proc)
    yield version
    if not _release(proc):  # without /proc most other findings would be wrong
        yield _lockdown(sys_)
        yield _btf(sys_)
        yield _bcc(python)
        return
    capabilities = _capabilities(proc)
    yield capabilities
    refused = "" if capabilities.fatal else refusal()
    yield _seccomp(proc, refused)
    if not capabilities.fatal and not refused:
        yield _atomics(proc, lacking())
    yield _process_namespace(proc)
    yield _time_namespace(proc)
    yield _lockdown(sys_)
    yield _btf(sys_)
    yield drop_reasons(sys_)
    yield _perf(proc)
    yield _kprobes(sys_)
    yield _softirqs(sys_)
    yield _tracefs(proc)
    yield _statistics(proc)
    yield _memlock(proc)
    yield _cgroup(proc, sys_)
    yield _bcc(python)


def refuse_hopeless(proc: Path = Path("/proc"), lacking: Callable[[], str] = syscall.lacking_atomics) -> None:
    """Fail early, with a remedy, if a capture cannot work.

    Args:
        proc: directory of procfs.
        lacking: as for `findings`.

    Raises:
        KernelError: the first fatal finding.
    """
    for finding in (_kernel_version(proc), _capabilities(proc), _time_namespace(proc)):
        if finding.fatal:
            raise KernelError(f"{finding.name}: {finding.text}", finding.remedy)
    if not syscall.refusal() and (finding := _atomics(proc, lacking())).fatal:
        raise KernelError(f"{finding.name}: {finding.text}", finding.remedy)


def is_permitted(proc: Path = Path("/proc")) -> bool:
    """Whether this process has the capabilities of a capture."""
    return not _capabilities(proc).fatal


def _read(path: Path) -> str:
    """The content of a file of /proc or /sys; empty if it is missing or cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _bytes(path: Path) -> bytes:
    """The same as bytes."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _release(proc: Path) -> str:
    """The release of the kernel."""
    return _read(proc / "sys/kernel/osrelease")


def _status(proc: Path, key: str) -> str:
    """One line of /proc/self/status."""
    match = re.search(rf"^{key}:\s*(.*)$", _read(proc / "self/status"), re.MULTILINE)
    return match[1] if match else ""


def _kernel_version(proc: Path) -> Finding:
    release = _release(proc)
    if not release:
        has_processes = (proc / "self/status").exists()
        found = "shows processes only" if has_processes else "is empty"
        remedy = "mount -t proc proc /proc" + ("; in a unit: ProcSubset=all" if has_processes else "")
        return Finding("kernel", f"{proc} {found}; expected procfs", remedy, fatal=True)
    return Finding("kernel", f"{release} ({platform.machine()})")


def _atomics(proc: Path, reason: str) -> Finding:
    """What decides whether a kernel is too old. Its number does not: distributions add features to old kernels."""
    if reason:
        return Finding(
            "BPF atomics",
            f"Linux {_release(proc)} rejects compare-and-exchange in BPF programs ({reason}); it exists since 5.12",
            "boot a newer kernel: 6.1 is the oldest one that was tested",
            fatal=True,
        )
    return Finding("BPF atomics", "compare-and-exchange is there")


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
            "those of a user namespace, which are not sufficient for BPF",
            "run as root of the machine itself; no rootless container, no --userns",
            fatal=True,
        )
    return Finding("capabilities", "all that are needed")


def _in_first_namespace(proc: Path, kind: str) -> bool | None:
    """Whether we are in the initial namespace of this kind; None if /proc does not say."""
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
            f"a filter is active, and bpf(2) is refused: {refusal}",
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
    return Finding("seccomp", "a filter is active, and allows bpf(2)" if filtered else "no filter")


def _process_namespace(proc: Path) -> Finding:
    if _in_first_namespace(proc, "pid") is False:
        return Finding(
            "processes",
            "in a PID namespace: names come from the kernel; users, command lines and older sockets are not known",
            "run it in the PID namespace of the host; in a container: --pid=host",
        )
    return Finding("processes", "all of this machine")


def _time_namespace(proc: Path) -> Finding:
    try:
        offsets = clocks.read_offsets(proc)
    except KernelError as error:
        return Finding("clocks", error.message, error.hint, fatal=True)
    if offsets == clocks.Offsets():
        return Finding("clocks", "those of this machine")
    seconds = [offset / 1e9 for offset in (offsets.monotonic_ns, offsets.boottime_ns)]
    text = (
        f"of a time namespace: monotonic {seconds[0]:+.9g} s, boottime {seconds[1]:+.9g} s; time stamps are corrected"
    )
    if offsets.boottime_ns % clocks.NS_PER_TICK:
        return Finding(
            "clocks",
            f"{text}, but the start of processes is not known exactly: fewer processes are looked up in /proc",
            "give boottime an offset in whole seconds, or run in the machine's own time namespace",
        )
    return Finding("clocks", text)


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
            "perf",
            "no: there is nothing to attach BPF programs to",
            "boot a kernel with CONFIG_PERF_EVENTS=y",
            fatal=True,
        )
    return Finding("perf", "yes")


def _kprobes(sys_: Path) -> Finding:
    if not kernel.has_kprobes(sys_ / "bus/event_source/devices/kprobe/type"):
        if b"\0btf_trace_sock_send_length\0" in _bytes(sys_ / "kernel/btf/vmlinux"):  # since Linux 6.3
            return Finding(
                "kprobes", "no: the process of a socket is known when a send or receive is over, not when it begins"
            )
        return Finding(
            "kprobes",
            "no: the process of a socket is known only by listen(2) and by packets that are sent in a system call",
            "skbcapd finds more processes with CONFIG_KPROBE_EVENTS=y, or on Linux 6.3 and newer (docs/attribution.md)",
        )
    if _read(sys_ / "kernel/debug/kprobes/enabled") == "0":
        return Finding(
            "kprobes",
            "disabled: skbcapd finds fewer processes, for received packets and for packets in softirqs",
            "echo 1 > /sys/kernel/debug/kprobes/enabled",
        )
    return Finding("kprobes", "yes: the process of a socket is known when a send, receive or accept begins")


def _softirqs(sys_: Path) -> Finding:
    try:
        found = abi.softirqs(btf.Btf.load(sys_ / "kernel/btf/vmlinux"))
    except SkbcapdError as error:
        return Finding("softirqs", f"unknown: {error.message}")
    if found is abi.Softirqs.ON_TASK_STACK:
        return Finding(
            "softirqs",
            f"{found.value}: skbcapd cannot tell them from system calls, and cannot find any process; it "
            "captures without names",
            "boot a newer kernel: on arm64, softirqs have stacks of their own since Linux 6.1",
        )
    return Finding("softirqs", found.value)


def _tracefs(proc: Path) -> Finding:
    mounted = re.search(r"^\S+ (\S+) tracefs ", _read(proc / "mounts"), re.MULTILINE)
    if mounted:
        return Finding("tracefs", mounted[1])
    return Finding("tracefs", "not mounted; not needed: kprobes go through perf")


def _statistics(proc: Path) -> Finding:
    if _read(proc / "sys/kernel/bpf_stats_enabled") not in {"", "0"}:
        return Finding(
            "bpf_stats",
            "on: the kernel measures the time of each run, twice per packet",
            "sysctl kernel.bpf_stats_enabled=0, if you do not need the statistics",
        )
    return Finding("bpf_stats", "off")


def _memlock(proc: Path) -> Finding:
    match = re.search(r"^Max locked memory\s+(\S+)", _read(proc / "self/limits"), re.MULTILINE)
    limit = match[1] if match else "unknown"
    # Linux 5.11 removed bpf_map_charge_memlock.
    return Finding("memlock", f"{limit}; not used: since Linux 5.11 memory of BPF belongs to the cgroup")


def _cgroup(proc: Path, sys_: Path) -> Finding:
    limit = limits.read_limit(proc, sys_)
    if not limit.version:
        return Finding("cgroup", "none: the kernel has no control groups")
    wanted = limits.needed(abi.Geometry.for_buffer(_DEFAULT_BUFFER), proc=proc) + _COMPILER
    if limit.size is not None and limit.size < wanted:
        return Finding(
            "cgroup",
            f"version {limit.version}, {limit.file.name} is {limit.size // limits.MIB} MiB ({limit.file}); "
            f"a start with the default buffer takes up to {wanted // limits.MIB} MiB",
            limits.REMEDY,
        )
    return Finding("cgroup", f"version {limit.version}")


def _btf(sys_: Path) -> Finding:
    path = sys_ / "kernel/btf/vmlinux"
    if not (sys_ / "kernel").is_dir():
        return Finding("BTF", f"{sys_} is no sysfs; expected one", "mount -t sysfs sysfs /sys", fatal=True)
    try:
        abi.definitions(btf.Btf.load(path), abi.Geometry(4))
    except SkbcapdError as error:
        return Finding("BTF", error.message, error.hint, fatal=True)
    return Finding("BTF", str(path))


def drop_reasons(sys_: Path) -> Finding:
    """What `drops: count` can find out, by the types in a sysfs."""
    try:
        types = btf.Btf.load(sys_ / "kernel/btf/vmlinux")
        values, reasons = drops.definitions(types), drops.Reasons(types)
    except SkbcapdError as error:
        return Finding("drop reasons", f"cannot be used: {error.message}")
    if "DROP_REASON" not in values:
        return Finding(
            "drop reasons", "none: all drops are counted as unknown (since Linux 5.17 the kernel has reasons)"
        )
    sockets = "with" if "DROP_RECEIVER" in values else "without (only since Linux 6.11)"
    return Finding("drop reasons", f"{len(reasons)} reasons, {sockets} the socket of the receiver")


def _bcc(python: str) -> Finding:
    """Start a process that imports bcc, because the import loads a compiler."""
    probe = "import bcc; print(getattr(bcc, '__version__', '?'), bcc.BPF.RAW_TRACEPOINT, bcc.__file__)"
    isolated = ["-I"] if sys.flags.isolated else []
    result = subprocess.run([python, *isolated, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["it ended without a message"])[-1]
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
        return Finding(
            "bcc", f"{text}; {oldest} is the oldest version that was tested", "install a newer python3-bpfcc"
        )
    return Finding("bcc", text)
