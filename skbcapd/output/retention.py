"""Retention: how many finished files are kept.

In: the files, the settings. Out: the oldest files are deleted, and counted.

The rule: a capture deletes what its settings say, but others also use the free space: somebody who
fills the disk must not make it delete what was just captured. For `Keep.free` it does not delete
files of this run, the newest file, or a dump, and it logs each deletion. If that is not enough, it
stops writing. The disk can be slow in all of this: the keeper thread of the directory calls it.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from skbcapd.output.listing import Entry, Listing

_LOG = logging.getLogger(__name__)
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


class Retention:
    """Deletes files of one directory.

    Args:
        path: path of the directory, for messages.
        keep: the limits.
    """

    def __init__(self, path: Path, keep: Keep) -> None:
        self.deleted_files = self.deleted_bytes = 0
        self.keep = keep
        self._path = path
        self._first: int | None = None
        self._passed: set[str] = set()  # must not be deleted to get free space, or cannot be

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
        keep, now = self.keep, time.time()
        listing.refresh()
        while len(listing):
            oldest = next(iter(listing))
            too_many = (keep.number and len(listing) > keep.number) or (keep.size and listing.total > keep.size)
            if not too_many and not (keep.age_s and now - oldest.finished_s > keep.age_s):
                break
            if not self._delete(directory, listing, oldest):
                return
        if keep.free and not self.has_room(directory, room):
            self._make_room(directory, listing, room)

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
            if entry.name in self._passed or self._is_dump(directory, entry):
                continue
            if self.has_room(directory, room):
                return
            self._delete(directory, listing, entry, "free space is below files.keep_free")

    def _is_dump(self, directory: int, entry: Entry) -> bool:
        try:
            os.getxattr(f"/proc/self/fd/{directory}/{entry.name}", DUMP_MARK, follow_symlinks=False)
        except OSError:
            return False
        self._passed.add(entry.name)
        return True

    def _delete(self, directory: int, listing: Listing, entry: Entry, why: str = "") -> bool:
        """Delete a file, and log why; returns whether it is deleted."""
        try:
            os.unlink(entry.name, dir_fd=directory)
        except FileNotFoundError:
            listing.sample_blocks(entry.name)
            return True
        except OSError as error:
            if entry.name not in self._passed:
                path = self._path / entry.name
                _LOG.warning(
                    "%s: %s; expected to delete it, as a limit of files.keep_* is exceeded", path, error.strerror
                )
            self._passed.add(entry.name)
            return False
        self.deleted_files += 1
        self.deleted_bytes += entry.size
        listing.sample_blocks(entry.name)
        if why:
            _LOG.warning("%s: deleted (%d bytes), as %s", self._path / entry.name, entry.size, why)
        return True
