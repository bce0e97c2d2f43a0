"""Files on this machine, in object storage or on another host, through fsspec.

In: a URL: a path, `s3://bucket/...`. Out: lists of files, bytes, ranges of bytes.

The rules: a file has its name only when it is complete. Each error is a FleetError with the URL. What was opened and
read is counted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from skbcapd.errors import FleetError, UnreachableError
from skbcapd.text_safety import escaped

_LOCAL = {"file", "local"}
_TOGETHER = 64  # files that are fetched at the same time
_TOGETHER_BYTES = 64 << 20  # of them, at most, if each is smaller


class Found(NamedTuple):
    """A file of a list.

    Args:
        path: relative to the storage.
        size: bytes.
        stamp: changes when the file does: its ETag, or the time of its last change.
        changed_s: seconds since 1970 of its last change; 0: not known.
        is_regular: whether it is a file: in a directory, not a FIFO, for example, which nobody may ever write.
    """

    path: str
    size: int
    stamp: str
    changed_s: float
    is_regular: bool = True


@dataclass
class Counts:
    """What was read."""

    opened: int = 0
    bytes: int = 0


class Storage:
    """A directory of files.

    Args:
        url: of the directory. Keys and endpoints come from the environment, as fsspec and its file systems read it.

    Raises:
        FleetError: there is no such kind of storage.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.counts = Counts()
        try:
            self.system, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError, OSError) as error:
            raise FleetError(f"{escaped(url)}: {error}; expected a directory, s3://..., or another URL") from None
        self._root = str(root).rstrip("/")
        protocols = self.system.protocol
        self.is_local = bool(_LOCAL & set([protocols] if isinstance(protocols, str) else protocols))
        # Lists must be those of now.
        with contextlib.suppress(AttributeError):
            self.system.invalidate_cache()

    def full(self, path: str) -> str:
        """The URL of a file, for an engine that reads it itself."""
        return f"{self._root}/{path}" if self.is_local else str(self.system.unstrip_protocol(f"{self._root}/{path}"))

    def expect_there(self) -> None:
        """Check that a directory of this machine exists; of others, nobody can tell.

        Raises:
            FleetError: it does not.
        """
        if self.is_local and not Path(self._root).is_dir():
            raise FleetError(f"{escaped(self.url)}: no such directory; expected one with index/raw or index/day")

    def files(self, under: str, ending: str) -> list[Found]:
        """The files below a directory whose names have an ending; none if there is no directory."""
        with self._errors(under):
            try:
                found = self.system.find(f"{self._root}/{under}", detail=True)
            except FileNotFoundError:
                return []
        skip = len(self._root) + 1
        return sorted(_found(path[skip:], said) for path, said in found.items() if path.endswith(ending))

    def read(self, path: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: it does not exist.
        """
        return self._counted(path, None, None)

    def part(self, path: str, begin: int, end: int | None) -> bytes:
        """The bytes of a file from `begin` to before `end`; fewer where it ends; None: to its end.

        Raises:
            FileNotFoundError: it does not exist.
        """
        return self._counted(path, begin, end)

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: it does not exist.
        """
        with self._errors(path):
            return int(self.system.size(f"{self._root}/{path}") or 0)

    def read_each(self, found: Iterable[Found]) -> Iterator[tuple[Found, bytes | FleetError | None]]:
        """The bytes of files, in their order; None: it does not exist. Some are fetched at the same time.

        Raises:
            UnreachableError: the storage has failed.
        """
        chosen = list(found)
        for each in chosen:
            if not each.is_regular:
                what = f"{escaped(self.url)}/{escaped(each.path)}"
                yield each, FleetError(f"{what}: not a regular file; expected an index file; not added")
        for group in _groups(each for each in chosen if each.is_regular):
            paths = [f"{self._root}/{each.path}" for each in group]
            with self._errors(group[0].path):
                fetched = self.system.cat_ranges(paths, None, None, on_error="return")
            for each, data in zip(group, fetched, strict=True):
                yield each, self._checked(each.path, data)

    def _checked(self, path: str, data: bytes | Exception) -> bytes | FleetError | None:
        try:
            with self._errors(path):
                if isinstance(data, Exception):
                    raise data
        except FileNotFoundError:
            return None
        except UnreachableError:
            raise
        except FleetError as error:
            return error
        self.counts.opened += 1
        self.counts.bytes += len(data)
        return data

    def _counted(self, path: str, begin: int | None, end: int | None) -> bytes:
        with self._errors(path):
            data: bytes = self.system.cat_file(f"{self._root}/{path}", start=begin, end=end)
        self.counts.opened += 1
        self.counts.bytes += len(data)
        return data

    def put(self, source: Path, path: str) -> None:
        """Store a file of this machine, whole or not at all."""
        with self._errors(path):
            target = f"{self._root}/{path}"
            if not self.is_local:
                self._make_parent(target)
                self.system.put_file(str(source), target)
                return
            goal = Path(target)
            goal.parent.mkdir(parents=True, exist_ok=True)
            working = goal.with_name(f".{goal.name}.part")
            with source.open("rb") as read, working.open("wb") as written:
                while data := read.read(1 << 20):
                    written.write(data)
                written.flush()
                os.fsync(written.fileno())
            working.replace(goal)
            directory = os.open(goal.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _make_parent(self, target: str) -> None:
        with contextlib.suppress(NotImplementedError, FileExistsError):
            self.system.makedirs(target.rpartition("/")[0], exist_ok=True)

    def remove(self, path: str) -> None:
        """Delete a file; it need not exist."""
        with self._errors(path), contextlib.suppress(FileNotFoundError):
            self.system.rm_file(f"{self._root}/{path}")

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001  each file system has errors of its own
            kind = FleetError if self.is_local or isinstance(error, PermissionError) else UnreachableError
            why = " ".join(str(error).split()) or type(error).__name__
            raise kind(f"{escaped(self.url)}/{escaped(path)}: {escaped(why[:300])}; expected to reach it") from None


def _groups(found: Iterable[Found]) -> Iterator[list[Found]]:
    group: list[Found] = []
    size = 0
    for each in found:
        if group and (len(group) == _TOGETHER or size + each.size > _TOGETHER_BYTES):
            yield group
            group, size = [], 0
        group.append(each)
        size += each.size
    if group:
        yield group


def _found(path: str, said: dict[str, Any]) -> Found:
    changed = said.get("mtime", said.get("LastModified", 0))
    changed_s = changed.timestamp() if isinstance(changed, datetime) else float(changed or 0)
    # fsspec has another type for each link, also for one to a file.
    is_regular = said.get("type", "file") == "file" or (bool(said.get("islink")) and Path(said["name"]).is_file())
    return Found(path, int(said.get("size") or 0), str(said.get("ETag") or changed_s), changed_s, is_regular)
