"""`skbcapd split`: one capture file for each process, name, unit or container.

In: a capture file. Out: several files, each with the packets that have one field of their comments
in common, in the same order and with the same times, lengths and options. Packets without it are
written to a separate file.

The rules not to break: no file is overwritten; if one cannot be written, all files of this run are
deleted. A name from the capture becomes part of a file name only as letters, digits and `%xx`.
Memory is bounded, however many processes there are: when too much is buffered, all of it is
written.
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
_INTERFACES_MAX = 1 << 20  # in all files; each file has the interfaces of its packets
_DESCRIBED_MAX = 1 << 30  # bytes of their descriptions
_NAME_MAX = 120  # bytes of the value in the name of a file

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
    """One file that is written: its buffered bytes, and its state."""

    path: Path
    # number of the current section, from 1; the section itself would keep all its interfaces in
    # memory
    section: int = 0
    numbers: dict[int, int] = field(default_factory=dict)  # interface number of the section -> number in this file
    gathered: bytearray = field(default_factory=bytearray)
    exists: bool = False


class _UnwritableError(FileError):
    """A file cannot be written."""


class Splitter:
    """Writes the packets of one capture file into several.

    Args:
        file: the capture file; the new names begin with its name.
        by: the field, one of the GROUPS of attribution.fields.
        directory: directory of the new files.
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
        """The files, in the order of their first packets."""
        return [part.path for part in self._parts.values()]

    @property
    def pattern(self) -> str:
        """The pattern of their names, for messages."""
        return escaped_bytes(os.fsencode(self._directory / f"{self._stem}.*{self._by}*.pcapng"))

    def read(self, reader: Reader) -> None:
        """Split a file. If it cannot be read to its end, the packets before are written.

        Raises:
            FileError: it cannot be read to its end, no packet has the field, or a file cannot be
                written.
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
                f"{reader.name}: none of {self.packets} packets has the field {self._by}; nothing to split",
                self._hint(),
            )

    def _hint(self) -> str:
        """A hint why no packet has the field."""
        if FIELDS[self._by].of_process is not None:
            return "add it to the setting comment"
        if self._says_via:
            return "no packet belongs to a known process of the machine that captured it"
        return "check that skbcapd wrote the file"

    def _discard(self) -> None:
        """Delete all files of this run: otherwise the next run would stop there."""
        for part in self._parts.values():
            if part.exists:
                part.exists = False
                with contextlib.suppress(OSError):
                    part.path.unlink()

    def _write(self, name: str, packet: Packet) -> None:
        """Buffer a packet, and the section and interface that it needs."""
        interface, stamp, time, wire_len, frame, options = packet
        if not interface.section.block:
            raise FileError(f"{name}: a pcap file, which has no processes; expected pcapng")
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
        # A Simple Packet Block becomes an Enhanced Packet Block with time 0, because it has no
        # time.
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
        """Write all buffers. One file is open at a time, because there can be thousands."""
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
