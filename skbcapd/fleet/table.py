"""The table of a fleet: which Parquet files are in it, and which index files were added.

In: a storage with `index/day`. Out: the parts that a question must open.

Files: `index/day/date=D/hour=HH/part-DAY-ID-N.parquet`, `index/day/manifest/DAY.json` and `DAY.sources-G.json.gz`.
DAY is that of the capture files, date and hour are those of the rows: a capture can pass midnight.

The rule not to break: a manifest alone says what is valid, and it is replaced whole, last. A part that no manifest
names does not exist. So a run can be killed at any moment, and reading sees all of a run, or nothing.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from skbcapd.analysis.sources import plain_name
from skbcapd.errors import FleetError
from skbcapd.fleet.storage import Storage
from skbcapd.text_safety import escaped

TABLE = "index/day"
_MANIFESTS = f"{TABLE}/manifest"
_ENDING = ".json"
_VERSION = 1
_DAY = re.compile(r"part-([0-9]{4}-[0-9]{2}-[0-9]{2})-")
_SOURCES = re.compile(r"[0-9-]{10}\.sources-[0-9]+\.json\.gz")


@dataclass(frozen=True, slots=True)
class Part:
    """A Parquet file of the table.

    Args:
        path: relative to the storage.
        hour: hours since 1970 UTC, of the first packet of each row.
        rows: number of rows.
        bytes: its size.
        first_us: the earliest ts_first, in microseconds since 1970 UTC.
        last_us: the latest ts_last.
    """

    path: str
    hour: int
    rows: int
    bytes: int
    first_us: int
    last_us: int


@dataclass(frozen=True, slots=True)
class Source:
    """An index file that was added.

    Args:
        stamp: as of storage.Found.
        digest: of its bytes.
        host: in its rows; empty if it has none.
        file: in its rows.
        rows: how many of its rows are in the table; 0: they are there from another index file.
    """

    stamp: str
    digest: str
    host: str
    file: str
    rows: int


@dataclass(slots=True)
class Manifest:
    """What is valid of a day.

    Args:
        day: of the capture files.
        generation: number of times that it was written.
        parts: of the table.
        sources: index files by path; only where they were asked for.
    """

    day: str
    generation: int = 0
    parts: list[Part] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)


def load(storage: Storage, day: str, *, has_sources: bool) -> Manifest:
    """The manifest of a day; an empty one if there is none.

    Raises:
        FleetError: it cannot be read.
    """
    path = f"{_MANIFESTS}/{day}{_ENDING}"
    try:
        said = json.loads(storage.read(path))
        if said["version"] != _VERSION:
            raise FleetError(
                f"{escaped(storage.url)}/{path}: version {said['version']}; expected {_VERSION}",
                "a newer skbcapd has written it",
            )
        found = _manifest(day, said)
        if has_sources:
            sources = json.loads(gzip.decompress(storage.read(f"{_MANIFESTS}/{said['sources']}")))
            found.sources = {name: Source(*values) for name, values in sources.items()}
    except FileNotFoundError as error:
        if Path(str(error.filename or error)).name.endswith(".gz"):
            raise FleetError(f"{escaped(storage.url)}/{path}: its list of sources is missing; expected one") from None
        return Manifest(day)
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FleetError(f"{escaped(storage.url)}/{path}: {escaped(str(error))}; expected a manifest") from None
    return found


def _manifest(day: str, said: dict[str, Any]) -> Manifest:
    """A manifest without its sources.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    found = Manifest(day, said["generation"], [_part(part) for part in said["parts"]])
    if not isinstance(found.generation, int) or not _SOURCES.fullmatch(said["sources"]):
        raise ValueError(f"generation {found.generation!r}, sources {said['sources']!r}")
    return found


def _part(said: dict[str, Any]) -> Part:
    """A part, as a manifest describes it.

    Raises:
        TypeError, ValueError: it is none.
    """
    part = Part(**said)
    names = part.path.split("/") if isinstance(part.path, str) else []
    if names[:2] != TABLE.split("/") or {"", ".", ".."} & set(names):
        raise ValueError(f"a part {part.path!r}")
    if not all(isinstance(value, int) for value in (part.hour, part.rows, part.bytes, part.first_us, part.last_us)):
        raise ValueError(f"numbers of the part {part.path!r}")
    return part


def commit(storage: Storage, manifest: Manifest) -> None:
    """Write a manifest: from then on, its parts are valid, and no others of its day.

    Raises:
        FleetError: it cannot be written; or another run has written one since this one was loaded.
    """
    if load(storage, manifest.day, has_sources=False).generation != manifest.generation:
        raise FleetError(
            f"{escaped(storage.url)}: the manifest of {manifest.day} has changed; expected one compaction at a time",
            "nothing was lost; run it again",
        )
    manifest.generation += 1
    sources = f"{manifest.day}.sources-{manifest.generation}.json.gz"
    said = {
        "version": _VERSION,
        "generation": manifest.generation,
        "parts": [asdict(part) for part in manifest.parts],
        "sources": sources,
    }
    listed = {
        name: [source.stamp, source.digest, source.host, source.file, source.rows]
        for name, source in manifest.sources.items()
    }
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "file"
        file.write_bytes(gzip.compress(json.dumps(listed).encode()))
        storage.put(file, f"{_MANIFESTS}/{sources}")
        file.write_text(json.dumps(said))
        storage.put(file, f"{_MANIFESTS}/{manifest.day}{_ENDING}")
    storage.remove(f"{_MANIFESTS}/{manifest.day}.sources-{manifest.generation - 2}.json.gz")


def days(storage: Storage) -> list[str]:
    """The days that have a manifest."""
    return [Path(found.path).name.removesuffix(_ENDING) for found in storage.files(_MANIFESTS, _ENDING)]


def parts(storage: Storage, begin_us: int | None = None, end_us: int | None = None) -> list[Part]:
    """The parts that can have rows of a span of time, from `begin_us` on and before `end_us`; None: open.

    Raises:
        FleetError: a manifest cannot be read.
    """
    return [
        part
        for day in days(storage)
        for part in load(storage, day, has_sources=False).parts
        if (begin_us is None or part.last_us >= begin_us) and (end_us is None or part.first_us < end_us)
    ]


def paths(storage: Storage, chosen: Iterable[Part]) -> list[str]:
    """What an engine opens, such as read_parquet of DuckDB or Spark."""
    return [storage.full(part.path) for part in chosen]


def identities(sources: Mapping[str, Source]) -> dict[tuple[str, str], str]:
    """The index file whose rows are in the table, by host and capture file, whether it is compressed or not."""
    return {(source.host, plain_name(source.file)): name for name, source in sources.items() if source.rows}


def read_part(storage: Storage, part: Part) -> bytes:
    """The bytes of a part.

    Raises:
        FleetError: it does not exist, or is shorter or longer than its manifest says.
    """
    try:
        data = storage.read(part.path)
    except FileNotFoundError:
        data = b""
    _expect_size(storage, part, len(data))
    return data


def expect_sizes(storage: Storage, chosen: Iterable[Part]) -> None:
    """Check that parts have the sizes that their manifests say.

    Raises:
        FleetError: one has not, or does not exist.
    """
    sizes = {found.path: found.size for found in storage.files(TABLE, ".parquet")}
    for part in chosen:
        _expect_size(storage, part, sizes.get(part.path, 0))


def _expect_size(storage: Storage, part: Part, size: int) -> None:
    if size != part.bytes:
        why = f"{size} bytes, not {part.bytes}" if size else "missing or empty"
        raise damaged(storage, part, why)


def damaged(storage: Storage, part: Part, why: str) -> FleetError:
    """An error for a part that cannot be read.

    Args:
        storage: has it.
        part: the part.
        why: in words, escaped.
    """
    day = found[1] if (found := _DAY.match(Path(part.path).name)) else "DAY"
    return FleetError(
        f"{escaped(storage.url)}/{escaped(part.path)}: {why}; expected a part of the table",
        f"if a compaction has just replaced it, try again. Otherwise restore it, or, if all index files of {day} are "
        f"still in index/raw, delete {_MANIFESTS}/{day}{_ENDING} and compact again",
    )
