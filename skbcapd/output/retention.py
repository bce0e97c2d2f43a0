"""Retention: how many finished files are kept.

In: the files, the settings. Out: the oldest files are deleted, and counted.

The rule: a capture deletes what its settings say, but others also use the free space: somebody who
fills the disk must not make it delete what was just captured. For `Keep.free` it does not delete
files of this run, the newest file, or a dump, and it logs each deletion. If that is not enough, it
stops writing. All of this may take the disk long: it is for the thread of the directory.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from skbcapd.output.listing import Entry, Listing

_LOG = logging.getLogger(__name__)
DUMP_MARK = "user.skbcapd.dump"  # an extended attribute of files that somebody has asked for


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept: 0 is no limit.

    Args:
        size: bytes of all files.
        number: of files.
        age_s: seconds since a file was finished.
        free: bytes that stay free on the disk.
    """

    size: int = 0
    number: int = 0
    age_s: int = 0
    free: int = 0


class Retention:
    """Deletes files of one directory.

    Args:
        path: of the directory, for people.
        keep: how much.
    """

    def __init__(self, path: Path, keep: Keep) -> None:
        self.deleted_files = self.deleted_bytes = 0
        self.keep = keep
        self._path = path
        self._first: int | None = None
        self._passed: set[str] = set()  # not to be deleted for the sake of free space, or it cannot be

    def begin(self, number: int) -> None:
        """A run begins: files with higher numbers are its own. Of several calls the first one counts."""
        if self._first is None:
            self._first = number

    def has_room(self, directory: int, size: int) -> bool:
        """Whether so many bytes can be written and the disk still has the free space that it shall keep."""
        try:
            disk = os.fstatvfs(directory)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= size + self.keep.free

    def clean(self, directory: int, listing: Listing, room: int = 0) -> None:
        """Delete the oldest files until no more is kept than shall be.

        Args:
            directory: descriptor.
            listing: its files.
            room: bytes that are to be free beside `Keep.free`.
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
        """Delete what may be deleted for the sake of free space."""
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
        """Delete a file, and say why; whether it is gone."""
        try:
            os.unlink(entry.name, dir_fd=directory)
        except FileNotFoundError:
            listing.look_at(entry.name)
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
        listing.look_at(entry.name)
        if why:
            _LOG.warning("%s: deleted (%d bytes), as %s", self._path / entry.name, entry.size, why)
        return True
