"""`skbcapd split`: one capture file for each process, name, unit, container, interface or link type.

In: capture files. Out: several files, each with the packets that have one value in common, in time order and with the
same times, lengths and options. Packets without it are written to a separate file.

The rules not to break: no file is overwritten; if one cannot be written, all files of this run are deleted. A name from
the capture becomes part of a file name only as letters, digits and `%xx`. Memory is bounded, however many processes
there are: when too much is buffered, all of it is written.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

from skbcapd.analysis.changes import Changes
from skbcapd.analysis.extract import tell
from skbcapd.analysis.pcapng_file import PcapngSection
from skbcapd.analysis.progress import Progress
from skbcapd.analysis.records import Record, records
from skbcapd.analysis.selectors import Selection
from skbcapd.analysis.sources import Sources, expand, plain_name
from skbcapd.attribution.fields import FIELDS, GROUPS
from skbcapd.errors import FileError
from skbcapd.output.block_writer import MODE
from skbcapd.pcapng import link_type
from skbcapd.pcapng.blocks import IF_DESCRIPTION, IF_NAME
from skbcapd.pcapng.reader import Interface
from skbcapd.text_safety import escaped_bytes

BY = (*GROUPS, "interface", "link-type")
"""What packets of a file can have in common."""

_GATHERED_MAX = 64 << 20  # bytes in memory
_FILES_MAX = 1 << 16
_INTERFACES_MAX = 1 << 20  # in all files; each file has the interfaces of its packets
_DESCRIBED_MAX = 1 << 30  # bytes of their descriptions
_NAME_MAX = 120  # bytes of the value in the name of a file
_NAMESPACE = b"network namespace "

_Value: TypeAlias = int | bytes | None


def command(options: argparse.Namespace, files: list[Path], selection: Selection) -> int:
    """Split files; print the result on stderr. 1 if a file could not be read to its end."""
    paths = expand(files)
    changes = Changes(options)
    _make(options.directory)
    splitter = Splitter(files[0], options.by, options.directory)
    with Progress(paths, sys.stderr) as progress:
        sources = Sources(paths, selection, progress.next_file)
        splitter.read(changes.apply(records(sources.packets())))
    if not sources.wrong:
        splitter.check()
    if splitter.paths:
        packets, count = splitter.packets, len(splitter.paths)
        print(f"skbcapd: {packets} packets in {count} files: {splitter.pattern}", file=sys.stderr)
    return tell(changes, sources)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        place = escaped_bytes(os.fsencode(directory))
        raise FileError(f"{place}: {error.strerror}; expected a directory for the new files") from None


@dataclass(eq=False, slots=True)
class _Part:
    """One file that is written: its buffered bytes, and its state."""

    path: Path
    section: PcapngSection = field(default_factory=PcapngSection)
    gathered: bytearray = field(default_factory=bytearray)
    exists: bool = False


class Splitter:
    """Writes packets into several files.

    Args:
        source: the first capture file, or its directory; the new names begin with its name.
        by: one of BY.
        directory: directory of the new files.
    """

    def __init__(self, source: Path, by: str, directory: Path) -> None:
        self._by = by
        self._directory = directory
        self._source = escaped_bytes(os.fsencode(source))
        name = "stdin" if source.name in {"-", ""} else plain_name(source.name)
        self._stem = name.removesuffix(".pcapng").removesuffix(".pcap")
        self._parts: dict[_Value, _Part] = {}
        self._gathered = self._interfaces = self._described = 0
        self._says_via = self._is_pcap = False
        self.packets = 0

    @property
    def paths(self) -> list[Path]:
        """The files, in the order of their first packets."""
        return [part.path for part in self._parts.values()]

    @property
    def pattern(self) -> str:
        """The pattern of their names, for messages."""
        return escaped_bytes(os.fsencode(self._directory / f"{self._stem}.*{self._by}*.pcapng"))

    def read(self, packets: Iterable[Record]) -> None:
        """Write all packets.

        Raises:
            FileError: a file cannot be written, or there would be too many.
        """
        try:
            for record in packets:
                self._write(record)
            self._flush()
        except BaseException:  # also interrupted, or out of memory
            self._discard()
            raise

    def check(self) -> None:
        """After all files were read without an error.

        Raises:
            FileError: no packet has the field; all files of this run are deleted.
        """
        if self._parts.keys() <= {None}:
            self._discard()
            if self._is_pcap and self._by in GROUPS:
                raise FileError(
                    f"{self._source}: a pcap file, which has no processes; expected pcapng",
                    "pcap files can be split by link-type",
                )
            raise FileError(
                f"{self._source}: none of {self.packets} packets has the field {self._by}; nothing to split",
                self._hint(),
            )

    def _hint(self) -> str:
        """A hint why no packet has the field."""
        if self._by in FIELDS and FIELDS[self._by].of_process is not None:
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

    def _write(self, record: Record) -> None:
        """Buffer a packet, and the interface that it needs."""
        stamp = record[2]
        value = self._value(record)
        self._says_via |= stamp.via is not None
        self._is_pcap |= not record[1].section.block
        part = self._parts.get(value)
        if part is None:
            part = self._parts[value] = self._begin(value)
        section, before = part.section, len(part.gathered)
        interfaces, described = section.interfaces, section.described
        section.encode(record, part.gathered)
        self._interfaces += section.interfaces - interfaces
        self._described += section.described - described
        if self._interfaces > _INTERFACES_MAX or self._described > _DESCRIBED_MAX:
            raise FileError(f"{self._stem}: more than {_INTERFACES_MAX} interfaces in all files, or very long ones")
        self.packets += 1
        self._gathered += len(part.gathered) - before
        if self._gathered > _GATHERED_MAX:
            self._flush()

    def _value(self, record: Record) -> _Value:
        """The value that chooses the file of a packet."""
        interface = record[1]
        if self._by == "interface":
            return _interface_name(interface)
        if self._by == "link-type":
            return link_type.name(interface.link_type).encode()
        return record[2].value(self._by)

    def _begin(self, value: _Value) -> _Part:
        if len(self._parts) >= _FILES_MAX:
            raise FileError(f"{self._stem}: more than {_FILES_MAX} different {self._by}s; expected fewer")
        if value is None:
            name = f"no-{self._by}"
        else:
            text = quote(value, safe="") if isinstance(value, bytes) else str(value)
            if self._by == "interface":
                text = text.replace("%2F", "@", 1)
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
                hint = "move it away, or name another directory with -d" if error.errno == errno.EEXIST else ""
                raise FileError(
                    f"{escaped_bytes(os.fsencode(part.path))}: {error.strerror}; expected a new file to write", hint
                ) from None
            part.gathered.clear()
        self._gathered = 0


def _interface_name(interface: Interface) -> bytes | None:
    """The name of an interface, and its network namespace behind a slash if that is not the one of init."""
    said = dict(interface.options())
    name = said.get(IF_NAME)
    namespace = said.get(IF_DESCRIPTION, b"")
    if name is None or not namespace.startswith(_NAMESPACE) or namespace == _NAMESPACE + b"of init":
        return name
    return name + b"/" + namespace.removeprefix(_NAMESPACE).removeprefix(b"of ")
