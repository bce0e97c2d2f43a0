"""Capture files that records are written to: one pcapng file, or a pcap file for each link type.

In: records. Out: files, and lines that say what is in them.

Source: draft-ietf-opsawg-pcap for pcap.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from skbcapd.analysis import target
from skbcapd.analysis.pcapng_file import PcapngSection
from skbcapd.analysis.records import Record
from skbcapd.analysis.target import STDOUT, Target
from skbcapd.errors import FileError
from skbcapd.pcapng import link_type
from skbcapd.text_safety import escaped_bytes

FORMATS = ("pcapng", "pcap")
UNITS = ("ns", "us")
_SNAPLEN = 262144  # the most that libpcap and Wireshark take
_MAGIC = {"ns": (0xA1B23C4D, 1), "us": (0xA1B2C3D4, 1000)}
_RECORD = struct.Struct("<4I")


class Writer(Protocol):
    """Where records go."""

    def put(self, record: Record) -> None:
        """Write a packet."""

    def finish(self) -> Iterator[str]:
        """All is written; lines about what it is."""

    def discard(self) -> None:
        """Leave no file."""


class PcapngWriter:
    """One pcapng file.

    Args:
        path: of the file, or STDOUT.
        unit: of times; one of UNITS.
    """

    def __init__(self, path: Path, unit: str) -> None:
        self._target = Target(path)
        self._section = PcapngSection(unit)
        self._packets = 0
        self._links: set[int] = set()

    def put(self, record: Record) -> None:
        """Write a packet."""
        self._section.encode(record, self._target.gathered)
        self._target.flush_full()
        self._packets += 1
        self._links.add(record[1].link_type)

    def finish(self) -> Iterator[str]:
        """All is written; lines about what it is."""
        self._target.gathered += self._section.end()
        self._target.finish()
        yield f"{self._packets} packets to {_said(self._target.path)}"
        if len(self._links) > 1:
            names = ", ".join(map(link_type.name, sorted(self._links)))
            yield (
                f"{_said(self._target.path)} has several link types ({names}); for programs that read only one: "
                f"skbcapd split {_said(self._target.path)} --by link-type"
            )

    def discard(self) -> None:
        """Leave no file."""
        self._target.discard()


class PcapWriter:
    """A pcap file; where there are several link types, one for each, with its name in the file's name.

    Args:
        path: of the file, or STDOUT.
        unit: of times; one of UNITS.
        sources: files that must not be replaced.
    """

    def __init__(self, path: Path, unit: str, sources: Sequence[Path]) -> None:
        self._path = path
        self._magic, self._unit_ns = _MAGIC[unit]
        self._sources = sources
        self._targets: dict[int, Target] = {}
        self._packets: dict[int, int] = {}

    def put(self, record: Record) -> None:
        """Write a packet.

        Raises:
            FileError: its time fits no file, or standard output would get a second link type.
        """
        time_ns, interface, _, wire_len, frame, _ = record
        goal = self._targets.get(interface.link_type) or self._begin(interface.link_type)
        seconds, fraction_ns = divmod(time_ns, 10**9)
        if not 0 <= seconds < 1 << 32:
            raise FileError(
                f"a packet at {time_ns} ns since 1970; expected a time before 2106, as pcap has it", "--format pcapng"
            )
        goal.gathered += _RECORD.pack(seconds, fraction_ns // self._unit_ns, len(frame), wire_len)
        goal.gathered += frame
        goal.flush_full()
        self._packets[interface.link_type] += 1

    def _begin(self, link: int) -> Target:
        """The file of a link type."""
        if self._path == STDOUT and self._targets:
            names = ", ".join(map(link_type.name, sorted([*self._targets, link])))
            raise FileError(
                f"packets of several link types ({names}); expected one, as a pcap file has only one",
                "write to a file: there will be one for each; or select one with --interface",
            )
        path = self._named(link) if self._targets else self._path
        target.check(path, self._sources)
        goal = self._targets[link] = Target(path)
        self._packets[link] = 0
        goal.gathered += struct.pack("<IHHiIII", self._magic, 2, 4, 0, 0, _SNAPLEN, link)
        return goal

    def _named(self, link: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.{link_type.name(link)}{self._path.suffix}")

    def finish(self) -> Iterator[str]:
        """All is written; lines about what it is."""
        if not self._targets:
            self._begin(link_type.ETHERNET)
        is_one = len(self._targets) == 1
        if not is_one:
            for link in self._targets:
                target.check(self._named(link), self._sources)
        for link, goal in self._targets.items():
            path = goal.finish(self._path if is_one else self._named(link))
            yield f"{self._packets[link]} packets to {_said(path)} (link type {link_type.name(link)})"
        yield "pcap has no comments, interfaces and directions: they are not in the file"

    def discard(self) -> None:
        """Leave no file."""
        for goal in self._targets.values():
            goal.discard()


def _said(path: Path) -> str:
    return "standard output" if path == STDOUT else escaped_bytes(os.fsencode(path))
