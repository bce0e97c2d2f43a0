"""The index of a capture file: which process of this host exchanged packets with whom, when, and where in the file.

In: a pcapng file, also compressed with gzip or zstd. Out: rows, one for each granule, interface, process and flow. A
granule is a run of whole blocks of about 1 MiB: what must be read to get the packets of its rows.

The rules not to break: the sums of all rows are those of `skbcapd top`. A row has all packets of its flow in its
granule: where no row matches a question, no packet does. Memory is bounded by the rows of two granules, whatever the
file holds. Little work for each packet: one whose headers and options were seen in the granule costs one look-up.

Source: docs/index.md.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from skbcapd.analysis.names import Names
from skbcapd.analysis.peers import starts_tls
from skbcapd.errors import FileError
from skbcapd.fleet import rows
from skbcapd.fleet.flows import Flows, Key
from skbcapd.fleet.places import Place, Places, Plain, stored
from skbcapd.fleet.rows import TIME_MAX_NS, Row, Seconds, cells
from skbcapd.output.naming import escaped_host
from skbcapd.pcapng.flows import (
    BYTES,
    FIRST_NS,
    LAST_AT,
    LAST_NS,
    PACKETS,
    TLS_AT,
    Counted,
)
from skbcapd.pcapng.granules import limit_of
from skbcapd.pcapng.reader import Interface, Reader
from skbcapd.pcapng.repeats import LocatedRepeats
from skbcapd.text_safety import escaped_bytes

_NO_SUMS = [0] * 10


def index(path: Path, host: str = "", places: Places | None = None, name: str = "") -> Iterator[Row]:
    """The rows of a capture file, granule by granule.

    Args and errors: see `texts`.
    """
    made = texts(path, host, places, name)
    return rows.read(line for text in chain((rows.HEADINGS,), made) for line in text.splitlines())


def texts(path: Path, host: str = "", places: Places | None = None, name: str = "") -> Iterator[str]:
    """The rows of a capture file as lines of an index file, granule by granule, without the headings.

    Args:
        path: a pcapng file.
        host: name of the host; empty: of this one.
        places: how the file will be stored; None: as it is.
        name: name of the file in the rows; empty: its own one.

    Raises:
        FileError: it is no pcapng file, or cannot be read to its end; the rows of all packets before that offset have
            been returned.
    """
    counted = LocatedRepeats()
    with Reader(path, counted=counted) as reader:
        places = places or (_stored(path) if reader.is_compressed else Plain())
        host = host or escaped_host(socket.gethostname())
        yield from _Index(reader, counted, places, host, name or escaped_bytes(os.fsencode(path.name))).texts()


def _stored(path: Path) -> Places:
    """How a compressed file is stored.

    Raises:
        FileError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return stored(file.fileno())
    except OSError as error:
        name = escaped_bytes(os.fsencode(path))
        raise FileError(f"{name}: {error.strerror}; expected a capture file") from None


class _Index:
    """Reads one file."""

    def __init__(self, reader: Reader, counted: Counted, places: Places, host: str, name: str) -> None:
        self._reader = reader
        self._counted = counted
        self._places = places
        self._file = host, name
        self._names = Names()
        self._flows = Flows()
        self._begin = -1  # offset of the first packet of the granule
        self._waiting: tuple[Place, list[Key]] = Place(0, 0, 0), []  # of the granule before

    def texts(self) -> Iterator[str]:
        """See `texts`."""
        try:
            yield from self._read()
        except FileError:
            yield self._end()
            raise
        yield self._end()

    def _read(self) -> Iterator[str]:
        reader, counted, see = self._reader, self._counted, self._names.see
        known, find = self._flows.known.get, self._flows.find
        counters, begun = counted.counters, counted.begun
        current, section, is_plain, layer, is_new = None, None, False, 0, True
        counted.limit = 0
        captured = (packet for packet in reader.packets() if not packet[0].is_of_drops)
        for interface, stamp, time, wire_len, frame, options in captured:
            at = reader.at
            if interface is not current:
                if not interface.block:
                    raise FileError(
                        f"{reader.name}: pcap; expected pcapng",
                        "skbcapd extract FILE -w OUT writes pcapng",
                    )
                is_new, section = interface.section is not section, interface.section
                current, is_plain, layer = interface, interface.is_plain, interface.link_type
            if is_new or at >= counted.limit:
                yield self._next(at)
                counted.limit = limit_of(at)
                if is_new:  # numbers of interfaces begin again
                    self._flows.clear()
                    is_new = False
            time_ns = time if is_plain else min(max(interface.time_ns(time), 0), TIME_MAX_NS)
            key = counted.key
            counter = counters.get(key)
            if counter is None:
                owner, looks_at, is_countable = known(key) or find(key, interface, stamp, frame, options)
                which = key if is_countable else owner
                counter = counters.get(which)
                if counter is None:
                    counter = counters[which] = [0, 0, 0, 0, 0, 0, looks_at, owner]
            looks_at = counter[TLS_AT]
            if counter[PACKETS]:
                counter[PACKETS] += 1
                counter[BYTES] += wire_len
                counter[FIRST_NS] = min(counter[FIRST_NS], time_ns)
                counter[LAST_NS] = max(counter[LAST_NS], time_ns)
                counter[LAST_AT] = at
            else:
                counter[:TLS_AT] = 1, wire_len, time_ns, time_ns, at, at
                begun.append(counter)
            if looks_at and (looks_at < 0 or starts_tls(frame, looks_at)):
                see(frame, layer)

    def _next(self, begin: int) -> str:
        """End the granule, and begin the next one; returns the rows of the one before."""
        made = self._take(begin) if self._begin >= 0 else ""
        self._begin = begin
        return made

    def _end(self) -> str:
        """The rows that are left."""
        return self._take(self._reader.at) + self._made() if self._begin >= 0 else ""

    def _take(self, end: int) -> str:
        """End the granule: its rows wait, those of the one before are returned: by now, names of their peers were
        seen, also where the first packets of a connection are at the end of a granule.
        """
        made, counted, owners = self._made(), self._counted, self._flows.owners
        waiting: list[Key] = []
        for counter in counted.begun:
            packets, size, first_ns, last_ns, first_at, last_at, _, owner = counter
            counter[PACKETS] = 0
            key, at = owners[owner]
            sums = key.sums
            if sums is None:
                key.sums = sums = [first_ns, last_ns, first_at, last_at, 0, 0, 0, 0, 0, 0]
                waiting.append(key)
            else:  # it has begun after the others of the row
                if first_ns < sums[0]:  # noqa: PLR1730  calls cost too much
                    sums[0] = first_ns
                if last_ns > sums[1]:  # noqa: PLR1730  calls cost too much
                    sums[1] = last_ns
                if last_at > sums[3]:  # noqa: PLR1730  calls cost too much
                    sums[3] = last_at
            sums[at] += packets
            sums[at + 1] += size
        counted.begun.clear()
        self._waiting = self._places.find(self._begin, end), waiting
        if self._flows.is_full or counted.is_full:
            self._flows.clear()
            counted.forget()
        return made

    def _made(self) -> str:
        """The rows of the granule before."""
        place, waiting = self._waiting
        ends: dict[Interface, str] = {}
        begin, name_of, seconds = place.begin, self._names.text_of, Seconds()
        made: list[str] = []
        for key in waiting:
            end = ends.get(key.interface)
            if end is None:
                end = ends[key.interface] = self._ending(place, key.interface)
            peer, others = key.texts or key.make_texts()
            sums, key.sums = key.sums or _NO_SUMS, None
            first_ns, last_ns, first_at, last_at, out, out_size, into, in_size, other, other_size = sums
            first_us, last_us = first_ns // 1000, -(-last_ns // 1000)
            first, last = seconds[first_us // 1_000_000], seconds[last_us // 1_000_000]
            name = name_of(key.flow.peer) or ""
            made.append(
                f"{first}{first_us % 1_000_000:06}Z,{last}{last_us % 1_000_000:06}Z,{peer},{name},{others},"
                f"{first_at - begin},{last_at - begin},"
                f"{out},{out_size},{into},{in_size},{other},{other_size},{end}\n"
            )
        self._waiting = place, []
        return "".join(made)

    def _ending(self, place: Place, interface: Interface) -> str:
        """The columns at the end of a line."""
        return cells((*self._file, place.offset, place.length, *self._described(interface)))

    def _described(self, interface: Interface) -> tuple[int, ...]:
        """Its number, and where its description is."""
        place = self._places.find(interface.at, interface.at + len(interface.block))
        return interface.number, place.offset, place.length, interface.at - place.begin
