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
INDEX = ".index.csv.gz"
"""Ending of the index of a file."""
NUMBER_MAX = 10**12  # a higher number is not from skbcapd; with it, names would become too long
_PLACES = {
    "host": r"[^/]+?",
    "time": r"\d{8}T\d{6}\.\d{3}Z",
    "number": r"(?P<number>\d{6,13})",
}


class Names:
    """Makes and recognizes names.

    Args:
        template: template with {host}, {time} and {number}.
    """

    def __init__(self, template: str) -> None:
        self.last = 0  # the last number
        self._template = template
        pattern = re.escape(template)
        for place, form in _PLACES.items():
            pattern = pattern.replace(re.escape(f"{{{place}}}"), form, 1)
        self._own = re.compile(pattern)

    def number_of(self, name: str) -> int:
        """The number in the name of a finished file; 0: not a file of skbcapd."""
        for ending in COMPRESSED:
            name = name.removesuffix(ending)
        match = self._own.fullmatch(name)
        return int(match["number"]) if match else 0

    def next(self) -> str:
        """The name of the next file."""
        now = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 1_000_000_000)) + f".{now // 1_000_000 % 1000:03}Z"
        self.last += 1
        values = {"host": escaped_host(socket.gethostname()), "time": stamp, "number": f"{self.last:06}"}
        return self._template.format(**values)


class Link:
    """The link `current.pcapng`; thread-safe.

    Args:
        directory: descriptor of the directory.
    """

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self.last_good = ""  # name of the last finished file, if it exists

    def point_at(self, name: str) -> None:
        """Point to a file; with an empty name, to none."""
        with self._lock:
            self._set(name)

    def finish(self, part: str, name: str) -> None:
        """An unfinished file got another name, or was deleted (empty name)."""
        with self._lock:
            self.last_good = name or self.last_good
            if self.target == part:
                self._set(self.last_good)

    def check(self) -> None:
        """Check whether the last finished file still exists."""
        with self._lock:
            if not self.is_there(self.last_good):
                self.last_good = ""

    def is_there(self, name: str) -> bool:
        """Whether the directory has a regular file with this name, wherever its path points now."""
        try:
            return stat.S_ISREG(os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_mode)
        except OSError:
            return False

    def rename(self, old: str, new: str) -> None:
        """A finished file was renamed."""
        with self._lock:
            if self.last_good == old:
                self.last_good = new
            if self.target == old:
                self._set(new)

    @property
    def target(self) -> str:
        """The target of the link; empty if there is no link."""
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


def escaped_host(name: str) -> str:
    """The name of the machine for a file name, without characters that are special in a terminal,
    shell or path.
    """
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) or "_"
