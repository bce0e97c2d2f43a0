"""Reports which names in a directory have changed, or that a file was written; costs nothing if none has.

In: the descriptor of a directory or file. Out: names of entries that were created, deleted, renamed,
written, or got new times; for a file, a descriptor that is readable after a write.

The rule: if the kernel has dropped events, or if there is no inotify, this is reported: then the
directory must be read again.

Source: inotify(7).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("<iIII")  # watch, mask, cookie, bytes of the name behind it
_ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
_Q_OVERFLOW, _ONLYDIR = 0x4000, 0x01000000
ENTRIES = _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR
"""Changes of the entries of a directory."""
MODIFIED = 0x2
"""Writes to a file."""
_READ = 1 << 16
_READS_MAX = 64  # the default limit of events per reader in the kernel


class Watch:
    """Watches one directory or file.

    Args:
        watched: descriptor of the directory or file.
        mask: ENTRIES, or MODIFIED for a file.

    Raises:
        OSError: inotify is not available: too many watches, or none supported.
    """

    def __init__(self, watched: int, mask: int = ENTRIES) -> None:
        self._descriptor = int(_LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if _LIBC.inotify_add_watch(self._descriptor, f"/proc/self/fd/{watched}".encode(), mask) < 0:
            number = ctypes.get_errno()
            self.close()
            raise OSError(number, os.strerror(number))

    def fileno(self) -> int:
        """A descriptor that is readable when something has changed."""
        return self._descriptor

    def changes(self) -> Iterator[str | None]:
        """Names that have changed since the last call; None: not known, read the directory again."""
        for _ in range(_READS_MAX):
            try:
                found = os.read(self._descriptor, _READ)
            except BlockingIOError:
                return
            at = 0
            while at < len(found):
                _, mask, _, size = _EVENT.unpack_from(found, at)
                at += _EVENT.size
                if mask & _Q_OVERFLOW:
                    yield None
                elif size:
                    yield os.fsdecode(found[at : at + size].rstrip(b"\0"))
                at += size

    def close(self) -> None:
        """Stop to watch."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __del__(self) -> None:
        """Close it: the number of inotify descriptors of a user is limited."""
        self.close()
