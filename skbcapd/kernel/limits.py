"""Limits of the process and its cgroup, compared with what a capture needs.

In: /proc, /sys, limits of the process, sizes from the settings. Out: the effective limit, what a
capture needs, and an error with both numbers. Without this check the kernel would kill a capture in
a small cgroup without a message.

The rule: only what cannot work is an error; what may be too little is a warning.

Source: "Memory" in Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; since Linux
5.11 maps of BPF are charged to the cgroup of the process that creates them.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skbcapd.errors import KernelError
from skbcapd.kernel.abi import SEGMENT_STRIDE, Geometry

MIB = 1 << 20
REMEDY = "increase MemoryMax= of the unit or --memory of the container, or set a smaller buffer.size"
# Measured on Linux 6.18: Python and the files it reads 45 MiB, maps of the program 75 MiB, and 0.5
# MiB for each processor.
_PYTHON, _MAPS, _PER_PROCESSOR = 45 * MIB, 75 * MIB, MIB // 2
_DESCRIPTORS = 64  # 40 while it captures; each file that waits for fsync needs some more
_SURE = 0.95  # share of the needed memory without which a capture cannot run


@dataclass(frozen=True, slots=True)
class Limit:
    """The smallest memory limit of our cgroup and its ancestors.

    Args:
        version: version of cgroups, 1 or 2; 0: there are none.
        size: bytes; None: no limit.
        file: file that contains it.
    """

    version: int
    size: int | None = None
    file: Path = Path()


def read_limit(proc: Path = Path("/proc"), sys_: Path = Path("/sys")) -> Limit:
    """The memory limit of this process.

    Args:
        proc: directory of procfs.
        sys_: directory of sysfs.
    """
    try:
        groups = (proc / "self/cgroup").read_text(errors="replace")
    except OSError:
        return Limit(0)
    root = sys_ / "fs/cgroup"
    if (root / "cgroup.controllers").exists():
        version, name = 2, "memory.max"
        path = re.search(r"^0::/(.*)$", groups, re.MULTILINE)
    else:
        version, name = 1, "memory.limit_in_bytes"
        path = re.search(r"^\d+:(?:\w+,)*memory(?:,\w+)*:/(.*)$", groups, re.MULTILINE)
        root /= "memory"
    found = [(size, file) for file in _files(root, path[1] if path else "", name) if (size := _size(file)) is not None]
    return Limit(version, *min(found)) if found else Limit(version)


def needed(geometry: Geometry, ring: int = 0, proc: Path = Path("/proc")) -> int:
    """Memory that a capture needs, in bytes, without the page cache (an estimate).

    Args:
        geometry: size of the shared memory.
        ring: size of the ring buffer in bytes (files.mode: ring).
        proc: directory of procfs.
    """
    try:
        is_charged = "cgroup.memory=nokmem" not in (proc / "cmdline").read_text(errors="replace")
    except OSError:
        is_charged = True
    maps = geometry.segment_count * SEGMENT_STRIDE + _MAPS + _PER_PROCESSOR * (os.cpu_count() or 1)
    return _PYTHON + ring + (maps if is_charged else 0)


def check_memory(geometry: Geometry, ring: int = 0, proc: Path = Path("/proc"), sys_: Path = Path("/sys")) -> str:
    """Check whether the memory limit is large enough for a capture.

    Args:
        geometry: size of the shared memory.
        ring: see needed.
        proc: directory of procfs.
        sys_: directory of sysfs.

    Returns:
        A warning if memory is scarce, otherwise an empty text.

    Raises:
        KernelError: the limit is too small for a capture.
    """
    limit, wanted = read_limit(proc, sys_), needed(geometry, ring, proc)
    if limit.size is None or limit.size >= wanted * 1.1:
        return ""
    what = f"files.ring of {ring // MIB} MiB and buffer.size" if ring else "buffer.size"
    text = (
        f"the memory limit is {limit.size // MIB} MiB ({limit.file}); "
        f"a capture with {what} of {geometry.segment_count * SEGMENT_STRIDE // MIB} MiB needs about {wanted // MIB} MiB"
    )
    if limit.size < wanted * _SURE:
        raise KernelError(text, REMEDY)
    return f"{text}; the kernel may kill it"


def check_descriptors() -> None:
    """Raise the limit of open files to the hard limit.

    Raises:
        KernelError: the hard limit is too small for a capture.

    Source: setrlimit(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        raise KernelError(
            f"the process may open {hard} files; a capture needs {_DESCRIPTORS}",
            "increase LimitNOFILE= of the unit, or the hard limit by `ulimit -n`",
        )


def _files(root: Path, path: str, name: str) -> Iterator[Path]:
    """The files with the memory limits of our cgroup and its ancestors, as far as they are visible."""
    parts = [part for part in path.split("/") if part not in {"", ".", ".."}]
    for count in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:count], name)


def _size(file: Path) -> int | None:
    """A limit; None if there is none: version 1 has a number of pages near 2^63 then."""
    try:
        text = file.read_text(errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() and int(text) < 1 << 62 else None
