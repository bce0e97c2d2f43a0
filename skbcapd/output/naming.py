"""Names of capture files: which names are of skbcapd, the next name, and the link `current.pcapng`.

In: a template, the descriptor of a directory. Out: names; a symbolic link.

The rules: names sort by time, and the number in a name follows the highest existing one. The link
points to the file that is being written once it has its header, and otherwise to a complete one.
What is no link of skbcapd is not replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import threading
import time

CURRENT = "current.pcapng"
COMPRESSED = (".gz", ".zst")
NUMBER_MAX = 10**12  # a higher one is somebody's joke: names would grow too long with what comes after it
_PLACES = {
    "host": r"[^/]+?",
    "time": r"\d{8}T\d{6}\.\d{3}Z",
    "number": r"(?P<number>\d{6,13})",
}


class Names:
    """Names by a template.

    Args:
        template: with {host}, {time} and {number}.
    """

    def __init__(self, template: str) -> None:
        self.last = 0  # number
        self._template = template
        pattern = re.escape(template)
        for place, form in _PLACES.items():
            pattern = pattern.replace(re.escape(f"{{{place}}}"), form, 1)
        self._own = re.compile(pattern)

    def number_of(self, name: str) -> int:
        """The number in the name of a finished file; 0: not our file."""
        for ending in COMPRESSED:
            name = name.removesuffix(ending)
        match = self._own.fullmatch(name)
        return int(match["number"]) if match else 0

    def next(self) -> str:
        """The name of the next file."""
        now = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 1_000_000_000)) + f".{now // 1_000_000 % 1000:03}Z"
        self.last += 1
        values = {"host": harmless(socket.gethostname()), "time": stamp, "number": f"{self.last:06}"}
        return self._template.format(**values)


class Link:
    """`current.pcapng`; for several threads.

    Args:
        directory: descriptor.
    """

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self.last_good = ""  # name of the last file that was finished, if it is there

    def point_at(self, name: str) -> None:
        """Lead to a file, to none if its name is empty."""
        with self._lock:
            self._set(name)

    def finish(self, part: str, name: str) -> None:
        """A file in work is gone: it has another name, or none if that is empty, as nothing was in it."""
        with self._lock:
            self.last_good = name or self.last_good
            if self.target == part:
                self._set(self.last_good)

    def check(self) -> None:
        """See whether the last finished file is still there."""
        with self._lock:
            try:
                found = os.stat(self.last_good, dir_fd=self._directory, follow_symlinks=False)
            except OSError:
                self.last_good = ""
            else:
                self.last_good = self.last_good if stat.S_ISREG(found.st_mode) else ""

    def rename(self, old: str, new: str) -> None:
        """A finished file has another name."""
        with self._lock:
            if self.last_good == old:
                self.last_good = new
            if self.target == old:
                self._set(new)

    @property
    def target(self) -> str:
        """Where it leads; empty where there is no link."""
        try:
            return os.readlink(CURRENT, dir_fd=self._directory)
        except OSError:
            return ""

    def _set(self, name: str) -> None:
        new, place = f".{CURRENT}.new", self._directory
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISLNK(os.stat(CURRENT, dir_fd=place, follow_symlinks=False).st_mode):
                    return
                if not name:
                    os.unlink(CURRENT, dir_fd=place)
            if not name:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=place)
            os.symlink(name, new, dir_fd=place)
            os.rename(new, CURRENT, src_dir_fd=place, dst_dir_fd=place)


def harmless(name: str) -> str:
    """The name of a machine as part of a file's name: nothing in it means anything to a terminal, a shell or a path."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) or "_"
