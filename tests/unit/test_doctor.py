"""What doctor finds on machines that are files in a directory, and what it advises."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from skbcapd import doctor
from skbcapd.btf import VMLINUX
from skbcapd.doctor import Finding
from skbcapd.errors import KernelError
from tests.unit.blob import Blob

ROOT_CAPABILITIES = 0x1FFFFFFFFFF
NET_ADMIN, SYS_ADMIN, PERFMON, BPF = 1 << 12, 1 << 21, 1 << 38, 1 << 39

BTF = "sys/kernel/btf/vmlinux"
LOCKDOWN = "sys/kernel/security/lockdown"
KPROBES = "sys/bus/event_source/devices/kprobe/type"
RELEASE = "proc/sys/kernel/osrelease"
STATUS = "proc/self/status"
BCC = "modules/bcc.py"

GOOD: dict[str, str | bytes | None] = {
    RELEASE: "6.1.0-28-amd64\n",
    STATUS: f"Name:\tskbcapd\nCapInh:\t0000000000000000\nCapEff:\t{ROOT_CAPABILITIES:016x}\n",
    BTF: VMLINUX.read_bytes(),
    KPROBES: "6\n",
    BCC: "__version__ = '0.35.0'\nclass BPF:\n    RAW_TRACEPOINT = 17\n",
}


def machine(place: Path, changes: dict[str, str | bytes | None]) -> dict[str, Finding]:
    """What doctor finds on a machine of these files, by name; None leaves a file out."""
    for name, content in (GOOD | changes).items():
        if content is not None:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    python = place / "interpreter"
    path = shlex.quote(str(place / "modules"))
    python.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    return {found.name: found for found in doctor.findings(place / "proc", place / "sys", str(python))}


def capabilities(effective: int) -> dict[str, str | bytes | None]:
    """A process with these capabilities."""
    return {STATUS: f"CapPrm:\tffffffffffffffff\nCapEff:\t{effective:016x}\n"}


def test_a_good_machine(tmp_path: Path) -> None:
    """Where all is there, nothing is fatal and nothing needs a remedy."""
    found = machine(tmp_path, {})
    assert {name: one.text for name, one in found.items() if name not in {"kernel", "BTF"}} == {
        "capabilities": "all that are needed",
        "lockdown": "none",
        "kprobes": "yes",
        "real-time": "no",
        "bcc": f"0.35.0 ({tmp_path / BCC})",
    }
    assert found["kernel"].text.startswith("6.1.0-28-amd64")
    assert not any(one.fatal or one.remedy for one in found.values())


@pytest.mark.parametrize(
    ("changes", "name", "text", "remedy"),
    [
        ({RELEASE: "5.14.21-generic"}, "kernel", "5.14.21-generic; expected 5.15 or newer", "boot a newer kernel"),
        ({RELEASE: "4.19.0"}, "kernel", "4.19.0; expected 5.15", "boot a newer kernel"),
        ({RELEASE: "odd"}, "kernel", "odd; expected 5.15", "boot a newer kernel"),
        (capabilities(0), "capabilities", "CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF missing", "run as root"),
        (capabilities(ROOT_CAPABILITIES & ~BPF), "capabilities", "CAP_BPF missing", "run as root"),
        (capabilities(NET_ADMIN | SYS_ADMIN | BPF), "capabilities", "CAP_PERFMON missing", "run as root"),
        ({LOCKDOWN: "none integrity [confidentiality]"}, "lockdown", "confidentiality", "boot with lockdown=integrity"),
        ({BTF: None}, "BTF", "No such file", "CONFIG_DEBUG_INFO_BTF"),
        ({BTF: b"\x7fELF"}, "BTF", "4 bytes long", ""),
        ({BTF: Blob().build()}, "BTF", "struct page is not in this kernel's BTF", "too old or too new"),
        (
            {BCC: "import bcc.libbcc"},
            "bcc",
            "ModuleNotFoundError: No module named 'bcc.libbcc'",
            "install python3-bpfcc",
        ),
        ({BCC: "'Blockchain commands'"}, "bcc", "module 'bcc' has no attribute 'BPF'", "pip uninstall bcc"),
        ({BCC: "raise SystemExit(1)"}, "bcc", "it ended without a word", "install python3-bpfcc"),
    ],
)
def test_what_stands_in_the_way(
    changes: dict[str, str | bytes | None], name: str, text: str, remedy: str, tmp_path: Path
) -> None:
    """Whatever makes a capture impossible is the one fatal finding, with what was found and what to do about it."""
    found = machine(tmp_path, changes)
    assert [one.name for one in found.values() if one.fatal] == [name]
    assert text in found[name].text
    assert remedy in found[name].remedy


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({RELEASE: "5.15.0"}, "kernel", "5.15.0"),
        ({RELEASE: "10.0-rc1"}, "kernel", "10.0-rc1"),
        (capabilities(NET_ADMIN | SYS_ADMIN | PERFMON | BPF), "capabilities", "all that are needed"),
        ({LOCKDOWN: "none [integrity] confidentiality"}, "lockdown", "integrity"),
        ({KPROBES: None}, "kprobes", "no"),
        ({"sys/kernel/realtime": "1"}, "real-time", "yes"),
    ],
)
def test_what_does_not(changes: dict[str, str | bytes | None], name: str, text: str, tmp_path: Path) -> None:
    """What only changes how frames are captured is said, and is not fatal."""
    found = machine(tmp_path, changes)
    assert found[name].text.startswith(text)
    assert not any(one.fatal for one in found.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({RELEASE: "5.10.0"}, "kernel: 5.10.0; expected"), (capabilities(BPF), "capabilities: CAP_NET_ADMIN, CAP_SYS")],
)
def test_a_hopeless_capture_is_refused(changes: dict[str, str | bytes | None], message: str, tmp_path: Path) -> None:
    """Before a program is compiled, an old kernel or missing rights end the capture with the remedy."""
    machine(tmp_path, changes)
    with pytest.raises(KernelError, match=message) as raised:
        doctor.refuse_hopeless(tmp_path / "proc")
    assert raised.value.hint
    machine(tmp_path, {})
    doctor.refuse_hopeless(tmp_path / "proc")


@pytest.mark.parametrize("fatal", [False, True])
def test_the_report(*, fatal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The report is a line per finding, the remedy below it, and the exit code says whether a capture can work."""
    found = [Finding("kernel", "6.1"), Finding("lockdown", "confidentiality", "boot without it", fatal=fatal)]
    assert doctor.report(found) == int(fatal)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ok", "kernel", "6.1"],
        ["FAIL" if fatal else "ok", "lockdown", "confidentiality"],
        ["->", "boot", "without", "it"],
    ]


def test_this_machine_has_a_bcc() -> None:
    """The interpreter that runs the tests finds the distribution's bcc, by itself."""
    found = {one.name: one for one in doctor.findings()}
    assert not found["bcc"].fatal, found["bcc"]
    assert found["kernel"].text.startswith(os.uname().release)
