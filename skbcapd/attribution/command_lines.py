"""Command lines of processes, read by threads: a process can delay the reader.

In: the descriptor of a process's directory in /proc. Out: its command line.

The kernel reads it from the memory of the process, and needs mmap_lock for that. If a thread of the
process writes to a mapped file whose disk does not respond, and another one changes the mappings,
the reader waits as long as the disk. This is why `ps` can hang, and anybody can do it (FUSE).

The rule: the capture waits PATIENCE_S for a command line, and not again while it is being read. A
command line that is not read in time is empty, and conditions on it do not hold.

Source: get_mm_cmdline in fs/proc/base.c, __access_remote_vm in mm/memory.c.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from skbcapd.attribution.budget import Budget
from skbcapd.worker import TimedCall

PATIENCE_S = 0.1
AHEAD_S = 0.5  # packets wait for this
READERS_MAX = 16  # threads


class CommandLines:
    """Reads command lines.

    Args:
        read: returns the command line of the process with this directory; may take long.
        clock: seconds.
    """

    def __init__(self, read: Callable[[int], bytes], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._budget = Budget(AHEAD_S, clock)
        self._idle: list[TimedCall[bytes]] = []
        self._waiting: dict[int, TimedCall[bytes]] = {}  # by tgid

    def get(self, directory: int, tgid: int) -> bytes:
        """Read the command line of a process.

        Args:
            directory: descriptor of its directory in /proc.
            tgid: its id.

        Returns:
            The command line; empty if it is not read in time.
        """
        if self._waiting:
            self._collect()
            if tgid in self._waiting or len(self._waiting) >= READERS_MAX or self._budget.is_spent:
                return b""
        reader = self._idle.pop() if self._idle else TimedCall[bytes]("cmdline", PATIENCE_S)
        with contextlib.suppress(OSError), self._budget.spending():
            own = os.dup(directory)  # the caller closes its descriptor
            try:
                found = reader.call(lambda: self._read_and_close(own))
            except TimeoutError:
                self._waiting[tgid] = reader
                return b""
            self._idle.append(reader)
            return found
        return b""

    def _read_and_close(self, directory: int) -> bytes:
        try:
            return self._read(directory)
        finally:
            os.close(directory)

    def _collect(self) -> None:
        """Use readers again that are no longer waiting; their results are too old."""
        for tgid, reader in list(self._waiting.items()):
            if not reader.is_waiting:
                reader.late()
                self._idle.append(self._waiting.pop(tgid))
