"""Finished files are packed by a process of its own, one at a time, at the lowest priority.

In: paths. Out: NAME.gz or NAME.zst beside, then in place of, NAME.

The rule: the plain file goes only when the packed one is whole and has its name. An interrupted packer leaves the plain
one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections import deque
from collections.abc import Callable
from pathlib import Path

_PACKERS = {"gzip": (".gz", ["gzip", "-c"]), "zstd": (".zst", ["zstd", "-q", "-c"])}
_WAITING_MAX = 1024  # files; the rest stay plain


class Compressor:
    """Packs files behind the capture's back.

    Args:
        kind: gzip or zstd.
        say: takes one line for the log.
    """

    def __init__(self, kind: str, say: Callable[[str], None] = lambda _line: None) -> None:
        self._ending, self._command = _PACKERS[kind]
        self._say = say
        self._waiting: deque[Path] = deque()
        self._at_work: tuple[Path, Path, subprocess.Popen[bytes]] | None = None

    def add(self, path: Path) -> None:
        """Pack a file when those before it are done."""
        if len(self._waiting) < _WAITING_MAX:
            self._waiting.append(path)

    def tick(self) -> tuple[str, str] | None:
        """Look after the process: is it done, is there another file?

        Returns:
            The old and new name of a file that was packed since the last call.
        """
        packed = None
        if self._at_work and self._at_work[2].poll() is not None:
            packed = self._finish(*self._at_work)
            self._at_work = None
        while not self._at_work and self._waiting:
            self._start(self._waiting.popleft())
        return packed

    def close(self) -> None:
        """Stop; what is not done stays plain."""
        if self._at_work:
            _, packed, process = self._at_work
            process.kill()
            process.wait()
            packed.unlink(missing_ok=True)
        self._at_work = None

    def _start(self, path: Path) -> None:
        packed = path.with_name(path.name + self._ending + ".part")
        try:
            with path.open("rb") as plain, packed.open("wb") as target:
                status = os.fstat(plain.fileno())
                os.fchmod(target.fileno(), status.st_mode & 0o777)
                with contextlib.suppress(OSError):
                    os.fchown(target.fileno(), status.st_uid, status.st_gid)
                command = ["nice", "-n", "19", *self._command]
                process = subprocess.Popen(command, stdin=plain, stdout=target, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            return  # already too old to be kept
        except OSError as error:
            self._say(f"{path}: {error.strerror}; it stays as it is, not packed")
            return
        self._at_work = path, packed, process

    def _finish(self, path: Path, packed: Path, process: subprocess.Popen[bytes]) -> tuple[str, str] | None:
        try:
            if process.returncode:
                packed.unlink()
                self._say(f"{path}: {self._command[0]} ended with {process.returncode}; it stays as it is, not packed")
                return None
            with packed.open("rb") as file:
                os.fsync(file.fileno())
            status = path.stat()
            os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))  # age counts from the capture
            packed.rename(path.with_name(path.name + self._ending))
            path.unlink()
            return path.name, path.name + self._ending
        except FileNotFoundError:
            packed.unlink(missing_ok=True)  # it was too old to be kept meanwhile
        except OSError as error:
            self._say(f"{path}: {error.strerror}; it stays as it is, not packed")
        return None
