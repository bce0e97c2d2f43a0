"""The directory of capture files: used by one daemon at a time; names files, and deletes the
oldest.

In: the settings of files. Out: the next file to write to; finished files with their names; the
oldest are deleted.

The rules: only files with names of skbcapd are touched, and never the one being written. All names
are relative to the descriptor of the directory, wherever its path leads now. A file gets its name
when it is completely on the disk. This may take long: a thread waits for it, not the capture.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skbcapd.errors import FileError
from skbcapd.output.aligned import Buffers
from skbcapd.output.block_writer import MODE, SELF, STOP_S, CaptureFile
from skbcapd.output.crashed import Crashed
from skbcapd.output.listing import Listing
from skbcapd.output.lock import daemon_of, lock
from skbcapd.output.naming import COMPRESSED, CURRENT, NUMBER_MAX, Link, Names
from skbcapd.output.retention import DUMP_MARK, Keep, Retention
from skbcapd.output.worker import PATIENCE_S, Patience, Worker, wait_until

_LOG = logging.getLogger(__name__)
_DUMP_S = 30.0


@dataclass(eq=False, slots=True)
class _Finishing:
    """A file that is being closed and renamed, or has been."""

    file: CaptureFile
    error: FileError | None = None
    is_done: bool = False


class _Place:
    """An open and locked directory.

    Args:
        path: its path; created if it is missing.
        names: recognizes files of skbcapd; numbers continue after the existing ones.

    Raises:
        FileError: it cannot be created or read, or another capture writes to it.
    """

    def __init__(self, path: Path, names: Names) -> None:
        self._stack = contextlib.ExitStack()
        try:
            _make(path)
            self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._stack.callback(os.close, self.descriptor)
            self._stack.callback(os.close, lock(self.descriptor, path))
            self.crashed = Crashed(self.descriptor, path)
            self._stack.callback(self.crashed.close)
            numbers = self._finish_crashed(names)
            self.listing = Listing(self.descriptor, names.number_of)
            self._stack.callback(self.listing.close)
        except OSError as error:
            self.close()
            raise FileError(f"{path}: {error.strerror}; expected a directory to write captures to") from None
        except FileError:
            self.close()
            raise
        self.link = Link(self.descriptor)
        numbers += [entry.number for entry in self.listing]
        names.last = max([names.last, *(number for number in numbers if number < NUMBER_MAX)])

    def close(self) -> None:
        """Close the directory, so that another capture can use it."""
        self._stack.close()

    def _finish_crashed(self, names: Names) -> list[int]:
        """Finish files of earlier runs; returns the numbers in their names."""
        numbers = []
        for each in sorted(os.listdir(self.descriptor)):  # noqa: PTH208  no path, a descriptor
            name = each.removesuffix(".part")
            number = names.number_of(name)
            if name == each or not number:
                continue
            numbers.append(number)
            if name.endswith(COMPRESSED):
                self.crashed.delete(each)
            else:
                self.crashed.finish(name)
        return numbers


class CaptureDirectory:
    """The directory of one capture.

    Args:
        path: its path; created if it is missing.
        template: template of file names, with {host}, {time} and {number}.
        keep: limits of retention.
        mode: permission bits of files.
        owner: user and group ids of files; -1: of the process. If owner or mode cannot be set, one
            message is logged, and the capture continues: a file with the wrong owner is better than
            no file.

    Raises:
        FileError: it cannot be created or read, or another capture writes to it.
    """

    def __init__(
        self,
        path: Path,
        template: str = "skbcapd-{host}-{time}-{number}.pcapng",
        keep: Keep | None = None,
        mode: int = MODE,
        owner: tuple[int, int] = SELF,
    ) -> None:
        self.path = path
        self.retention = Retention(path, keep or Keep())
        self._mode, self._owner = mode, owner
        self._names = Names(template)
        self._is_told = False  # whether it was logged that the owner cannot be set
        # one thread each, so files get their names in order
        self._writer, self._finisher = Worker("writer"), Worker("finisher")
        self._opener: Patience[CaptureFile] = Patience("opener")
        self._buffers = Buffers()
        self._finishing: deque[_Finishing] = deque()
        self._place = _Place(path, self._names)
        self.retention.begin(self._names.last)

    @property
    def descriptor(self) -> int:
        """Descriptor of the directory; another one after the directory was replaced."""
        return self._place.descriptor

    @property
    def is_there(self) -> bool:
        """Whether the path still refers to the locked directory."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self.descriptor))
        except OSError:
            return False

    @property
    def last_good(self) -> Path | None:
        """The last finished file, if it exists."""
        name = self._place.link.last_good
        return self.path / name if name and (self.path / name).is_file() else None

    @property
    def waiting(self) -> int:
        """Number of files that are not renamed yet."""
        return sum(not one.is_done for one in self._finishing)

    def new_file(self, *, is_dump: bool = False) -> CaptureFile:
        """Start the next file.

        Args:
            is_dump: the file is a dump.

        Raises:
            FileError: it cannot be created, or the disk is too slow.
        """
        if not self.is_there:
            if self.waiting or self._opener.is_waiting:
                raise FileError(f"{self.path}: it was replaced, and files of the old one are not yet on its disk")
            self._discard_late()
            old, self._place = self._place, _Place(self.path, self._names)
            old.close()
        try:
            return self._opener.call(lambda: self._open(is_dump=is_dump))
        except TimeoutError:
            raise FileError(f"{self.path}: the disk has not made a file within {PATIENCE_S} s") from None

    def _open(self, *, is_dump: bool) -> CaptureFile:
        """Create the next file; the disk can be slow."""
        file = CaptureFile(
            self.path / self._names.next(),
            part=True,
            mode=0o600,
            directory=self.descriptor,
            jobs=self._writer,
            keep_free=self.retention.keep.free,
            buffers=self._buffers,
        )
        self._give(file)
        if is_dump:
            with contextlib.suppress(OSError):  # the file system has no extended attributes
                os.setxattr(file.descriptor, DUMP_MARK, b"1")
        return file

    def _discard_late(self) -> None:
        """Delete a file that was created too late."""
        if file := self._opener.late():
            with contextlib.suppress(OSError):
                os.unlink(file.working_path.name, dir_fd=self.descriptor)
            os.close(file.descriptor)

    def begin(self, file: CaptureFile) -> None:
        """The file has its header: when that is on the disk, `current.pcapng` points to it."""
        file.stream.flush(whole=True)
        file.header_size = file.stream.size
        link = self._place.link

        def point() -> None:
            if file.stream.error is None:
                link.point_at(file.working_path.name)

        self._writer.do(point)

    def finish(self, file: CaptureFile) -> None:
        """Write the buffered blocks, and let a thread close and rename the file; see `finished`."""
        file.stream.flush(whole=True)
        one, link = _Finishing(file), self._place.link
        self._finishing.append(one)
        self._writer.do(lambda: self._finisher.do(lambda: _close(one, link)))

    def finished(self, *, wait: bool = False) -> Iterator[tuple[CaptureFile, FileError | None]]:
        """Files that were finished since the last call, in order, each with a FileError if a write
        has failed.

        Args:
            wait: wait for all files.
        """
        if wait:
            self.wait()
        while self._finishing and self._finishing[0].is_done:
            one = self._finishing.popleft()
            yield one.file, one.error

    def wait(self, timeout_s: float = float("inf")) -> bool:
        """Wait until all files are renamed, but at most so many seconds; returns whether they are."""
        return wait_until(lambda: not self.waiting, timeout_s)

    def rename(self, old: str, new: str) -> None:
        """A finished file was renamed: if `current.pcapng` points to it, point to the new name."""
        self._place.link.rename(old, new)

    def has_room(self, size: int) -> bool:
        """Whether so many bytes can be written without using the free space that must be left."""
        return self.retention.has_room(self.descriptor, size)

    def tick(self) -> None:
        """Called once a second: repair after a crash, and retention."""
        self._place.crashed.tick()
        self.clean()

    def clean(self, room: int = 0) -> None:
        """Delete the oldest files until the limits of retention are kept.

        Args:
            room: additional free space in bytes.
        """
        self.retention.clean(self.descriptor, self._place.listing, room)

    def close(self, timeout_s: float = STOP_S) -> None:
        """Close the directory, when all files are finished or the timeout has passed."""
        is_over = self.wait(timeout_s)
        self._discard_late()
        if is_over and not self._opener.is_waiting:  # otherwise a thread still needs it
            self._place.close()

    def plain(self) -> list[Path]:
        """Finished files that are not compressed, the oldest first."""
        return [self.path / entry.name for entry in self._place.listing if not entry.name.endswith(COMPRESSED)]

    def _give(self, file: CaptureFile) -> None:
        """Set owner and mode of a file, independently of the umask."""
        try:
            if self._owner != SELF:
                os.fchown(file.descriptor, *self._owner)
        except OSError as error:
            if not self._is_told:
                _LOG.warning(
                    "%s: %s; expected to set files.permissions and files.owner. Files keep the owner of the process. "
                    "In a systemd unit, SupplementaryGroups= allows a group",
                    file.working_path,
                    error.strerror,
                )
            self._is_told = True
        with contextlib.suppress(OSError):
            os.fchmod(file.descriptor, self._mode)


def _close(one: _Finishing, link: Link) -> None:
    """Close and rename a file; called in the thread that waits for the disk."""
    file = one.file
    try:
        is_kept = file.close()
    except FileError as error:
        one.error = error
        is_kept = file.path.exists()
    if is_kept:
        link.finish(file.working_path.name, file.path.name)
    elif not file.working_path.exists():
        link.finish(file.working_path.name, "")
    one.is_done = True


def _make(path: Path) -> None:
    """Create a directory, and missing parents, so that other users cannot write to them.

    Raises:
        OSError: it cannot be created.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing[1:]):
        each.mkdir(0o755, exist_ok=True)
    path.mkdir(0o750, exist_ok=True)


def ask_for_dump(path: Path, proc: Path = Path("/proc")) -> Path:
    """Make the daemon that has locked a directory write a dump, and wait for the file.

    The lock shows its process id, so the id is never outdated. A process without a handler for
    SIGUSR2 gets no signal.

    Args:
        path: path of the directory.
        proc: directory of procfs.

    Returns:
        The file with the dump.

    Raises:
        FileError: no process writes to the directory, or no dump was written.
    """
    link = path / CURRENT
    before = _target(link)
    daemon = daemon_of(path, proc)
    try:
        os.kill(daemon, signal.SIGUSR2)
    except OSError as error:
        raise FileError(
            f"process {daemon}: {error.strerror}; expected to send it SIGUSR2", "run this as its user or as root"
        ) from None
    end, seen = time.monotonic() + _DUMP_S, (before, 0)
    while time.monotonic() < end:
        now = _target(link)
        if now != before and now and not now.endswith(".part"):
            return path / now
        if (now, _size(path / now)) != seen:  # the disk is slow
            end, seen = time.monotonic() + _DUMP_S, (now, _size(path / now))
        time.sleep(0.01)
    raise FileError(f"{path}: no dump was written within {_DUMP_S:.0f} s", f"the log of process {daemon} says why")


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
