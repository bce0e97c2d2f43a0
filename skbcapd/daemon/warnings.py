"""Warnings about settings: things that do not exist on this system, or do not work as expected.

In: settings. Out: one line for each warning; none is an error. `check` and the start of a capture
log them.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from skbcapd.attribution.namespaces import RUN
from skbcapd.capture.interfaces import ANY
from skbcapd.capture.rules import rule_warnings
from skbcapd.config.settings import Files, Settings
from skbcapd.kernel.abi import Geometry

MIB = 1 << 20


def warnings_for(settings: Settings) -> Iterator[str]:
    """All warnings about settings, one line each."""
    names = [name for _, name in socket.if_nameindex()]  # /sys may show another network namespace
    if settings.namespaces in {(), ("self",)}:
        for name in missing_interfaces(settings.interfaces, names):
            yield f"interfaces: no interface {name} is there now; it is captured when it appears"
    for number, rule in enumerate(settings.rules, 1):
        if rule.netns and not _has_namespace(rule.netns):
            yield f"rules[{number}].netns: no network namespace {rule.netns} is there now"
    for name in settings.namespaces:
        if name != "self" and not _has_namespace(name):
            yield f"namespaces: no network namespace {name} is there now; it is captured when it appears"
    yield from dict.fromkeys(rule_warnings(settings.rules, names))  # options can make many rules
    used = Geometry.for_buffer(settings.buffer.size).size
    if used != settings.buffer.size:
        yield (
            f"buffer.size of {settings.buffer.size / MIB:g} MiB: {used >> 20} MiB are used, because the number of "
            "segments of 2 MiB is a power of two"
        )
    yield from _file_warnings(settings.files)
    if settings.secrets and int(settings.files.permissions, 8) & 0o007:
        yield (
            f"files.permissions is {settings.files.permissions}: every user can read the capture files, which have TLS "
            "secrets (setting secrets)"
        )


def _file_warnings(files: Files) -> Iterator[str]:
    """Warnings about limits of files with which finished files are deleted at once, or nothing is
    written.
    """
    size = min(files.size or files.ring, files.ring) if files.mode == "ring" else files.size
    if files.keep_size and files.keep_size < size:
        yield (
            f"files.keep_size of {files.keep_size} bytes is less than one file, which may have {size}: "
            "complete files are deleted at once"
        )
    place = Path(files.directory).absolute()
    with contextlib.suppress(OSError):
        disk = os.statvfs(next(each for each in (place, *place.parents) if each.exists()))
        if files.keep_free > disk.f_blocks * disk.f_frsize:
            yield (
                f"files.keep_free of {files.keep_free} bytes is more than the disk of {place} has: no packet is written"
            )


def _has_namespace(name: str, run: Path = RUN, proc: Path = Path("/proc")) -> bool:
    """Whether a network namespace exists, by name or inode number; True if that cannot be read."""
    if not name.isdecimal():
        return (run / name).exists()
    wanted, is_hidden = int(name), False
    for place in (*(run.iterdir() if run.exists() else ()), *proc.glob("[0-9]*/ns/net")):
        try:
            if place.stat().st_ino == wanted:
                return True
        except PermissionError:
            is_hidden = True
        except OSError:  # the process has ended
            continue
    return is_hidden


def missing_interfaces(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names of interfaces in the settings that do not exist.

    Args:
        wanted: names and globs from the settings.
        names: names of existing interfaces.
    """
    return [name for name in wanted if name not in {ANY, *names} and not set(name) & set("*?[")]
