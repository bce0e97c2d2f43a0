"""The finished files of a directory, kept in memory: listing 100,000 files every second would use a
whole processor.

In: the descriptor of a directory, and a function that recognizes names. Out: the files, oldest
first, with size and age.

The rule: only regular files. Changes by others are noticed: by inotify, or without it by reading
the directory again when its modification time has changed.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from skbcapd.output.watch import Watch

# the modification time has this resolution, so a directory that has just changed can change again
# with the same time
_COARSE_NS = 2_000_000_000


class Entry(NamedTuple):
    """A finished file; the order is by age.

    Args:
        number: number in its name.
        name: name in the directory.
        size: bytes.
        finished_s: seconds since 1970.
    """

    number: int
    name: str
    size: int
    finished_s: float


class Listing:
    """The finished files of skbcapd.

    Args:
        directory: descriptor of the directory.
        number_of: returns the number in the name of a finished file; 0 if it is not a file of
            skbcapd.
    """

    def __init__(self, directory: int, number_of: Callable[[str], int]) -> None:
        self._directory, self._number_of = directory, number_of
        self._entries: dict[str, Entry] = {}
        self._order: list[Entry] = []
        self._changed_ns = 0
        self.total = 0  # bytes
        self._watch: Watch | None = None
        with contextlib.suppress(OSError):
            self._watch = Watch(directory)
        self._read()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._order)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def refresh(self) -> None:
        """Apply the changes in the directory."""
        if self._watch is not None:
            changed = dict.fromkeys(self._watch.changes())
            if None in changed:
                self._read()
            else:
                for name in changed:
                    self.sample_blocks(name or "")
        elif os.fstat(self._directory).st_mtime_ns != self._changed_ns:
            self._read()

    def sample_blocks(self, name: str) -> None:
        """Check whether a file exists, and its size and time."""
        number = self._number_of(name)
        if not number:
            return
        self._forget(name)
        with contextlib.suppress(OSError):
            found = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode):
                entry = self._entries[name] = Entry(number, name, found.st_size, found.st_mtime)
                self.total += entry.size
                bisect.insort(self._order, entry)

    def close(self) -> None:
        """Stop to watch."""
        if self._watch is not None:
            self._watch.close()
        self._watch = None

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.total -= entry.size
            del self._order[bisect.bisect_left(self._order, entry)]

    def _read(self) -> None:
        """Read the complete directory."""
        changed_ns = os.fstat(self._directory).st_mtime_ns
        self._changed_ns = changed_ns if time.time_ns() - changed_ns > _COARSE_NS else 0
        entries = {}
        with os.scandir(self._directory) as found:
            for each in found:
                if number := self._number_of(each.name):
                    with contextlib.suppress(OSError):
                        status = each.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            entries[each.name] = Entry(number, each.name, status.st_size, status.st_mtime)
        self._entries = entries
        self._order = sorted(entries.values())
        self.total = sum(entry.size for entry in entries.values())
