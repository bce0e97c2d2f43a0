"""`skbcapd split`: one capture file for each process, name, unit or container.

In: a capture file. Out: several files, each with the packets that have one field of their comments in common, in the
same order and with the same times, lengths and options. Packets without it are written to a separate file.

The rules not to break: no file is overwritten; where one cannot be written, none of this run is left. A name from the
capture becomes part of a file name only as letters, digits and `%xx`. Memory is bounded, however many processes there
are: when too much is buffered, all of it is written.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from skbcapd.analysis.progress import Progress
from skbcapd.attribution.fields import FIELDS
from skbcapd.errors import FileError
from skbcapd.output.block_writer import MODE
from skbcapd.pcapng.blocks import PACKET
from skbcapd.pcapng.reader import Packet, Reader, Section
from skbcapd.text_safety import escaped_bytes

_GATHERED_MAX = 64 << 20  # bytes in memory
_FILES_MAX = 1 << 16
_INTERFACES_MAX = 1 << 20  # in all files: each has those that its packets use
_DESCRIBED_MAX = 1 << 30  # bytes of their descriptions
_NAME_MAX = 120  # bytes of the value in a file's name

_Value: TypeAlias = int | bytes | None


def command(options: argparse.Namespace) -> int:
    """Split a file; print the result on stderr."""
    splitter = Splitter(options.file, options.by, options.directory)
    with Progress([options.file], sys.stderr) as progress, Reader(options.file, progress.next_file()) as reader:
        splitter.read(reader)
    packets, files = splitter.packets, len(splitter.paths)
    print(f"skbcapd: {packets} packets in {files} files: {splitter.pattern}", file=sys.stderr)
    return 0


@dataclass(eq=False, slots=True)
class _Part:
    """One file that is written: what is gathered for it, and what stands in it already."""

    path: Path
    section: int = 0  # number of the last one, from 1: to hold the section itself would hold all its interfaces
    numbers: dict[int, int] = field(default_factory=dict)  # of the section's interfaces, in this file
    gathered: bytearray = field(default_factory=bytearray)
    exists: bool = False


class _UnwritableError(FileError):
    """A file cannot be written."""


class Splitter:
    """Writes the packets of one capture file into several.

    Args:
        file: the capture file; its name begins theirs.
        by: which of the GROUPS of attribution.fields they have in common.
        directory: where they go.
    """

    def __init__(self, file: Path, by: str, directory: Path) -> None:
        self._by = by
        self._directory = directory
        self._stem = file.name
        for suffix in (".gz", ".zst", ".part", ".pcapng"):
            self._stem = self._stem.removesuffix(suffix)
        self._parts: dict[_Value, _Part] = {}
        self._gathered = self._interfaces = self._described = self._sections = 0
        self._section: Section | None = None
        self._says_via = False
        self.packets = 0

    @property
    def paths(self) -> list[Path]:
        """The files, in order of their first packets."""
        return [part.path for part in self._parts.values()]

    @property
    def pattern(self) -> str:
        """What their names have in common, for people."""
        return escaped_bytes(os.fsencode(self._directory / f"{self._stem}.*{self._by}*.pcapng"))

    def read(self, reader: Reader) -> None:
        """Split a file. If it cannot be read to its end, what could be read has been written.

        Raises:
            FileError: it cannot be read to its end, no packet says what to split by, or a file cannot be written.
        """
        wrong = None
        try:
            for packet in reader.packets():
                self._write(reader.name, packet)
        except _UnwritableError:
            raise
        except FileError as error:
            wrong = error
        except BaseException:  # interrupted, or out of memory
            self._discard()
            raise
        self._flush()
        if wrong is not None:
            raise wrong
        if self._parts.keys() <= {None}:
            self._discard()
            raise FileError(
                f"{reader.name}: none of {self.packets} packets says its {self._by}; nothing to split", self._hint()
            )

    def _hint(self) -> str:
        """Why no packet may say what to split by."""
        if FIELDS[self._by].of_process is not None:
            return "add it to the setting comment"
        if self._says_via:
            return "no packet belongs to a process of the machine that captured it, or none that is known"
        return "check that skbcapd wrote the file"

    def _discard(self) -> None:
        """Delete all that this run has written: it would stop the next one."""
        for part in self._parts.values():
            if part.exists:
                part.exists = False
                with contextlib.suppress(OSError):
                    part.path.unlink()

    def _write(self, name: str, packet: Packet) -> None:
        """Gather a packet of a file, and all that must stand before it."""
        interface, stamp, time, wire_len, frame, options = packet
        if not interface.section.block:
            raise FileError(f"{name}: pcap, which cannot say what a packet's {self._by} is; expected pcapng")
        value = stamp.value(self._by)
        self._says_via |= stamp.via is not None
        part = self._parts.get(value)
        if part is None:
            part = self._parts[value] = self._begin(value)
        gathered, before, section = part.gathered, len(part.gathered), interface.section
        if section is not self._section:
            self._section = section
            self._sections += 1
        if part.section != self._sections:
            part.section = self._sections
            part.numbers.clear()
            gathered += section.block
        number = part.numbers.get(interface.number)
        if number is None:
            number = part.numbers[interface.number] = len(part.numbers)
            gathered += interface.block
            self._interfaces += 1
            self._described += len(interface.block)
            if self._interfaces > _INTERFACES_MAX or self._described > _DESCRIBED_MAX:
                raise FileError(f"{self._stem}: more than {_INTERFACES_MAX} interfaces in all files, or very long ones")
        # A Simple Packet Block becomes an Enhanced one, at time 0: it has none.
        pad = -len(frame) & 3
        length = 32 + len(frame) + pad + len(options)
        head = (PACKET, length, number, time >> 32, time & 0xFFFFFFFF, len(frame), wire_len)
        gathered += struct.pack(section.order + "7I", *head)
        gathered += frame
        gathered += bytes(pad) + options + struct.pack(section.order + "I", length)
        self.packets += 1
        self._gathered += len(gathered) - before
        if self._gathered > _GATHERED_MAX:
            self._flush()

    def _begin(self, value: _Value) -> _Part:
        if len(self._parts) >= _FILES_MAX:
            raise FileError(f"{self._stem}: more than {_FILES_MAX} different {self._by}s; expected fewer")
        if value is None:
            name = f"no-{self._by}"
        else:
            text = quote(value, safe="") if isinstance(value, bytes) else str(value)
            if len(text) > _NAME_MAX:
                text = text[: _NAME_MAX - 16] + hashlib.sha256(text.encode()).hexdigest()[:16]
            name = f"{self._by}-{text}"
        return _Part(self._directory / f"{self._stem}.{name}.pcapng")

    def _flush(self) -> None:
        """Write out all that is gathered. One file is open at a time: there may be thousands."""
        for part in self._parts.values():
            if not part.gathered:
                continue
            how = os.O_APPEND if part.exists else os.O_CREAT | os.O_EXCL
            try:
                with open(os.open(part.path, os.O_WRONLY | os.O_CLOEXEC | how, MODE), "wb") as file:  # noqa: PTH123  so that flags and mode can be given
                    part.exists = True
                    file.write(part.gathered)
            except OSError as error:
                self._discard()
                hint = "move it away, or name another directory with -d" if error.errno == errno.EEXIST else ""
                raise _UnwritableError(
                    f"{escaped_bytes(os.fsencode(part.path))}: {error.strerror}; expected a new file to write", hint
                ) from None
            part.gathered.clear()
        self._gathered = 0
