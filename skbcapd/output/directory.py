"""The directory of capture files: used by one daemon at a time; names files, and deletes the
oldest.

In: the settings of files. Out: the next file to write to; finished files with their names; the
oldest are deleted.

The rules: only files with names of skbcapd are touched, and never the one being written. All names
are relative to the descriptor of the directory, wherever its path leads now. A file gets its name
when it is completely on the disk. The disk can be slow in all of this, also to check whether a file
exists: threads do it, and the capture waits for them for PATIENCE_S at most.

    thread     what it does
    opener     creates the next file, and opens the directory again if it was replaced
    writer     writes pieces, and makes `current.pcapng` point to a file that has its header
    finisher   calls fsync for finished files, and renames them
    keeper     everything else: retention, compression, repair, check of the current file
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from skbcapd.errors import FileError
from skbcapd.output.aligned import Buffers
from skbcapd.output.block_writer import MODE, SELF, STOP_S, CaptureFile
from skbcapd.output.compressor import Compressor
from skbcapd.output.crashed import Crashed
from skbcapd.output.disk import WriteMode
from skbcapd.output.listing import Listing
from skbcapd.output.lock import lock
from skbcapd.output.naming import COMPRESSED, INDEX, NUMBER_MAX, Link, Names
from skbcapd.output.retention import DUMP_MARK, Keep, Retention
from skbcapd.worker import TimedCall, Worker, wait_until

_LOG = logging.getLogger(__name__)
_CLOSE_S = 1.0  # for the keeper, at the end


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
            for name in self.listing.without_files():
                self.crashed.delete(name)
        except OSError as error:
            self.close()
            raise FileError(f"{path}: {error.strerror}; expected a directory to write captures to") from None
        except FileError:
            self.close()
            raise
        self.link = Link(self.descriptor)
        self.write_mode = WriteMode(time.monotonic)
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
            number = names.number_of(name.removesuffix(INDEX))
            if name == each or not number:
                continue
            numbers.append(number)
            if name.endswith(COMPRESSED):  # also an index
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
        self._is_owner_error_logged = False  # whether it was logged that the owner cannot be set
        self._trouble = ""  # the last error of the keeper that was logged
        # one thread each, so files get their names in order
        self._writer, self._finisher = Worker("writer"), Worker("finisher")
        self._opener: TimedCall[CaptureFile] = TimedCall("opener")
        self._keeper: TimedCall[None] = TimedCall("keeper")
        self._buffers = Buffers()
        self._finishing: deque[_Finishing] = deque()
        self._place = _Place(path, self._names)
        self._replaced: deque[_Place] = deque()  # the keeper closes them
        self._at_work: CaptureFile | None = None
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
        """The last finished file, if it existed a second ago."""
        name = self._place.link.last_good
        return self.path / name if name else None

    @property
    def waiting(self) -> int:
        """Number of files that are not renamed yet."""
        return sum(not one.is_done for one in self._finishing)

    def new_file(
        self, *, is_dump: bool = False, room: int | None = None, timeout_s: float | None = None
    ) -> CaptureFile:
        """Start the next file.

        Args:
            is_dump: the file is a dump.
            room: required free space in addition to `Keep.free`, in bytes; None: not checked.
            timeout_s: time to wait for the disk; None: PATIENCE_S.

        Raises:
            FileError: it cannot be created.
            TimeoutError: the disk is too slow; a later call returns the file.
        """
        return self._opener.call(lambda: self._open(is_dump=is_dump, room=room), timeout_s)

    def _open(self, *, is_dump: bool, room: int | None) -> CaptureFile:
        """Create the next file; the disk can be slow."""
        if not self.is_there:
            if self.waiting:
                raise FileError(f"{self.path}: it was replaced, and files of the old one are not yet on its disk")
            new = _Place(self.path, self._names)
            self._replaced.append(self._place)
            self._place = new
        elif room is not None and not self.retention.has_room(self.descriptor, room):
            raise FileError(f"{self.path}: free space is below files.keep_free")
        file = CaptureFile(
            self.path / self._names.next(),
            part=True,
            mode=0o600,
            directory=self.descriptor,
            jobs=self._writer,
            keep_free=self.retention.keep.free,
            buffers=self._buffers,
            write_mode=self._place.write_mode,
        )
        self._give(file)
        if is_dump:
            with contextlib.suppress(OSError):  # the file system has no extended attributes
                os.setxattr(file.descriptor, DUMP_MARK, b"1")
        return file

    def begin(self, file: CaptureFile) -> None:
        """The file has its header: when that is on the disk, `current.pcapng` points to it."""
        file.stream.flush(whole=True)
        file.header_size = file.stream.size
        self._at_work = file
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

    def tick(self, compressor: Compressor | None = None) -> None:
        """Called each second while `is_at_work`, otherwise every FILE_S: check the current file, repair after a crash,
        compression, retention.
        """

        def look_after(place: _Place) -> None:
            if self._at_work:
                self._at_work.check()
            place.link.check()
            if (name := place.crashed.tick()) and compressor:
                compressor.add(self.path / name)
            if compressor and (names := compressor.tick(place.descriptor)):
                place.link.rename(*names)
            self.retention.clean(place.descriptor, place.listing)

        self._keep(look_after)

    def is_at_work(self, compressor: Compressor | None = None) -> bool:
        """Whether files are being finished, repaired or compressed, or the disk is late."""
        is_late = self._keeper.is_waiting or self._opener.is_waiting
        is_compressing = compressor is not None and compressor.is_at_work
        return is_late or is_compressing or bool(self.waiting or self._replaced) or not self._place.crashed.is_over

    def clean(self, room: int = 0) -> None:
        """Delete the oldest files until the limits of retention are kept.

        Args:
            room: additional free space in bytes.
        """
        self._keep(lambda place: self.retention.clean(place.descriptor, place.listing, room))

    def close(self, compressor: Compressor | None = None, timeout_s: float = STOP_S) -> None:
        """Close the directory, when all files are finished or the timeout has passed.

        Args:
            compressor: it is stopped.
            timeout_s: seconds to wait for files that are not finished.
        """
        is_over = self.wait(timeout_s)
        late = self._opener.late()
        is_over = is_over and not self._opener.is_waiting
        if compressor:
            compressor.kill()

        def close(place: _Place) -> None:
            self.retention.clean(place.descriptor, place.listing)
            if compressor:
                compressor.close()
            if late:  # created too late to be used
                with contextlib.suppress(OSError):
                    os.unlink(late.working_path.name, dir_fd=place.descriptor)
                os.close(late.descriptor)
            if is_over:  # otherwise a thread still needs it
                place.close()

        self._keep(close, _CLOSE_S)

    def _keep(self, job: Callable[[_Place], None], timeout_s: float | None = None) -> None:
        """Do a job in the keeper thread; nothing if it is still busy with an earlier one."""

        def do() -> None:
            while self._replaced:
                self._replaced.popleft().close()
            job(self._place)

        self._keeper.late()  # discard the result of an earlier job
        try:
            self._keeper.call(do, timeout_s)
        except TimeoutError:
            return
        except OSError as error:
            trouble = error.strerror or "error"
            if trouble != self._trouble:
                _LOG.warning("%s: %s; expected to check and delete files in it", self.path, trouble)
            self._trouble = trouble
        else:
            self._trouble = ""

    def unprocessed(self, compressor: Compressor) -> list[Path]:
        """Finished files that are not compressed or have no index, the oldest first."""
        listing = self._place.listing
        return [
            self.path / entry.name
            for entry in listing
            if compressor.needs(entry.name, has_index=listing.has_index(entry.name))
        ]

    def _give(self, file: CaptureFile) -> None:
        """Set owner and mode of a file, independently of the umask."""
        try:
            if self._owner != SELF:
                os.fchown(file.descriptor, *self._owner)
        except OSError as error:
            if not self._is_owner_error_logged:
                _LOG.warning(
                    "%s: %s; expected to set files.permissions and files.owner. Files keep the owner of the process. "
                    "In a systemd unit, SupplementaryGroups= allows a group",
                    file.working_path,
                    error.strerror,
                )
            self._is_owner_error_logged = True
        with contextlib.suppress(OSError):
            os.fchmod(file.descriptor, self._mode)


def _close(one: _Finishing, link: Link) -> None:
    """Close and rename a file; called in the thread that waits for the disk."""
    file = one.file
    try:
        is_kept = file.close()
    except FileError as error:
        one.error = error
        is_kept = link.is_there(file.path.name)
    if is_kept:
        link.finish(file.working_path.name, file.path.name)
    elif not link.is_there(file.working_path.name):
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
