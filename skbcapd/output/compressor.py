"""Compresses finished files with a separate process, one at a time, at the lowest priority.

In: paths. Out: NAME.gz or NAME.zst, in place of NAME.

The rules: the uncompressed file is deleted only when the compressed one is complete and has its
name. If the compressor is interrupted, the uncompressed file is kept. All names are relative to the
descriptor of the directory, all files are regular files without other links, and the compressed
file is a new one: a user who can write to the directory cannot make skbcapd read or write other
files. The event loop calls `add` and `kill`; the keeper thread of the directory calls the others,
because the disk can be slow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import subprocess
from collections import deque
from dataclasses import dataclass
from pathlib import Path

_LOG = logging.getLogger(__name__)
_PROGRAMS = {"gzip": (".gz", ["gzip", "-c"]), "zstd": (".zst", ["zstd", "-q", "-c"])}
_WAITING_MAX = 1024  # files; the others are not compressed
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAKE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Job:
    """A file that is being compressed: descriptors of the directory, the file and the compressed
    file, and the process.
    """

    path: Path
    directory: int
    plain: int
    target: int
    process: subprocess.Popen[bytes]

    def close(self) -> None:
        for descriptor in (self.directory, self.plain, self.target):
            os.close(descriptor)

    def is_still(self, descriptor: int, name: str) -> bool:
        """Whether a name refers to an open file."""
        found = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        return os.path.samestat(found, os.fstat(descriptor))


class Compressor:
    """Compresses files in the background.

    Args:
        kind: gzip or zstd.
    """

    def __init__(self, kind: str) -> None:
        self._ending, self._command = _PROGRAMS[kind]
        self._waiting: deque[Path] = deque()
        self._at_work: _Job | None = None
        self._is_killed = False

    def add(self, path: Path) -> None:
        """Compress a file after those that were added before."""
        if len(self._waiting) < _WAITING_MAX:
            self._waiting.append(path)

    def tick(self, directory: int) -> tuple[str, str] | None:
        """Check the process: finish a file, and start the next one.

        Args:
            directory: descriptor of the directory of the files.

        Returns:
            The old and new name of a file that was compressed since the last call.
        """
        compressed = None
        if (job := self._at_work) and job.process.poll() is not None:
            compressed = self._finish(job)
            self._at_work = None
        while not self._at_work and self._waiting and not self._is_killed:
            self._at_work = self._start(self._waiting.popleft(), directory)
        return compressed

    def kill(self) -> None:
        """Kill the process, and start no other one; the remaining files are not compressed."""
        self._is_killed = True
        if job := self._at_work:
            job.process.kill()

    def close(self) -> None:
        """Stop, and delete the incomplete compressed file."""
        self.kill()
        job, self._at_work = self._at_work, None
        if job:
            job.process.wait()
            self._discard(job)
            job.close()

    def _start(self, path: Path, directory: int) -> _Job | None:
        part = path.name + self._ending + ".part"
        is_made = False
        with contextlib.ExitStack() as stack:
            try:
                plain = os.open(path.name, _READ, dir_fd=directory)
                stack.callback(os.close, plain)
                status = os.fstat(plain)
                _need(stat.S_ISREG(status.st_mode) and status.st_nlink == 1, "not a regular file")
                target = os.open(part, _MAKE, 0o600, dir_fd=directory)
                stack.callback(os.close, target)
                is_made = True
                place = os.dup(directory)
                stack.callback(os.close, place)
                with contextlib.suppress(OSError):
                    os.fchown(target, status.st_uid, status.st_gid)
                os.fchmod(target, status.st_mode & 0o777)
                _copy_marks(plain, target)
                command = ["nice", "-n", "19", *self._command]
                process = subprocess.Popen(command, stdin=plain, stdout=target, stderr=subprocess.DEVNULL)
            except OSError as error:
                if is_made:
                    with contextlib.suppress(OSError):
                        os.unlink(part, dir_fd=directory)
                if is_made or not isinstance(error, FileNotFoundError):  # else retention has deleted it
                    _LOG.warning("%s: %s; it is not compressed", path, error.strerror)
                return None
            stack.pop_all()
        return _Job(path, place, plain, target, process)

    def _finish(self, job: _Job) -> tuple[str, str] | None:
        name, new = job.path.name, job.path.name + self._ending
        try:
            if job.process.returncode:
                program = self._command[0]
                _LOG.warning("%s: %s ended with %d; it is not compressed", job.path, program, job.process.returncode)
                self._discard(job)
                return None
            os.fsync(job.target)
            status = os.fstat(job.plain)
            os.utime(job.target, ns=(status.st_atime_ns, status.st_mtime_ns))  # age counts from the capture
            _need(job.is_still(job.plain, name) and job.is_still(job.target, new + ".part"), "it was replaced")
            os.rename(new + ".part", new, src_dir_fd=job.directory, dst_dir_fd=job.directory)
            os.unlink(name, dir_fd=job.directory)
        except FileNotFoundError:
            self._discard(job)  # retention has deleted it in the meantime
        except OSError as error:
            _LOG.warning("%s: %s; it is not compressed", job.path, error.strerror)
        else:
            return name, new
        finally:
            job.close()
        return None

    def _discard(self, job: _Job) -> None:
        """Delete the incomplete compressed file, but no other file with its name."""
        part = job.path.name + self._ending + ".part"
        with contextlib.suppress(OSError):
            if job.is_still(job.target, part):
                os.unlink(part, dir_fd=job.directory)


def _need(is_so: bool, why: str) -> None:  # noqa: FBT001  a condition
    """Check a condition.

    Raises:
        OSError: the condition is false.
    """
    if not is_so:
        raise OSError(0, why)


def _copy_marks(plain: int, target: int) -> None:
    """Copy the extended attributes, which mark dumps."""
    with contextlib.suppress(OSError):
        for name in os.listxattr(plain):
            if name.startswith("user."):
                os.setxattr(target, name, os.getxattr(plain, name))
