"""Directories of captures, as tests of their parts see them."""

from __future__ import annotations

from pathlib import Path

from skbcapd.output import lock
from skbcapd.output.directory import CaptureDirectory
from skbcapd.output.naming import CURRENT
from tests.support.writer import block

SECTION = block(0x0A0D0D0A, 0, b"", b"")


def names(path: Path) -> list[str]:
    """The names in a directory, without the link and the lock."""
    return sorted(entry.name for entry in path.iterdir() if entry.name not in {CURRENT, lock.NAME})


def write(directory: CaptureDirectory, data: bytes) -> Path:
    """A finished file."""
    file = directory.new_file()
    file.stream.write(data)
    directory.finish(file)
    assert [(done, error) for done, error in directory.finished(wait=True)] == [(file, None)]
    return file.path
