"""Keeps what a start has computed for the next one: the compiled program, the answers from BTF.

In: a name, which is the digest of all inputs, and bytes. Out: the same bytes, at a later start.

The rules: the content of a file is right if the file exists, because its name depends on all
inputs. It is used only if it belongs to the user of skbcapd and is complete. No capture and no
reload waits for the disk longer than WAIT_S; without a cache everything is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from skbcapd.worker import TimedCall

WAIT_S = 1.0
_KEPT_MAX = 16  # files; one for each set of filters and each kernel, about 200 KiB
_KEPT_NAMES = "[0-9a-f]" * 64 + ".*"  # the directory can have other files


def digest(parts: Iterable[bytes]) -> str:
    """The name of a file for these inputs, in this order."""
    found = hashlib.sha256()
    for part in parts:
        found.update(b"%d:" % len(part))
        found.update(part)
    return found.hexdigest()


class Cache:
    """One file of the cache.

    Args:
        name: from `digest`.
    """

    def __init__(self, name: str) -> None:
        # The cache directory of the service manager (one or several), or its default; without a
        # directory nothing is cached.
        directory = os.environ.get("CACHE_DIRECTORY", "").split(":")[0] or "/var/cache/skbcapd"
        self._path = Path(directory, f"{name}.json")
        self._disk: TimedCall[bytes | None] = TimedCall("cache", WAIT_S)

    def get(self) -> bytes | None:
        """The content; None if there is none, if it is not ours or incomplete, or if the disk is too slow."""
        try:
            return self._disk.call(lambda: _kept(self._path))
        except TimeoutError:
            return None
        finally:
            self._disk.end_thread()  # this process may fork soon

    def put(self, body: bytes) -> None:
        """Write the content, and delete the oldest files; not if the disk is too slow."""
        if not self._disk.is_waiting:
            with contextlib.suppress(OSError, TimeoutError):
                self._disk.call(lambda: _keep(body, self._path))


def _kept(path: Path) -> bytes | None:
    """The content of a file; None if there is none, or if it is not ours or incomplete."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                return None
            seal, _, body = file.read().partition(b"\n")
        if _seal(path, body) != seal:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used file is deleted first
    except OSError:
        return None
    return body


def _seal(path: Path, body: bytes) -> bytes:
    """The first bytes of a file, which must match its name."""
    return hashlib.sha256(path.stem.encode() + body).hexdigest().encode()


def _keep(body: bytes, path: Path) -> None:
    """Write a file, and delete the oldest ones.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(_seal(path, body) + b"\n" + body)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    files = sorted(path.parent.glob(_KEPT_NAMES), key=lambda other: other.stat().st_mtime)
    for other in files[:-_KEPT_MAX]:
        other.unlink(missing_ok=True)
