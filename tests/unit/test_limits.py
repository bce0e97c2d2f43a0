"""Limits of cgroups and of the process: which one applies, and when a capture is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from skbcapd.errors import KernelError
from skbcapd.kernel import limits
from skbcapd.kernel.abi import SEGMENT_STRIDE, Geometry
from tests.support import faults

MIB = 1 << 20
NONE = (1 << 63) - 4096  # no limit, in version 1


def system(place: Path, groups: str, files: dict[str, str], command_line: str = "") -> tuple[Path, Path]:
    """A procfs and a sysfs with these control groups and limits."""
    proc, sys_ = place / "proc", place / "sys"
    texts = {proc / "self/cgroup": groups, proc / "cmdline": command_line}
    for path, text in (texts | {sys_ / "fs/cgroup" / name: text for name, text in files.items()}).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, sys_


@pytest.mark.parametrize(
    ("groups", "files", "size", "file"),
    [
        ("0::/a/b\n", {"cgroup.controllers": "", "a/b/memory.max": "max\n"}, None, ""),
        ("0::/a/b\n", {"cgroup.controllers": "", "a/b/memory.max": "7340032\n"}, 7 * MIB, "a/b/memory.max"),
        (
            "0::/a/b\n",
            {"cgroup.controllers": "", "a/b/memory.max": "7340032\n", "a/memory.max": "3145728\n"},
            3 * MIB,
            "a/memory.max",
        ),
        ("0::/\n", {"cgroup.controllers": "", "memory.max": "7340032\n"}, 7 * MIB, "memory.max"),
        ("0::/../../x\n", {"cgroup.controllers": "", "memory.max": "7340032\n"}, 7 * MIB, "memory.max"),
        (
            "4:cpu,memory:/docker/1\n0::/\n",
            {"memory/docker/1/memory.limit_in_bytes": "7340032\n", "memory/memory.limit_in_bytes": f"{NONE}\n"},
            7 * MIB,
            "memory/docker/1/memory.limit_in_bytes",
        ),
        ("0::/a\n", {"cgroup.controllers": "", "a/memory.max": "\0odd"}, None, ""),
    ],
)
def test_the_smallest_limit_applies(
    groups: str, files: dict[str, str], size: int | None, file: str, tmp_path: Path
) -> None:
    """The smallest limit of our cgroup and its ancestors applies, in both versions; what is not a
    number is no limit.
    """
    proc, sys_ = system(tmp_path, groups, files)
    found = limits.read_limit(proc, sys_)
    assert found.size == size
    assert found.file == (sys_ / "fs/cgroup" / file if file else Path())


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    """Without /proc, or on a kernel without control groups, there is no limit."""
    assert limits.read_limit(tmp_path, tmp_path) == limits.Limit(0)
    assert not limits.check_memory(Geometry(4), proc=tmp_path, sys_=tmp_path)


def test_the_memory_of_a_capture(tmp_path: Path) -> None:
    """The buffer counts completely, and so does a ring buffer; maps that the kernel does not charge
    do not.
    """
    proc, _ = system(tmp_path, "0::/\n", {})
    least = limits.needed(Geometry(4), proc=proc)
    assert limits.needed(Geometry(32), proc=proc) - least == 28 * SEGMENT_STRIDE
    assert limits.needed(Geometry(4), 64 * MIB, proc) - least == 64 * MIB
    system(tmp_path, "0::/\n", {}, "root=/dev/vda cgroup.memory=nokmem,nosocket\n")
    assert limits.needed(Geometry(512), proc=proc) == limits.needed(Geometry(4), proc=proc) < least


@pytest.mark.parametrize(("part", "outcome"), [(0.5, "refused"), (0.94, "refused"), (1.0, "said"), (1.2, "")])
def test_limits_that_are_too_small(part: float, outcome: str, tmp_path: Path) -> None:
    """A limit that is too small is an error, a tight one a warning, both with the numbers."""
    geometry = Geometry(32)
    wanted = limits.needed(geometry, proc=tmp_path)
    proc, sys_ = system(tmp_path, "0::/a\n", {"cgroup.controllers": "", "a/memory.max": f"{int(wanted * part)}\n"})
    numbers = (f"is {int(wanted * part) // MIB} MiB", f"needs about {wanted // MIB} MiB")
    if outcome == "refused":
        with pytest.raises(KernelError, match="the memory limit") as error:
            limits.check_memory(geometry, proc=proc, sys_=sys_)
        assert all(number in error.value.message for number in numbers)
        assert "MemoryMax=" in error.value.hint
        faults.compare("a memory limit too small", 1, f"refused: {error.value.message.partition(' (')[0]}")
    else:
        said = limits.check_memory(geometry, proc=proc, sys_=sys_)
        assert bool(said) == bool(outcome)
        assert not said or all(number in said for number in numbers)


@pytest.mark.parametrize(("limits_", "outcome"), [((7, 7), "7 files; a capture needs 64"), ((20, 997), "997 997")])
def test_descriptors(limits_: tuple[int, int], outcome: str) -> None:
    """The soft limit is raised to the hard limit; a hard limit that is too small is an error with
    the number.
    """
    program = (
        "import resource; from skbcapd.kernel import limits\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {limits_})\n"
        "try: limits.check_descriptors()\n"
        "except limits.KernelError as error: print(error.message, error.hint)\n"
        "else: print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert outcome in done.stdout
