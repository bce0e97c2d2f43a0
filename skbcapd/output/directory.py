"""The directory of capture files: names, which of them are ours, how many are kept, what a crash left behind.

In: what the settings say of files. Out: the next file to write to; finished ones under their names, the oldest gone.

The rules: nothing is touched but files whose names are of our own making, and never the one in work. One daemon at a
time: it holds a lock. All is done relative to the directory's descriptor, whatever its path leads to meanwhile.

A name sorts by time. The number in it goes on from the highest that is there: two files never have the same name.
A file gets its name when the disk has all of it, which may take long: a thread waits for that, the capture does not.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from skbcapd.errors import FileError
from skbcapd.output.aligned import Buffers
from skbcapd.output.block_writer import MODE, SELF, CaptureFile
from skbcapd.output.crashed import Crashed
from skbcapd.output.listing import Entry, Listing
from skbcapd.output.lock import daemon_of, lock
from skbcapd.output.worker import Worker, wait_until

CURRENT = "current.pcapng"
COMPRESSED = (".gz", ".zst")
_PLACES = {
    "host": r"[^/]+?",
    "time": r"\d{8}T\d{6}\.\d{3}Z",
    "number": r"(?P<number>\d{6,13})",
}
_NUMBER_MAX = 10**12  # a higher one is somebody's joke: names would grow too long with what comes after it
_DUMP_S = 30.0
_DUMP_MARK = "user.skbcapd.dump"  # an extended attribute
STOP_S = 2.0  # for the disk, when the capture has ended


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept: 0 is no limit.

    Args:
        size: bytes of all files.
        number: of files.
        age_s: seconds since a file was finished.
        free: bytes that stay free on the disk: by this no file of this run is deleted, nor the newest one, nor a dump.
    """

    size: int = 0
    number: int = 0
    age_s: int = 0
    free: int = 0


@dataclass(eq=False, slots=True)
class _Finishing:
    """A file that gets its name, or has."""

    file: CaptureFile
    error: FileError | None = None
    is_done: bool = False


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
        self.deleted_files = self.deleted_bytes = 0  # as more was kept than shall be
        self.last_good = ""  # name of the last file that was finished
        self._template, self._keep, self._mode, self._owner, self._say = template, keep or Keep(), mode, owner, say
        pattern = re.escape(template)
        for place, form in _PLACES.items():
            pattern = pattern.replace(re.escape(f"{{{place}}}"), form, 1)
        self._own = re.compile(pattern)
        self._told: set[str] = set()
        self._descriptor = self._lock = -1
        self._listing: Listing | None = None
        self._crashed: Crashed | None = None
        self._number = 0
        self._writer, self._finisher = Worker("writer"), Worker("finisher")  # one each: files get their names in order
        self._buffers = Buffers()
        self._finishing: deque[_Finishing] = deque()
        self._pointing = threading.Lock()
        self._open()
        self._first = self._number  # files with higher numbers are of this run

    def _open(self) -> None:
        """Make the directory, lock it, and finish what a crash has left."""
        descriptor = lock_ = -1
        try:
            _make(self.path)
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            lock_ = lock(descriptor, self.path)
            names = sorted(os.listdir(descriptor))  # noqa: PTH208  no path, a descriptor
            listing = None
            self._let_go()
            self._descriptor, self._lock = descriptor, lock_
            numbers = self._finish_crashed(names)
            listing = Listing(descriptor, self._number_of)
        except (OSError, FileError) as error:
            for each in (descriptor, lock_):
                if each >= 0 and each not in (self._descriptor, self._lock):
                    os.close(each)
            if isinstance(error, FileError):
                raise
            raise FileError(f"{self.path}: {error.strerror}; expected a directory to write captures to") from None
        self._listing = listing
        numbers += [entry.number for entry in listing]
        self._number = max([self._number, *(number for number in numbers if number < _NUMBER_MAX)])

    def _let_go(self) -> None:
        """Close what belongs to the directory."""
        for each in (self._listing, self._crashed):
            if each is not None:
                each.close()
        for descriptor in (self._descriptor, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._lock = -1
        self._listing = self._crashed = None

    @property
    def descriptor(self) -> int:
        """Of the directory; another one after it was replaced."""
        return self._descriptor

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to the directory that is locked."""
        try:
            named, own = self.path.stat(), os.fstat(self._descriptor)
        except OSError:
            return False
        return (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)

    @property
    def waiting(self) -> int:
        """Files that have not got their names yet."""
        return sum(not one.is_done for one in self._finishing)

    def new_file(self, *, is_dump: bool = False) -> CaptureFile:
        """Start the next file.

        Args:
            is_dump: somebody has asked for it.

        Raises:
            FileError: it cannot be made.
        """
        if not self.is_there:
            if self.waiting:
                raise FileError(
                    f"{self.path}: it was replaced, and the disk has not finished the files of the old one yet"
                )
            self._open()
        now = time.time_ns()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 1_000_000_000)) + f".{now // 1_000_000 % 1000:03}Z"
        self._number += 1
        values = {"host": harmless(socket.gethostname()), "time": stamp, "number": f"{self._number:06}"}
        path = self.path / self._template.format(**values)
        file = CaptureFile(
            path,
            part=True,
            mode=0o600,
            directory=self._descriptor,
            jobs=self._writer,
            keep_free=self._keep.free,
            buffers=self._buffers,
        )
        self._give(file)
        if is_dump:
            with contextlib.suppress(OSError):  # the file system has no such thing
                os.setxattr(file.descriptor, _DUMP_MARK, b"1")
        return file

    def begin(self, file: CaptureFile) -> None:
        """A file has its beginning: when the disk has it, `current.pcapng` leads to it."""
        file.stream.flush(whole=True)
        file.header_size = file.stream.size

        def point() -> None:
            if file.stream.error is None:
                self._point_at(file.working_path.name)

        self._writer.do(point)

    def finish(self, file: CaptureFile) -> None:
        """Hand on what is held back, and have a thread close the file and give it its name; see `finished`."""
        file.stream.flush(whole=True)
        one = _Finishing(file)
        self._finishing.append(one)
        self._writer.do(lambda: self._finisher.do(lambda: self._close(one)))

    def finished(self, *, wait: bool = False) -> Iterator[tuple[CaptureFile, FileError | None]]:
        """Files that were finished since the last call, in order, and a FileError where the disk has refused.

        Args:
            wait: for all.
        """
        if wait:
            self.wait()
        while self._finishing and self._finishing[0].is_done:
            one = self._finishing.popleft()
            yield one.file, one.error

    def wait(self, timeout_s: float = float("inf")) -> bool:
        """Wait until all files have their names, but no longer than so many seconds; whether they have."""
        return wait_until(lambda: not self.waiting, timeout_s)

    def _close(self, one: _Finishing) -> None:
        file = one.file
        try:
            is_kept = file.close()
        except FileError as error:
            one.error = error
            is_kept = file.path.exists()
        if is_kept:
            self.rename(file.working_path.name, file.path.name)
            self.last_good = file.path.name
        elif not file.working_path.exists():
            self.rename(file.working_path.name, self.last_good)
        one.is_done = True

    def rename(self, old: str, new: str) -> None:
        """A file has another name: if `current.pcapng` leads to it, it shall go on to do so.

        Args:
            old: name that is gone.
            new: empty: there is none.
        """
        if self.last_good == old:
            self.last_good = new
        with self._pointing:
            if _target(self.path / CURRENT) == old:
                self._set_link(new)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes can be written and the disk still has the free space that it shall keep."""
        try:
            disk = os.fstatvfs(self._descriptor)
        except OSError:
            return False
        return disk.f_bavail * disk.f_frsize >= size + self._keep.free

    def tick(self) -> None:
        """Once a second: what a crash has left, and what is kept."""
        if self._crashed is not None:
            self._crashed.tick()
        self.clean()

    def clean(self, room: int = 0) -> None:
        """Delete the oldest files until no more is kept than shall be.

        Args:
            room: bytes that are to be free beside `keep.free`.
        """
        if self._listing is None:
            return
        keep, listing = self._keep, self._listing
        listing.refresh()
        now = time.time()
        while len(listing):
            oldest = next(iter(listing))
            too_many = (keep.number and len(listing) > keep.number) or (keep.size and listing.total > keep.size)
            if not too_many and not (keep.age_s and now - oldest.finished_s > keep.age_s):
                break
            if not self._delete(oldest):
                return
        if keep.free and not self.has_room(room):
            self._make_room(listing, room)

    def _make_room(self, listing: Listing, room: int) -> None:
        """Delete files of earlier runs for the sake of free space, but for the newest one and dumps."""
        earlier = []
        for entry in listing:
            if entry.number > self._first:
                break
            earlier.append(entry)
        if len(earlier) == len(listing):
            del earlier[-1:]
        for entry in earlier:
            if self.has_room(room):
                return
            if entry.name not in self._told and not self._is_dump(entry) and self._delete(entry):
                self._say(
                    f"{self.path / entry.name}: deleted, {entry.size} bytes, as less than files.keep_free is free"
                )

    def _is_dump(self, entry: Entry) -> bool:
        try:
            os.getxattr(f"/proc/self/fd/{self._descriptor}/{entry.name}", _DUMP_MARK, follow_symlinks=False)
        except OSError:
            return False
        self._told.add(entry.name)  # not to be asked about each second
        return True

    def _delete(self, entry: Entry) -> bool:
        try:
            os.unlink(entry.name, dir_fd=self._descriptor)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                if entry.name not in self._told:
                    path = self.path / entry.name
                    self._say(f"{path}: {error.strerror}; expected to delete it, as more is kept than shall be")
                self._told.add(entry.name)
                return False
        else:
            self.deleted_files += 1
            self.deleted_bytes += entry.size
        if self._listing is not None:
            self._listing.look_at(entry.name)
        return True

    def close(self, timeout_s: float = STOP_S) -> None:
        """Let others write here, when all files are finished, or the disk has been waited for long enough."""
        self._finisher.close(timeout_s)
        self._let_go()

    def plain(self) -> list[Path]:
        """Our finished files that are not compressed, oldest first."""
        names = [entry.name for entry in self._listing or ()]
        return [self.path / name for name in names if not name.endswith(COMPRESSED)]

    def _give(self, file: CaptureFile) -> None:
        """Set a file's owner, and its mode, whatever the umask."""
        try:
            if self._owner != SELF:
                os.fchown(file.descriptor, *self._owner)
        except OSError as error:
            if "" not in self._told:
                self._say(
                    f"{file.working_path}: {error.strerror}; expected to set files.permissions and files.owner. Files "
                    "stay the process's own. In a systemd unit SupplementaryGroups= allows a group"
                )
            self._told.add("")
        with contextlib.suppress(OSError):
            os.fchmod(file.descriptor, self._mode)

    def _number_of(self, name: str) -> int:
        """The number in the name of a finished file; 0: not our file."""
        for ending in COMPRESSED:
            name = name.removesuffix(ending)
        match = self._own.fullmatch(name)
        return int(match["number"]) if match else 0

    def _finish_crashed(self, names: list[str]) -> list[int]:
        """Have files in work of earlier runs finished; the numbers in their names."""
        crashed = self._crashed = Crashed(self._descriptor, self.path, self._say)
        numbers = []
        for each in names:
            name = each.removesuffix(".part")
            number = self._number_of(name)
            if name == each or not number or (self.path / each).is_symlink():
                continue
            numbers.append(number)
            if name.endswith(COMPRESSED):
                crashed.delete(each)
            else:
                crashed.finish(name)
        return numbers

    def _point_at(self, name: str) -> None:
        with self._pointing:
            self._set_link(name)

    def _set_link(self, name: str) -> None:
        """Let current.pcapng lead to a file, or to none; what is no link of ours stays."""
        new, place = f".{CURRENT}.new", self._descriptor
        with contextlib.suppress(OSError):
            link = self.path / CURRENT
            if not link.is_symlink() and link.exists():
                return
            if not name:
                os.unlink(CURRENT, dir_fd=place)
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=place)
            os.symlink(name, new, dir_fd=place)
            os.rename(new, CURRENT, src_dir_fd=place, dst_dir_fd=place)


def _make(path: Path) -> None:
    """Make a directory that others cannot write to, nor to those above it that are made for it.

    Raises:
        OSError: that cannot be.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing[1:]):
        each.mkdir(0o755, exist_ok=True)
    path.mkdir(0o750, exist_ok=True)


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
    """
    link = path / CURRENT
    before = _target(link)
    daemon = daemon_of(path, proc)
    try:
        os.kill(daemon, signal.SIGUSR2)
    except OSError as error:
        raise FileError(
            f"process {daemon}: {error.strerror}; expected to ask it for a dump", "run as its user"
        ) from None
    end, seen = time.monotonic() + _DUMP_S, (before, 0)
    while time.monotonic() < end:
        now = _target(link)
        if now != before and now and not now.endswith(".part"):
            return path / now
        if (now, _size(path / now)) != seen:  # the disk takes it slowly
            end, seen = time.monotonic() + _DUMP_S, (now, _size(path / now))
        time.sleep(0.01)
    raise FileError(f"{path}: no dump came within {_DUMP_S:.0f} s", f"the log of process {daemon} says why")


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def harmless(name: str) -> str:
    """The name of a machine as part of a file's name: nothing in it means anything to a terminal, a shell or a path."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) or "_"
