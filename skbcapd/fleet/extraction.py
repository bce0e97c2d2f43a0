"""`skbcapd fleet extract`: the packets of rows of many files, in one pcapng file.

In: rows with their directories, and where the captures are. Out: one file in the order of time.

The rules: only ranges of captures are read. A file that is missing or wrong is one line, and the packets of the others
are written. Memory is bounded by the selected packets of one file; the others wait in files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from skbcapd.analysis.records import Record, records
from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.analysis.sources import Sources
from skbcapd.analysis.writers import PcapngWriter
from skbcapd.errors import FileError, FleetError, UnreachableError, UsageError
from skbcapd.fleet.packets import Extracted, packets
from skbcapd.fleet.rows import Row
from skbcapd.fleet.storage import Counts, Storage
from skbcapd.text_safety import escaped

CAPTURES = "captures/{directory}/{file}"
_MERGED = 100  # files that are merged at once
_PLACES = ("host", "directory", "file")


class Captures:
    """Where the captures of all hosts are.

    Args:
        template: of URLs, with {host}, {directory} and {file}.

    Raises:
        UsageError: the template has other places, or not the file.
    """

    def __init__(self, template: str) -> None:
        try:
            template.format(**dict.fromkeys(_PLACES, ""))
        except (KeyError, IndexError, ValueError, AttributeError):
            template = ""
        if "{file}" not in template:
            raise UsageError("--captures: expected a URL with {file}, and with {host} or {directory}")
        self._template = template
        self._storages: dict[str, Storage] = {}
        self._failed: dict[str, tuple[str, int]] = {}  # servers and buckets: what happened, files that wait for them
        self.size = 0
        """Bytes of all files that were touched."""

    @property
    def counts(self) -> Counts:
        """What was read."""
        each = [storage.counts for storage in self._storages.values()]
        return Counts(sum(count.opened for count in each), sum(count.bytes for count in each))

    def failed(self) -> list[str]:
        """A line for each server or bucket that could not be reached."""
        return [f"{line}; the packets of {count} files are missing" for line, count in self._failed.values()]

    def packets(self, directory: str, rows: list[Row], selection: Selection) -> Extracted:
        """The selected packets of rows of one file; see `packets.packets`.

        Raises:
            FileError: the file is missing.
            UnreachableError: its server or bucket cannot be reached, or could not before: see `failed`.
            FleetError: it cannot be read.
        """
        host, file = rows[0].host_name, rows[0].file
        url = self._template.format(host=host, directory=directory, file=file)
        parent, _, name = url.rpartition("/")
        server = "/".join(url.split("/", 3)[:3])
        if server in self._failed:
            line, count = self._failed[server]
            self._failed[server] = line, count + 1
            raise UnreachableError(line)
        storage = self._storages.get(parent)
        if storage is None:
            storage = self._storages[parent] = Storage(parent)
        try:
            size = storage.size(name)

            def part(begin: int, end: int | None) -> bytes:
                # Object storage refuses a range that begins behind the end, and ignores an empty one.
                return storage.part(name, begin, end) if begin < (size if end is None else min(end, size)) else b""

            found = packets(url, part, rows, selection)
            self.size += size
        except UnreachableError as error:
            self._failed[server] = str(error), 1
            raise
        except FileNotFoundError:
            raise FileError(
                f"{escaped(url)}: No such file; expected the capture of {len(rows)} rows; their packets are missing"
            ) from None
        return found


def extract(
    rows: Iterable[tuple[str, Row]], captures: Captures, selection: Selection, into: Path
) -> tuple[list[str], list[str]]:
    """Write the packets of rows.

    Args:
        rows: rows with their directories.
        captures: where they are.
        selection: of these packets, only the selected ones.
        into: the file to write; -: standard output.

    Returns:
        Lines about what was written, and about files that could not be read.

    Raises:
        FileError: the target cannot be written.
    """
    wrong: list[str] = []
    by_file: dict[tuple[str, str, str], list[Row]] = {}
    for directory, row in rows:
        by_file.setdefault((row.host_name, directory, row.file), []).append(row)
    with tempfile.TemporaryDirectory(prefix="skbcapd-fleet-") as place:
        made = []
        for number, ((_, directory, _), found) in enumerate(sorted(by_file.items())):
            try:
                read = captures.packets(directory, found, selection)
            except UnreachableError:
                continue  # a line for all files of the server, at the end
            except (FileError, FleetError) as error:
                wrong.append(str(error))
                continue
            if read.wrong:
                wrong.append(str(read.wrong))
            if read.packets:
                made.append(Path(place) / f"{number}.pcapng")
                made[-1].write_bytes(read.data)
        return merge(made, into, Path(place)), [*wrong, *captures.failed()]


def merge(made: list[Path], into: Path, place: Path) -> list[str]:
    """Write the packets of files to one, in the order of time; lines about it.

    Args:
        made: files, each in the order of time.
        into: the file to write; -: standard output.
        place: a directory for work files.

    Raises:
        FileError: the target cannot be written.
    """
    step = 0
    while len(made) > _MERGED:
        step += 1
        groups = [made[at : at + _MERGED] for at in range(0, len(made), _MERGED)]
        made = []
        for number, group in enumerate(groups):
            made.append(place / f"merged-{step}-{number}.pcapng")
            write(_merged(group), made[-1])
    return write(_merged(made), into)


def _merged(paths: list[Path]) -> Iterator[Record]:
    sources = Sources(paths, Selection(Selectors()))
    yield from records(sources.packets())
    if sources.wrong:
        raise sources.wrong[0]


def write(packets_: Iterable[Record], path: Path) -> list[str]:
    """Write records to a file; lines about it."""
    writer = PcapngWriter(path, "ns")
    try:
        for record in packets_:
            writer.put(record)
        return list(writer.finish())
    except BaseException:
        writer.discard()
        raise
