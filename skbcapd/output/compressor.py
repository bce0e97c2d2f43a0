"""Compresses and indexes finished files with separate processes, one at a time, at the lowest priority.

In: paths. Out: NAME.gz or NAME.zst in place of NAME, and its index beside it.

The rules: the uncompressed file is deleted only when the compressed one is complete and has its
name. If a process is interrupted, the uncompressed file is kept. An index has its name only when it
is complete, and gets it before the compressed file: a crash leaves no file without its index for
which it is not made again. All names are relative to the descriptor of the directory, all files are
regular files without other links, and what is written is a new file: a user who can write to the
directory cannot make skbcapd read or write other files. The event loop calls `add` and `kill`; the
keeper thread of the directory calls the others, because the disk can be slow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from skbcapd.child import memory_file
from skbcapd.output import pack
from skbcapd.output.naming import COMPRESSED, INDEX
from skbcapd.text_safety import escaped_bytes

_LOG = logging.getLogger(__name__)
_PROGRAMS = {"none": ("", []), "gzip": (".gz", ["gzip", "-c"]), "zstd": (".zst", ["zstd", "-q", "-c"])}
_WAITING_MAX = 1024  # files; the others are left as they are until the next start
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NICE = ("nice", "-n", "19")
PARTIAL = 3
"""Exit code of the program that makes an index: the file could not be read to its end, and the index has what is
before.
"""


@dataclass(frozen=True, slots=True)
class _New:
    """A file that is being written, NAME.part."""

    name: str
    descriptor: int

    @property
    def part(self) -> str:
        """Its name until it is complete."""
        return f"{self.name}.part"


@dataclass(eq=False, slots=True)
class _Job:
    """A file that is being compressed, then indexed: what is open, and the process.

    Args:
        path: its path.
        stack: closes all of it.
        directory: descriptor of the directory.
        source: descriptor of the file.
        compressed: the compressed file; None: it is not compressed.
        index: the index; None: there is none, or it has failed.
        errors: what the process writes to stderr.
        process: the one at work.
        is_indexing: whether that is the one that makes the index.
    """

    path: Path
    stack: contextlib.ExitStack
    directory: int
    source: int
    compressed: _New | None
    index: _New | None
    errors: IO[bytes]
    process: subprocess.Popen[bytes]
    is_indexing: bool

    def is_still(self, descriptor: int, name: str) -> bool:
        """Whether a name refers to an open file."""
        found = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        return os.path.samestat(found, os.fstat(descriptor))

    def said(self) -> str:
        """The last line that the process wrote to stderr."""
        self.errors.seek(0)
        return escaped_bytes(self.errors.read(4000).strip().rpartition(b"\n")[2])

    def publish(self, new: _New) -> None:
        """Give a complete file its name, and the time of the capture: ages count from it.

        Raises:
            OSError: it was replaced, or the disk fails.
        """
        status = os.fstat(self.source)
        os.utime(new.descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(new.descriptor)
        _need(self.is_still(self.source, self.path.name) and self.is_still(new.descriptor, new.part), "it was replaced")
        os.rename(new.part, new.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)

    def discard(self, new: _New | None) -> None:
        """Delete an incomplete file, but no other file with its name."""
        with contextlib.suppress(OSError):
            if new is not None and self.is_still(new.descriptor, new.part):
                os.unlink(new.part, dir_fd=self.directory)


class Compressor:
    """Compresses and indexes files in the background.

    Args:
        kind: gzip, zstd or none.
        index: the command that reads a capture file from stdin and writes its index to stdout; the name of the file and
            a descriptor of the file as it is stored are added. Empty: no indexes.
        is_seekable: whether parts of a compressed file can be decompressed.
    """

    def __init__(self, kind: str, index: Sequence[str] = (), *, is_seekable: bool = False) -> None:
        self._kind = kind
        self._ending, self._command = _PROGRAMS[kind]
        if is_seekable and self._command:
            self._command = pack.command(kind)
        self._index = index
        self._waiting: deque[tuple[Path, bool]] = deque()  # and whether it may be compressed
        self._at_work: _Job | None = None
        self._is_killed = False
        self.indexed = 0
        """Indexes that were written."""
        self.index_errors = 0
        """Files that have no index, or an index of what is before an error."""

    def add(self, path: Path) -> None:
        """Process a file after those that were added before."""
        if len(self._waiting) < _WAITING_MAX:
            self._waiting.append((path, True))

    @property
    def is_at_work(self) -> bool:
        """Whether files are being processed, or wait for it."""
        return bool(self._at_work or self._waiting)

    def needs(self, name: str, *, has_index: bool) -> bool:
        """Whether a finished file of an earlier run must still be processed."""
        is_plain = not name.endswith(COMPRESSED)
        return bool((self._command and is_plain) or (self._index and not has_index))

    def tick(self, directory: int) -> tuple[str, str] | None:
        """Check the process: finish a file, and start the next one.

        Args:
            directory: descriptor of the directory of the files.

        Returns:
            The old and new name of a file that was compressed since the last call.
        """
        compressed = None
        if (job := self._at_work) and job.process.poll() is not None and not self._continues(job):
            try:
                compressed = self._finish(job)
            finally:
                self._at_work = None
        while not self._at_work and self._waiting and not self._is_killed:
            try:
                self._at_work = self._start(*self._waiting[0], directory)
            finally:
                self._waiting.popleft()
        return compressed

    def kill(self) -> None:
        """Kill the process, and start no other one; the remaining files are left as they are."""
        self._is_killed = True
        if job := self._at_work:
            job.process.kill()

    def close(self) -> None:
        """Stop, and delete the incomplete files."""
        self.kill()
        job, self._at_work = self._at_work, None
        if job:
            job.process.wait()
            self._abandon(job)

    def _start(self, path: Path, may_compress: bool, directory: int) -> _Job | None:  # noqa: FBT001  of a tuple
        compresses = may_compress and bool(self._command) and not path.name.endswith(COMPRESSED)
        if not compresses and not self._index:
            return None
        name = path.name + (self._ending if compresses else "")
        made: list[_New] = []
        with contextlib.ExitStack() as stack:
            try:
                source = os.open(path.name, _READ, dir_fd=directory)
                stack.callback(os.close, source)
                status = os.fstat(source)
                _need(stat.S_ISREG(status.st_mode) and status.st_nlink == 1, "not a regular file")
                place = os.dup(directory)
                stack.callback(os.close, place)
                errors = stack.enter_context(memory_file("errors"))
                for new in ((name,) if compresses else ()) + ((name + INDEX,) if self._index else ()):
                    made.append(_New(new, os.open(f"{new}.part", _MAKE, 0o600, dir_fd=place)))
                    stack.callback(os.close, made[-1].descriptor)
                    _copy_status(source, made[-1].descriptor)
                command = self._command if compresses else (*self._index, name, "0")
                process = _launch(command, source, made[0].descriptor, errors)
            except OSError as error:
                for each in made:
                    with contextlib.suppress(OSError):
                        os.unlink(each.part, dir_fd=directory)
                if made or not isinstance(error, FileNotFoundError):  # else retention has deleted it
                    self._fail(path, error.strerror or "error", is_indexing=not compresses)
                return None
            target, index = (made[0] if compresses else None), (made[-1] if self._index else None)
            return _Job(path, stack.pop_all(), place, source, target, index, errors, process, not compresses)

    def _continues(self, job: _Job) -> bool:
        """A process has ended: start the one that makes the index, after the one that compresses."""
        code = job.process.returncode
        if job.is_indexing:
            if code not in {0, PARTIAL}:
                self._fail(job.path, job.said() or f"ended with {code}", is_indexing=True)
                job.discard(job.index)
                job.index = None
            elif code == PARTIAL:
                self.index_errors += 1
                _LOG.warning("%s: indexed up to an error: %s", job.path, job.said())
            return False
        if code or job.index is None:
            return False
        if self._is_killed:  # it is made at the next start
            job.discard(job.index)
            job.index = None
            return False
        name = job.path.name + self._ending
        try:
            os.lseek(job.source, 0, os.SEEK_SET)
            stored = job.compressed.descriptor if job.compressed else 0
            command = (*self._index, name, str(stored))
            job.process = _launch(command, job.source, job.index.descriptor, job.errors, (stored,))
        except OSError as error:
            self._fail(job.path, error.strerror or "error", is_indexing=True)
            job.discard(job.index)
            job.index = None
            return False
        job.is_indexing = True
        return True

    def _finish(self, job: _Job) -> tuple[str, str] | None:
        """Give complete files their names; the old and new name, if the file was compressed."""
        if not job.is_indexing and job.process.returncode:
            _LOG.warning("%s: %s ended with %d; it is not compressed", job.path, self._kind, job.process.returncode)
            self._abandon(job)
            if self._index:
                self._waiting.appendleft((job.path, False))
            return None
        is_indexing = True
        try:
            if job.index is not None:
                job.publish(job.index)
                self.indexed += 1
            is_indexing = False
            if job.compressed is not None:
                job.publish(job.compressed)
                os.unlink(job.path.name, dir_fd=job.directory)
                with contextlib.suppress(OSError):  # of an earlier run without compression
                    os.unlink(job.path.name + INDEX, dir_fd=job.directory)
                return job.path.name, job.compressed.name
        except FileNotFoundError:
            pass  # retention has deleted it in the meantime
        except OSError as error:
            self._fail(job.path, error.strerror or "error", is_indexing=is_indexing)
        finally:
            self._abandon(job)  # what has its name now is not deleted
        return None

    def _abandon(self, job: _Job) -> None:
        """Delete what is not complete, and close everything."""
        job.discard(job.compressed)
        job.discard(job.index)
        job.stack.close()

    def _fail(self, path: Path, why: str, *, is_indexing: bool) -> None:
        if is_indexing:
            self.index_errors += 1
        _LOG.warning("%s: %s; it %s", path, why, "has no index" if is_indexing else "is not compressed")


def _launch(
    command: Sequence[str], source: int, target: int, errors: IO[bytes], others: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program that reads one file and writes another; it also gets other descriptors.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen([*_NICE, *command], stdin=source, stdout=target, stderr=errors, pass_fds=others)


def _need(is_so: bool, why: str) -> None:  # noqa: FBT001  a condition
    """Check a condition.

    Raises:
        OSError: the condition is false.
    """
    if not is_so:
        raise OSError(0, why)


def _copy_status(source: int, target: int) -> None:
    """Copy owner, permissions, and the extended attributes, which mark dumps."""
    status = os.fstat(source)
    with contextlib.suppress(OSError):
        os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, status.st_mode & 0o777)
    with contextlib.suppress(OSError):
        for name in os.listxattr(source):
            if name.startswith("user."):
                os.setxattr(target, name, os.getxattr(source, name))
