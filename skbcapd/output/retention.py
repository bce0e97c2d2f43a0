"""Retention: how many finished files are kept.

In: the files, the settings. Out: the oldest files are deleted, and counted.

The rule: a capture deletes what its settings say, but others also use the free space: a user who
fills the disk must not make it delete what was just captured. For `Keep.free` it does not delete
files of this run, the newest file, or a dump, and it logs each deletion. If that is not enough, it
stops writing. The disk can be slow in all of this: the keeper thread of the directory calls it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from skbcapd.output.listing import Entry, Listing
from skbcapd.output.naming import INDEX

_LOG = logging.getLogger(__name__)
_EXPIRE_EVERY_S = 10.0
_FAILED_MAX = 100  # files that cannot be deleted, at one call
_STEP_S = 60.0  # a step of the system clock that is logged
DUMP_MARK = "user.skbcapd.dump"  # an extended attribute of dumps


@dataclass(frozen=True, slots=True)
class Keep:
    """The limits; 0: no limit.

    Args:
        size: size of all files in bytes.
        number: number of files.
        age_s: age of a finished file in seconds.
        free: free space to leave on the disk, in bytes.
    """

    size: int = 0
    number: int = 0
    age_s: int = 0
    free: int = 0


class Usage(NamedTuple):
    """The finished files and their disk, all in bytes but `number`; 0: not known yet.

    Args:
        number: finished files.
        size: size of all finished files.
        disk_free: free space that the process may use.
        disk_size: size of the file system.
    """

    number: int = 0
    size: int = 0
    disk_free: int = 0
    disk_size: int = 0


class AgeClock:
    """The time for ages of files. If the system clock is set forward, this clock follows it at twice
    the speed of time: a system clock that is wrong by a year must not delete the files of a year.

    Args:
        wall: the system clock, in seconds since 1970.
        running: seconds that have passed, also while the machine sleeps.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        running: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self.running = running
        self._wall = wall
        self._now, self._last = wall(), running()
        self._is_logged = False

    def now(self) -> float:
        """Seconds since 1970; a clock that is set back counts at once."""
        wall, running = self._wall(), self.running()
        self._now = min(wall, self._now + 2 * (running - self._last))
        self._last = running
        ahead_s = wall - self._now
        if ahead_s > _STEP_S and not self._is_logged:
            _LOG.warning("the clock was set forward by %.0f s; files.keep_age follows it slowly", ahead_s)
        self._is_logged = ahead_s > _STEP_S
        return self._now


class Retention:
    """Deletes files of one directory.

    Args:
        path: path of the directory, for messages.
        keep: the limits.
        clock: the time for ages.
    """

    def __init__(self, path: Path, keep: Keep, clock: AgeClock | None = None) -> None:
        self.deleted_files = self.deleted_bytes = 0
        self.usage = Usage()
        """After the last call of `clean`."""
        self.keep = keep
        self._path = path
        self._first: int | None = None
        self._dumps: set[str] = set()  # known dumps
        self._undeletable: dict[str, int] = {}  # files that cannot be deleted, with their sizes
        self._clock = clock or AgeClock()
        self._expire_at = float("-inf")

    def begin(self, number: int) -> None:
        """A run begins: files with higher numbers belong to it. Only the first call counts."""
        if self._first is None:
            self._first = number

    def has_room(self, directory: int, size: int) -> bool:
        """Whether so many bytes can be written without using the free space that must be left."""
        try:
            disk = os.fstatvfs(directory)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= size + self.keep.free

    def clean(self, directory: int, listing: Listing, room: int = 0) -> None:
        """Delete the oldest files until the limits are kept.

        Args:
            directory: descriptor of the directory.
            listing: its files.
            room: free space in addition to `Keep.free`, in bytes.
        """
        listing.refresh()
        self._limit(directory, listing)
        self._expire(directory, listing)
        if self.keep.free and not self.has_room(directory, room):
            self._make_room(directory, listing, room)
        with contextlib.suppress(OSError):
            disk = os.fstatvfs(directory)
            unit = disk.f_frsize
            self.usage = Usage(len(listing), listing.total, disk.f_bavail * unit, disk.f_blocks * unit)

    def _limit(self, directory: int, listing: Listing) -> None:
        """Delete the oldest files of too many or too large ones."""
        self._undeletable = {name: size for name, size in self._undeletable.items() if name in listing}
        failed = 0
        for entry in list(listing) if self._is_exceeded(listing) else ():
            failed += not self._delete(directory, listing, entry)
            if not self._is_exceeded(listing) or failed > _FAILED_MAX:
                return

    def _is_exceeded(self, listing: Listing) -> bool:
        """Whether the files are too many or too large. Files that cannot be deleted do not count:
        otherwise all others would be deleted for them.
        """
        keep = self.keep
        number, size = len(listing) - len(self._undeletable), listing.total - sum(self._undeletable.values())
        return bool(number > 0 and ((keep.number and number > keep.number) or (keep.size and size > keep.size)))

    def _expire(self, directory: int, listing: Listing) -> None:
        """Delete files that are too old, also behind younger ones: a clock that was wrong leaves files
        with wrong times.
        """
        now, passed_s = self._clock.now(), self._clock.running()
        if not self.keep.age_s or passed_s < self._expire_at:
            return
        self._expire_at = passed_s + _EXPIRE_EVERY_S
        for entry in [entry for entry in listing if now - entry.finished_s > self.keep.age_s]:
            self._delete(directory, listing, entry)

    def _make_room(self, directory: int, listing: Listing, room: int) -> None:
        """Delete files to get free space."""
        earlier = []
        for entry in listing:
            if entry.number > (self._first or 0):
                break
            earlier.append(entry)
        if len(earlier) == len(listing):
            del earlier[-1:]  # the newest one
        for entry in earlier:
            if entry.name in self._dumps or self._is_dump(directory, entry):
                continue
            if self.has_room(directory, room):
                return
            self._delete(directory, listing, entry, "free space is below files.keep_free")

    def _is_dump(self, directory: int, entry: Entry) -> bool:
        try:
            os.getxattr(f"/proc/self/fd/{directory}/{entry.name}", DUMP_MARK, follow_symlinks=False)
        except OSError:
            return False
        self._dumps.add(entry.name)
        return True

    def _delete(self, directory: int, listing: Listing, entry: Entry, why: str = "") -> bool:
        """Delete a file with its index, and log why; returns whether it is deleted."""
        try:
            os.unlink(entry.name, dir_fd=directory)
            _delete_index(directory, entry.name)
        except FileNotFoundError:
            self._undeletable.pop(entry.name, None)
            _delete_index(directory, entry.name)
            listing.sample_blocks(entry.name)
            return True
        except OSError as error:
            if entry.name not in self._undeletable:
                path = self._path / entry.name
                _LOG.warning(
                    "%s: %s; expected to delete it, as a limit of files.keep_* is exceeded", path, error.strerror
                )
            self._undeletable[entry.name] = entry.size
            return False
        self._undeletable.pop(entry.name, None)
        self.deleted_files += 1
        self.deleted_bytes += entry.size
        listing.sample_blocks(entry.name)
        if why:
            _LOG.warning("%s: deleted (%d bytes), as %s", self._path / entry.name, entry.size, why)
        return True


def _delete_index(directory: int, name: str) -> None:
    """Delete the index of a file that is deleted; one that is left is deleted at the next start."""
    with contextlib.suppress(OSError):
        os.unlink(name + INDEX, dir_fd=directory)
