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

from skbcapd.output.naming import INDEX
from skbcapd.output.watch import Watch

# the modification time has this resolution, so a directory that has just changed can change again
# with the same time
_COARSE_NS = 2_000_000_000


class Entry(NamedTuple):
    """A finished file; the order is by age.

    Args:
        number: number in its name.
        name: name in the directory.
        size: bytes, with its index.
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
        self._indexes: dict[str, int] = {}  # sizes, by the name of the file
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

    def has_index(self, name: str) -> bool:
        """Whether a file has an index."""
        return name in self._indexes

    def without_files(self) -> list[str]:
        """Names of indexes whose files do not exist."""
        return [name + INDEX for name in self._indexes if name not in self._entries]

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
        """Check whether a file and its index exist, and its size and time."""
        name = name.removesuffix(INDEX)
        number = self._number_of(name)
        if not number:
            return
        self._forget(name)
        self._indexes.pop(name, None)
        with contextlib.suppress(OSError):
            index = os.stat(name + INDEX, dir_fd=self._directory, follow_symlinks=False)
            if stat.S_ISREG(index.st_mode):
                self._indexes[name] = index.st_size
        with contextlib.suppress(OSError):
            found = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode):
                entry = self._entries[name] = Entry(
                    number, name, found.st_size + self._indexes.get(name, 0), found.st_mtime
                )
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
        self._indexes = {}
        with os.scandir(self._directory) as found:
            for each in found:
                if number := self._number_of(each.name.removesuffix(INDEX)):
                    with contextlib.suppress(OSError):
                        status = each.stat(follow_symlinks=False)
                        if not stat.S_ISREG(status.st_mode):
                            continue
                        if each.name.endswith(INDEX):
                            self._indexes[each.name.removesuffix(INDEX)] = status.st_size
                        else:
                            entries[each.name] = Entry(number, each.name, status.st_size, status.st_mtime)
        self._entries = {
            name: entry._replace(size=entry.size + self._indexes.get(name, 0)) for name, entry in entries.items()
        }
        self._order = sorted(self._entries.values())
        self.total = sum(entry.size for entry in self._entries.values())
