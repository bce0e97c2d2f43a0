"""The findings of doctor on systems made of files, and its remedies."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import skbcapd
from skbcapd.cli import doctor
from skbcapd.errors import KernelError
from skbcapd.kernel import requirements
from skbcapd.kernel.btf import VMLINUX
from skbcapd.kernel.requirements import Finding
from tests.support import blob, faults
from tests.support.blob import Blob

ROOT_CAPABILITIES = 0x1FFFFFFFFFF
SYS_ADMIN, BPF = 1 << 21, 1 << 39

BTF = "sys/kernel/btf/vmlinux"
LOCKDOWN = "sys/kernel/security/lockdown"
KPROBES = "sys/bus/event_source/devices/kprobe/type"
RELEASE = "proc/sys/kernel/osrelease"
STATUS = "proc/self/status"
BCC = "modules/bcc.py"
PERF = "proc/sys/kernel/perf_event_paranoid"
STATISTICS = "proc/sys/kernel/bpf_stats_enabled"
PROCESSES, USERS = "proc/self/ns/pid", "proc/self/ns/user"
MOUNTS, LIMITS, CGROUP = "proc/mounts", "proc/self/limits", "proc/self/cgroup"
OLDER = VMLINUX.read_bytes().replace(b"btf_trace_sock_send_length", b"btf_trace_sock_sent_length")
CONTROLLERS = "sys/fs/cgroup/cgroup.controllers"

GOOD: dict[str, str | bytes | None] = {
    RELEASE: "6.1.0-28-amd64\n",
    STATUS: f"Name:\tskbcapd\nCapInh:\t0000000000000000\nCapEff:\t{ROOT_CAPABILITIES:016x}\n",
    BTF: VMLINUX.read_bytes(),
    KPROBES: "6\n",
    PERF: "2\n",
    STATISTICS: "0\n",
    PROCESSES: "pid:[4026531836]",
    USERS: "user:[4026531837]",
    MOUNTS: "proc /proc proc rw 0 0\ntracefs /sys/kernel/tracing tracefs rw 0 0\n",
    LIMITS: "Limit                     Soft Limit\nMax locked memory         8388608              8388608   bytes\n",
    CGROUP: "0::/system.slice/skbcapd.service\n",
    CONTROLLERS: "cpu memory\n",
    BCC: "__version__ = '0.35.0'\nclass BPF:\n    RAW_TRACEPOINT = 17\n",
}


ROOT = Path(skbcapd.__file__).parent.parent

# Source: Documentation/userspace-api/seccomp_filter.rst; prctl(2). Four instructions of classic
# BPF: load the number of the call; if it is bpf(2), ENOSYS, otherwise allow.
FILTERED = """
import ctypes, struct, platform
from pathlib import Path
from skbcapd.kernel import syscall
code = b"".join(struct.pack("<HBBI", *instruction) for instruction in (
    (0x20, 0, 0, 0),
    (0x15, 0, 1, syscall._NUMBER[platform.machine()]),
    (0x06, 0, 0, 0x50000 | 38),
    (0x06, 0, 0, 0x7FFF0000),
))
buffer = ctypes.create_string_buffer(code, len(code))
filter = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(buffer)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, filter, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
print(syscall.refusal())
from skbcapd.kernel import requirements
print(requirements._status(Path("/proc"), "Seccomp"))
"""


def machine(
    place: Path, changes: dict[str, str | bytes | None], refusal: str = "", lacking: str = ""
) -> dict[str, Finding]:
    """The findings of doctor on a system with these files, by name; None leaves a file out.
    `refusal`: why bpf(2) is rejected; `lacking`: why compare-and-exchange is.
    """
    for name, content in (GOOD | changes).items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if name.startswith("proc/self/ns/") and content:
            path.symlink_to(str(content))
        elif content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    python = place / "interpreter"
    modules = shlex.quote(str(place / "modules"))
    python.write_text(f'#!/bin/sh\nPYTHONPATH={modules} exec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return {
        found.name: found
        for found in requirements.findings(place / "proc", place / "sys", str(python), lambda: refusal, lambda: lacking)
    }


@pytest.mark.parametrize(
    ("fields", "text", "has_remedy"),
    [
        ({"softirq_disable_cnt": 4}, "in tasks, which count them (PREEMPT_RT)", False),
        (
            {},
            (
                "on the stacks of tasks: skbcapd cannot tell them from system calls, and cannot find any process; it "
                "captures without names"
            ),
            True,
        ),
    ],
)
def test_where_softirqs_run(
    fields: dict[str, int],
    text: str,
    has_remedy: bool,  # noqa: FBT001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Doctor reports where softirqs run, and that no process can be found if they run on the stacks of tasks."""
    monkeypatch.setattr("skbcapd.kernel.abi.platform.machine", lambda: "aarch64")
    found = machine(tmp_path, {BTF: blob.kernel({"task_struct": (8, fields)})})["softirqs"]
    assert (found.text, bool(found.remedy), found.fatal) == (text, has_remedy, False)


TIMES: dict[str, str | bytes | None] = {"proc/self/ns/time": "time:[1]", "proc/self/ns/time_for_children": "time:[1]"}
OFFSETS = "proc/self/timens_offsets"


@pytest.mark.parametrize(
    ("monotonic", "boottime", "text", "has_remedy"),
    [
        ("0 0", "0 0", "those of this machine", False),
        (
            "1000000 0",
            "86400 500000000",
            "of a time namespace: monotonic +1000000 s, boottime +86400.5 s; time stamps are corrected",
            False,
        ),
        ("-7 0", "0 0", "of a time namespace: monotonic -7 s, boottime +0 s; time stamps are corrected", False),
        (
            "0 0",
            "1 1",
            (
                "of a time namespace: monotonic +0 s, boottime +1 s; time stamps are corrected, but the start of "
                "processes is not known exactly: fewer processes are looked up in /proc"
            ),
            True,
        ),
    ],
)
def test_a_time_namespace(monotonic: str, boottime: str, text: str, has_remedy: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """Doctor reports the offsets of a time namespace, and that they are corrected."""
    changes = TIMES | {OFFSETS: f"monotonic {monotonic}\nboottime {boottime}\n"}
    found = machine(tmp_path, changes)["clocks"]
    assert (found.text, bool(found.remedy), found.fatal) == (text, has_remedy, False)


def test_an_unknown_time_namespace(tmp_path: Path) -> None:
    """If /proc has the offsets of another time namespace than ours, a capture is refused with a
    remedy.
    """
    changes = TIMES | {"proc/self/ns/time_for_children": "time:[2]", OFFSETS: "monotonic 1 0\nboottime 1 0\n"}
    found = machine(tmp_path, changes)["clocks"]
    assert found.fatal
    assert "--fork" in found.remedy


def capabilities(effective: int, seccomp: int = 0) -> dict[str, str | bytes | None]:
    """A process with these capabilities; with a seccomp filter if the mode is 2."""
    return {STATUS: f"CapPrm:\tffffffffffffffff\nCapEff:\t{effective:016x}\nSeccomp:\t{seccomp}\n"}


def test_a_good_machine(tmp_path: Path) -> None:
    """On a complete system, no finding is fatal and none needs a remedy."""
    found = machine(tmp_path, {})
    assert {name: one.text for name, one in found.items() if name not in {"kernel", "BTF", "drop reasons"}} == {
        "capabilities": "all that are needed",
        "seccomp": "no filter",
        "BPF atomics": "compare-and-exchange is there",
        "processes": "all of this machine",
        "clocks": "those of this machine",
        "lockdown": "none",
        "perf": "yes",
        "kprobes": "yes: the process of a socket is known when a send, receive or accept begins",
        "softirqs": "on stacks of their own",
        "tracefs": "/sys/kernel/tracing",
        "bpf_stats": "off",
        "memlock": "8388608; not used: since Linux 5.11 memory of BPF belongs to the cgroup",
        "cgroup": "version 2",
        "bcc": f"0.35.0 ({tmp_path / BCC})",
    }
    assert found["kernel"].text.startswith("6.1.0-28-amd64")
    assert re.fullmatch(
        r"\d+ reasons, with(out \(only since Linux 6\.11\))? the socket of the receiver", found["drop reasons"].text
    )
    assert not any(one.fatal or one.remedy for one in found.values())


@pytest.mark.parametrize(
    ("missing", "fatal"),
    [
        ("proc", {"kernel": "mount -t proc proc /proc"}),
        ("sys", {"BTF": "mount -t sysfs sysfs /sys"}),
        ("proc/sys", {"kernel": "mount -t proc proc /proc; in a unit: ProcSubset=all"}),
    ],
)
def test_nothing_is_claimed_without_proc_or_sys(missing: str, fatal: dict[str, str], tmp_path: Path) -> None:
    """Without procfs or sysfs, this is the only fatal finding, with the command to mount it;
    privileges are not mentioned.
    """
    machine(tmp_path, {})
    shutil.rmtree(tmp_path / missing)
    python = str(tmp_path / "interpreter")
    found = list(requirements.findings(tmp_path / "proc", tmp_path / "sys", python, lambda: "", lambda: ""))
    if missing == "proc":
        now = "; ".join(f"{one.name}: {one.remedy}" for one in found if one.fatal)
        faults.compare("doctor without /proc", 1, f"only {now}")
    assert {one.name: one.remedy for one in found if one.fatal} == fatal


@pytest.mark.parametrize(
    ("changes", "name", "text", "remedy"),
    [
        (capabilities(0), "capabilities", "CAP_SYS_ADMIN missing", "run as root"),
        (capabilities(ROOT_CAPABILITIES & ~SYS_ADMIN), "capabilities", "CAP_SYS_ADMIN missing", "run as root"),
        ({USERS: "user:[4026532321]"}, "capabilities", "those of a user namespace", "run as root of the machine"),
        ({STATUS: None}, "capabilities", "CAP_SYS_ADMIN missing", "run as root"),
        ({RELEASE: None}, "kernel", "expected procfs", "mount -t proc"),
        ({LOCKDOWN: "none integrity [confidentiality]"}, "lockdown", "confidentiality", "boot with lockdown=integrity"),
        ({PERF: None}, "perf", "there is nothing to attach BPF programs to", "CONFIG_PERF_EVENTS=y"),
        ({BTF: None}, "BTF", "No such file", "CONFIG_DEBUG_INFO_BTF"),
        ({BTF: b"\x7fELF"}, "BTF", "4 bytes long", "boot another kernel"),
        ({BTF: Blob().build()}, "BTF", "struct page is not in this kernel's BTF", "too old or too new"),
        (
            {BCC: "import bcc.libbcc"},
            "bcc",
            "ModuleNotFoundError: No module named 'bcc.libbcc'",
            "install python3-bpfcc",
        ),
        ({BCC: "'Blockchain commands'"}, "bcc", "module 'bcc' has no attribute 'BPF'", "pip uninstall bcc"),
        ({BCC: "raise SystemExit(1)"}, "bcc", "it ended without a message", "install python3-bpfcc"),
    ],
)
def test_obstacles_are_fatal_findings(
    changes: dict[str, str | bytes | None], name: str, text: str, remedy: str, tmp_path: Path
) -> None:
    """Each obstacle is the only fatal finding, with what was found and a remedy."""
    found = machine(tmp_path, changes)
    if name == "BTF" and changes.get(BTF):
        faults.compare("a broken BTF", 1, f"remedy: {found[name].remedy}")
    assert [one.name for one in found.values() if one.fatal] == [name]
    assert text in found[name].text
    assert remedy in found[name].remedy


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({RELEASE: "5.14.0-427.el9.x86_64"}, "kernel", "5.14.0-427.el9.x86_64"),
        ({RELEASE: "odd"}, "kernel", "odd"),
        ({RELEASE: "10.0-rc1"}, "kernel", "10.0-rc1"),
        (capabilities(SYS_ADMIN), "capabilities", "all that are needed"),
        (capabilities(ROOT_CAPABILITIES, seccomp=2), "seccomp", "a filter is active, and allows bpf(2)"),
        ({PROCESSES: None, USERS: None}, "processes", "all of this machine"),
        ({LOCKDOWN: "none [integrity] confidentiality"}, "lockdown", "integrity"),
        (
            {KPROBES: None},
            "kprobes",
            "no: the process of a socket is known when a send or receive is over",
        ),
        ({"sys/kernel/debug/kprobes/enabled": "1\n"}, "kprobes", "yes"),
        ({STATISTICS: None}, "bpf_stats", "off"),
        ({LIMITS: None}, "memlock", "unknown"),
        ({CONTROLLERS: None}, "cgroup", "version 1"),
        ({CGROUP: None}, "cgroup", "none"),
        ({"sys/fs/cgroup/system.slice/skbcapd.service/memory.max": "max\n"}, "cgroup", "version 2"),
        ({"sys/fs/cgroup/system.slice/skbcapd.service/memory.max": "1073741824\n"}, "cgroup", "version 2"),
    ],
)
def test_findings_without_a_remedy(
    changes: dict[str, str | bytes | None], name: str, text: str, tmp_path: Path
) -> None:
    """Findings that change nothing, or cannot be changed, have no remedy."""
    found = machine(tmp_path, changes)
    assert found[name].text.startswith(text)
    assert not any(one.fatal or one.remedy for one in found.values())


def test_no_tracefs(tmp_path: Path) -> None:
    """A tracefs that is not mounted is reported without a remedy."""
    found = machine(tmp_path, {MOUNTS: "proc /proc proc rw 0 0\n"})["tracefs"]
    assert (found.text, found.remedy) == ("not mounted; not needed: kprobes go through perf", "")


@pytest.mark.parametrize(
    ("changes", "name", "text", "remedy"),
    [
        ({PROCESSES: "pid:[4026532444]"}, "processes", "names come from the kernel", "--pid=host"),
        (
            {KPROBES: None, BTF: OLDER},
            "kprobes",
            "only by listen(2) and by packets that are sent in",
            "on Linux 6.3 and newer",
        ),
        ({"sys/kernel/debug/kprobes/enabled": "0\n"}, "kprobes", "disabled", "echo 1 >"),
        ({STATISTICS: "1\n"}, "bpf_stats", "twice per packet", "sysctl kernel.bpf_stats_enabled=0"),
        (
            {"sys/fs/cgroup/system.slice/skbcapd.service/memory.max": "134217728\n"},
            "cgroup",
            "version 2, memory.max is 128 MiB (",
            "MemoryMax=",
        ),
        (
            {
                CONTROLLERS: None,
                CGROUP: "4:cpu,memory:/docker/1\n0::/\n",
                "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "134217728\n",
            },
            "cgroup",
            "version 1, memory.limit_in_bytes is 128 MiB (",
            "--memory",
        ),
        (
            {BCC: "__version__ = '0.18.0'\nclass BPF:\n    RAW_TRACEPOINT = 17\n"},
            "bcc",
            "; 0.26 is the oldest version that was tested",
            "install a newer python3-bpfcc",
        ),
        (
            {BCC: "class BPF:\n    RAW_TRACEPOINT = 17\n"},
            "bcc",
            "; 0.26 is the oldest version that was tested",
            "install a newer python3-bpfcc",
        ),
    ],
)
def test_limitations_have_a_remedy(
    changes: dict[str, str | bytes | None], name: str, text: str, remedy: str, tmp_path: Path
) -> None:
    """Each limitation is the only finding with a remedy, and is not fatal."""
    found = machine(tmp_path, changes)
    assert [(one.name, one.fatal) for one in found.values() if one.remedy] == [(name, False)]
    assert text in found[name].text
    assert remedy in found[name].remedy


@pytest.mark.parametrize(
    ("seccomp", "name", "remedy"),
    [(2, "seccomp", "--security-opt seccomp=unconfined"), (0, "bpf(2)", "CONFIG_BPF_SYSCALL=y")],
)
def test_a_refused_call(seccomp: int, name: str, remedy: str, tmp_path: Path) -> None:
    """If bpf(2) is rejected in spite of the capabilities, the seccomp filter is the reason, if
    there is one.
    """
    found = machine(tmp_path, capabilities(ROOT_CAPABILITIES, seccomp), "Function not implemented")
    assert [one.name for one in found.values() if one.fatal] == [name]
    assert "refused: Function not implemented" in found[name].text
    assert remedy in found[name].remedy


def test_a_real_seccomp_filter() -> None:
    """In a process whose filter answers bpf(2) with ENOSYS, as in some containers, doctor reports
    filter and error.
    """
    done = subprocess.run([sys.executable, "-c", FILTERED], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "Function not implemented\n2\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({RELEASE: "5.10.0"}, "BPF atomics: Linux 5.10.0 rejects compare-and-exchange in BPF programs"),
        (capabilities(BPF), "capabilities: CAP_SYS_ADMIN missing"),
    ],
)
def test_a_capture_that_cannot_work_is_refused(
    changes: dict[str, str | bytes | None], message: str, tmp_path: Path
) -> None:
    """A kernel without a needed feature, or missing privileges, end the capture with the remedy,
    before a program is compiled.
    """
    machine(tmp_path, changes)
    with pytest.raises(KernelError, match=message) as raised:
        requirements.refuse_hopeless(tmp_path / "proc", lambda: "Invalid argument")
    assert raised.value.hint
    machine(tmp_path, {RELEASE: "5.14.0-427.el9.x86_64"})
    requirements.refuse_hopeless(tmp_path / "proc", lambda: "")


def test_a_kernel_without_a_feature_is_too_old(tmp_path: Path) -> None:
    """The feature decides, not the number: it is the only fatal finding."""
    found = machine(tmp_path, {}, lacking="Invalid argument")
    assert [one.name for one in found.values() if one.fatal] == ["BPF atomics"]


@pytest.mark.parametrize("fatal", [False, True])
def test_the_report(*, fatal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The report has a line per finding and the remedy below it; the exit code says whether a
    capture can work.
    """
    found = [Finding("kernel", "6.1"), Finding("lockdown", "confidentiality", "boot without it", fatal=fatal)]
    assert doctor.report(found) == int(fatal)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ok", "kernel", "6.1"],
        ["FAIL" if fatal else "note", "lockdown", "confidentiality"],
        ["->", "boot", "without", "it"],
    ]


def test_this_machine_has_a_bcc() -> None:
    """The interpreter of the tests finds the bcc of the distribution."""
    found = {one.name: one for one in requirements.findings()}
    assert not found["bcc"].fatal, found["bcc"]
    assert found["kernel"].text.startswith(os.uname().release)
