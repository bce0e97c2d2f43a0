"""The directory of capture files: names, which of them are ours, how many are kept, what a crash left behind.

In: what the settings say of files. Out: the next file to write to; finished ones under their names, the oldest gone.

The rule: nothing is touched but files whose names are of our own making, and never the one in work. One daemon at a
time: it holds a lock on the directory.

A name sorts by time. The number in it goes on from the highest that is there: two files never have the same name.
A file gets its name when the disk has all of it, which may take long: a thread waits for that, the capture does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from skbcapd.errors import FileError
from skbcapd.output.block_writer import MODE, SELF, CaptureFile

CURRENT = "current.pcapng"
PACKED = (".gz", ".zst")
_PLACES = {
    "host": r"[^/]+?",
    "time": r"\d{8}T\d{6}\.\d{3}Z",
    "number": r"(?P<number>\d{6,})",
}
_SECTION = 0x0A0D0D0A
_BLOCK_MAX = 16 << 20
_DUMP_S = 30.0


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


class CaptureDirectory:
    """A directory that one capture writes to.

    Args:
        path: made if it is missing.
        template: of names, with {host}, {time} and {number}.
        keep: how much.
        mode: permission bits of files.
        owner: user and group ids of files; -1 keeps the process's. Where mode or owner is forbidden, one line says so,
            and the capture goes on: a file with the wrong owner is better than none.
        say: takes one line for the log.

    Raises:
        FileError: it cannot be made or read, or another capture writes to it.
    """

    def __init__(
        self,
        path: Path,
        template: str = "skbcapd-{host}-{time}-{number}.pcapng",
        keep: Keep | None = None,
        mode: int = MODE,
        owner: tuple[int, int] = SELF,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.path = path
        self._template, self._keep, self._mode, self._owner, self._say = template, keep or Keep(), mode, owner, say
        pattern = re.escape(template)
        for place, form in _PLACES.items():
            pattern = pattern.replace(re.escape(f"{{{place}}}"), form, 1)
        self._own = re.compile(pattern)
        self._is_told = False
        self._lock = -1
        self._number = 0
        self._finisher = ThreadPoolExecutor(1, "finisher")  # one: files get their names in order
        self._finishing: deque[tuple[CaptureFile, Future[None]]] = deque()
        self._open()

    def _open(self) -> None:
        """Make the directory, lock it, and finish what a crash has left."""
        lock = -1
        try:
            self.path.mkdir(0o750, parents=True, exist_ok=True)
            lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if lock >= 0:
                os.close(lock)
            if isinstance(error, BlockingIOError):
                raise FileError(
                    f"{self.path}: another skbcapd writes to it", "one directory for each: set files.directory"
                ) from None
            raise FileError(f"{self.path}: {error.strerror}; expected a directory to write captures to") from None
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = lock
        self._repair()
        self._number = max([self._number, *(self._number_of(entry.name) for entry in self._list())])

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to the directory that is locked."""
        try:
            named, own = self.path.stat(), os.fstat(self._lock)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    def new_file(self) -> CaptureFile:
        """Start the next file; `current.pcapng` leads to it from now on.

        Raises:
            FileError: it cannot be made.
        """
        if not self.is_there:
            self._wait()
            self._open()
        now = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 1_000_000_000)) + f".{now // 1_000_000 % 1000:03}Z"
        self._number += 1
        values = {"host": harmless(socket.gethostname()), "time": stamp, "number": f"{self._number:06}"}
        file = CaptureFile(self.path / self._template.format(**values), part=True, mode=self._mode)
        self._give(file)
        self._point_at(file.working_path.name)
        return file

    def finish(self, file: CaptureFile) -> None:
        """Hand on what is held back, and have a thread close the file and give it its name; see `finished`."""
        file.stream.flush(whole=True)
        self._finishing.append((file, self._finisher.submit(self._close, file)))

    def finished(self, *, wait: bool = False) -> Iterator[tuple[CaptureFile, BaseException | None]]:
        """Files that were finished since the last call, in order, and a FileError where the disk has refused.

        Args:
            wait: for all.
        """
        if wait:
            self._wait()
        while self._finishing and self._finishing[0][1].done():
            file, outcome = self._finishing.popleft()
            yield file, outcome.exception()

    def _wait(self) -> None:
        for _, outcome in self._finishing:
            outcome.exception()

    def _close(self, file: CaptureFile) -> None:
        try:
            file.close()
        finally:
            if file.path.exists():
                self.rename(file.working_path.name, file.path.name)

    def rename(self, old: str, new: str) -> None:
        """A file has another name: if `current.pcapng` leads to it, it shall go on to do so."""
        if _target(self.path / CURRENT) == old:
            self._point_at(new)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes can be written and the disk still has the free space that it shall keep."""
        try:
            disk = os.statvfs(self.path)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= size + self._keep.free

    def clean(self) -> None:
        """Remove the oldest files until no more is kept than shall be."""
        keep, files = self._keep, []
        for entry in self._list():
            with contextlib.suppress(OSError):
                status = entry.stat()
                files.append((entry, status.st_size, status.st_mtime))
        total, now = sum(size for _, size, _ in files), time.time()
        for left, (entry, size, finished) in zip(range(len(files), 0, -1), files, strict=True):
            too_many = (keep.number and left > keep.number) or (keep.size and total > keep.size)
            if not (too_many or (keep.age_s and now - finished > keep.age_s) or not self.has_room(0)):
                return
            try:
                entry.unlink()
            except OSError as error:
                self._say(f"{entry}: {error.strerror}; expected to remove it, as more is kept than shall be")
                return
            total -= size

    def close(self) -> None:
        """Let others write here, when all files are finished."""
        self._finisher.shutdown()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def plain(self) -> list[Path]:
        """Our finished files that are not packed, oldest first."""
        return [entry for entry in self._list() if entry.suffix not in PACKED]

    def _give(self, file: CaptureFile) -> None:
        """Set a file's mode, whatever the umask, and its owner."""
        try:
            os.fchmod(file.descriptor, self._mode)
            if self._owner != SELF:
                os.fchown(file.descriptor, *self._owner)
        except OSError as error:
            if not self._is_told:
                self._say(
                    f"{file.working_path}: {error.strerror}; expected to set files.permissions and files.owner. Files "
                    "stay the process's own. In a systemd unit SupplementaryGroups= allows a group"
                )
            self._is_told = True

    def _list(self) -> list[Path]:
        """Our finished files, oldest first."""
        try:
            return sorted(
                (entry for entry in self.path.iterdir() if self._number_of(entry.name) and not entry.is_symlink()),
                key=lambda entry: self._number_of(entry.name),
            )
        except OSError:
            return []

    def _number_of(self, name: str) -> int:
        """The number in the name of a finished file; 0: not our file."""
        for ending in PACKED:
            name = name.removesuffix(ending)
        match = self._own.fullmatch(name)
        return int(match["number"]) if match else 0

    def _repair(self) -> None:
        """Give files that a crash has left their names, without the torn block at their end; remove what is empty."""
        for entry in sorted(self.path.iterdir()):
            name = entry.name.removesuffix(".part")
            if name == entry.name or not self._number_of(name) or entry.is_symlink():
                continue
            if name.endswith(PACKED):  # the plain file is still there
                entry.unlink()
                continue
            try:
                size, whole = entry.stat().st_size, _whole_blocks(entry)
                if not whole:
                    entry.unlink()
                    self._say(f"{entry}: removed; it held no whole block after a crash")
                    continue
                os.truncate(entry, whole)
                entry.rename(entry.with_name(name))
                self._say(f"{entry}: finished after a crash, {size - whole} bytes of a torn block cut off")
            except OSError as error:
                self._say(f"{entry}: {error.strerror}; it stays as a crash left it")

    def _point_at(self, name: str) -> None:
        """Let current.pcapng lead to a file; one that is not ours stays."""
        link, new = self.path / CURRENT, self.path / f".{CURRENT}.new"
        with contextlib.suppress(OSError):
            if link.is_symlink() or not link.exists():
                new.unlink(missing_ok=True)
                new.symlink_to(name)
                new.rename(link)


def _whole_blocks(path: Path) -> int:
    """Bytes from a file's section header to the end of its last whole block; 0 where it does not begin with one."""
    with path.open("rb") as file:
        end, at = file.seek(0, os.SEEK_END), 0
        file.seek(0)
        while True:
            head = file.read(8)
            if len(head) < 8:
                return at
            kind, size = struct.unpack("<II", head)
            if size < 12 or size % 4 or size > _BLOCK_MAX or at + size > end or (not at and kind != _SECTION):
                return at
            file.seek(at + size - 4)
            if file.read(4) != head[4:]:
                return at
            at += size


def ask_for_dump(path: Path, proc: Path = Path("/proc")) -> Path:
    """Have the daemon that holds a directory's lock write what it keeps in memory, and wait until it has.

    Its process is found by the lock: it cannot be a stale number. A process that would die of the signal gets none.

    Args:
        path: of the directory.
        proc: where procfs is.

    Returns:
        The file that it wrote.

    Raises:
        FileError: nobody writes to the directory, or no file came.

    Source: proc_locks(5); SigCgt in proc_pid_status(5).
    """
    link = path / CURRENT
    before = _target(link)
    daemon = _holder(path, proc)
    try:
        os.kill(daemon, signal.SIGUSR2)
    except OSError as error:
        raise FileError(
            f"process {daemon}: {error.strerror}; expected to ask it for a dump", "run as its user"
        ) from None
    end = time.monotonic() + _DUMP_S
    while time.monotonic() < end:
        now = _target(link)
        if now != before and now and not now.endswith(".part"):
            return path / now
        time.sleep(0.01)
    raise FileError(f"{path}: no dump came within {_DUMP_S:.0f} s", f"the log of process {daemon} says why")


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _holder(path: Path, proc: Path) -> int:
    """The process that has locked a directory and waits for SIGUSR2."""
    try:
        wanted = path.stat()
        held = re.findall(r"FLOCK +ADVISORY +WRITE (\d+) [^:]+:[^:]+:(\d+) ", (proc / "locks").read_text())
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}; expected a directory that skbcapd writes to") from None
    for process, inode in held:
        if int(inode) != wanted.st_ino:
            continue
        with contextlib.suppress(OSError, StopIteration):
            # The number of the device in /proc/locks is not stat's on all file systems.
            next(fd for fd in (proc / process / "fd").iterdir() if os.path.samestat(fd.stat(), wanted))
            caught = re.search(r"^SigCgt:\s*(\w+)", (proc / process / "status").read_text(), re.MULTILINE)
            if caught and int(caught[1], 16) >> (signal.SIGUSR2 - 1) & 1:
                return int(process)
    raise FileError(f"{path}: nobody writes to it", "start skbcapd with files.mode=ring first, and ask as its user")


def harmless(name: str) -> str:
    """The name of a machine as part of a file's name: nothing in it means anything to a terminal, a shell or a path."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) or "_"
