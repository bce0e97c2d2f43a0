"""Offsets of the kernel clocks in a time namespace: runc, CRIU and unshare(1) set them.

In: /proc/self/timens_offsets. Out: the difference between our clocks and those of the kernel
program and systemd.

The rule not to break: code that compares a time of CLOCK_MONOTONIC or CLOCK_BOOTTIME, or the start
of a process in /proc, with a time from the kernel must subtract the offset first. CLOCK_REALTIME
has no offset.

Source: time_namespaces(7); timens_add_boottime_ns in do_task_stat, fs/proc/array.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from skbcapd.errors import KernelError

_LIBC = ctypes.CDLL(None, use_errno=True)
_CANCEL_ON_SET = 1 << 0 | 1 << 1  # TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
_NEVER = struct.pack("@4l", 0, 0, 1 << 33, 0)  # struct itimerspec: in 2242; no clock can be set to that (timekeeping.c)

NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Offsets:
    """What a time namespace adds to the kernel's clocks, in ns."""

    monotonic_ns: int = 0
    boottime_ns: int = 0

    @property
    def boottime_ticks(self) -> int:
        """What it adds to the start time of a process in /proc, rounded down."""
        return self.boottime_ns // NS_PER_TICK


def read_offsets(proc: Path = Path("/proc")) -> Offsets:
    """Read the offsets of our time namespace.

    Args:
        proc: directory of procfs.

    Returns:
        The offsets; none without time namespaces (before Linux 5.6, or without CONFIG_TIME_NS).

    Raises:
        KernelError: /proc shows only the offsets for our children, which are in another time
            namespace.
    """
    try:
        text = (proc / "self/timens_offsets").read_text()
        ours, children = ((proc / "self/ns" / name).readlink() for name in ("time", "time_for_children"))
    except OSError:
        return Offsets()
    if ours != children:
        raise KernelError(
            "the process is in another time namespace than its children, so the offset of its clocks is not known",
            "start skbcapd as a new process in the time namespace: unshare --time --fork",
        )
    found = {name: int(seconds) * 1_000_000_000 + int(ns) for name, seconds, ns in map(str.split, text.splitlines())}
    return Offsets(found.get("monotonic", 0), found.get("boottime", 0))


@functools.cache
def offsets() -> Offsets:
    """The offsets of this process: they do not change while it runs.

    Raises:
        KernelError: see read_offsets.
    """
    return read_offsets()


def monotonic_ns() -> int:
    """CLOCK_MONOTONIC of the kernel, without the offset."""
    return time.monotonic_ns() - offsets().monotonic_ns


def boot_ns() -> int:
    """Boot time of the machine, ns since 1970 UTC."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) + offsets().boottime_ns


class ClockSteps:
    """Notices when the system clock is set, or the machine has slept (TFD_TIMER_CANCEL_ON_SET in timerfd_create(2)).

    In Python 3.13, os.timerfd_create does the same.
    """

    def __init__(self) -> None:
        self._descriptor = int(_LIBC.timerfd_create(time.CLOCK_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC))
        self._begin()

    def fileno(self) -> int:
        """Readable after a step; -1: the kernel has refused the timer, or there is no descriptor left."""
        return self._descriptor

    def take(self) -> None:
        """Wait for the next step."""
        with contextlib.suppress(OSError):  # ECANCELED is the message
            os.read(self._descriptor, 8)
        self._begin()

    def close(self) -> None:
        """Stop to wait."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _begin(self) -> None:
        _LIBC.timerfd_settime(self._descriptor, _CANCEL_ON_SET, _NEVER, None)
