"""`skbcapd fleet compact`: makes sorted Parquet files of the index files that have arrived.

In: index files below `index/raw` of a storage. Out: parts of the table, sorted by peer address and time, for each hour
of the rows; and lines about what was not added.

The rules: each index file is added once, whole, or not at all. Late files are added like others: with the small
parts of their hours, they become new parts. Only `table.commit` makes that valid, a day at a time. A part that is
not valid (any more) is deleted an hour later: a question may still read it. Index files are never deleted here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from skbcapd.analysis.sources import plain_name
from skbcapd.errors import FleetError, UnreachableError
from skbcapd.fleet import intake, table
from skbcapd.fleet.engines import UNREADABLE, reason
from skbcapd.fleet.intake import ENDING, RAW, Taken, day_of
from skbcapd.fleet.storage import Found, Storage
from skbcapd.fleet.table import TABLE, Part, Source
from skbcapd.text_safety import escaped

_SMALL = 128 << 20  # bytes of a part; smaller ones are written again with new rows of their hour
_LARGE = 192 << 20  # bytes of a part after which another one begins; a part ends up with at most 256 MiB
_GROUP = 122_880  # rows of a row group; a bloom filter needs a dictionary: of at most half as many values
_GRACE_S = 3600
_LOCK = ".compacting"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Report:
    """What a run has done.

    Args:
        files: index files that were added.
        rows: their rows.
        parts: parts that were written.
        bytes: of these.
        said: lines about what was unusual, but is in the table.
        wrong: lines about what is not in the table.
    """

    files: int = 0
    rows: int = 0
    parts: int = 0
    bytes: int = 0
    said: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def compact(storage: Storage, *, replaces: bool = False, grace_s: float = _GRACE_S) -> Report:
    """Add all index files that are not in the table.

    Args:
        storage: has `index/raw`.
        replaces: whether an index file with new content replaces what the table has of it.
        grace_s: seconds after which parts that are not valid are deleted.

    Raises:
        FleetError: the storage cannot be read, or another compaction is running.
    """
    report = Report()
    storage.expect_there()
    with _lock(storage):
        by_day: dict[str, list[Found]] = {}
        for found in storage.files(RAW, ENDING):
            by_day.setdefault(day_of(found.path), []).append(found)
        for day, files in sorted(by_day.items()):
            try:
                _Day(storage, day, report, replaces=replaces).run(files)
            except UnreachableError as error:
                report.wrong.append(
                    f"{day}: {error}; nothing of this run is in the table from that day on: run it again"
                )
                return report
            except (FleetError, duckdb.Error, OSError) as error:
                why = " ".join(str(error).split())
                report.wrong.append(f"{day}: {why}; nothing of this run is in the table for that day: run it again")
        try:
            _clean(storage, grace_s)
        except UnreachableError as error:
            report.wrong.append(f"{error}; old parts are deleted by the next run")
    return report


@contextlib.contextmanager
def _lock(storage: Storage) -> Iterator[None]:
    """Exclude another compaction on this machine; `table.commit` notices one elsewhere."""
    if not storage.is_local:
        yield
        return
    directory = Path(storage.full(TABLE))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FleetError(f"{escaped(str(directory))}: {error.strerror}; expected to write the table") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise FleetError(f"{escaped(str(directory))}: another compaction is running; expected none") from None
    finally:
        os.close(descriptor)


class _Day:
    """One day of capture files.

    Args:
        storage: the storage.
        day: as of `day_of`.
        report: what is done is added there.
        replaces: as for `compact`.
    """

    def __init__(self, storage: Storage, day: str, report: Report, *, replaces: bool) -> None:
        self._storage = storage
        self._report = report
        self._replaces = replaces
        self._manifest = table.load(storage, day, has_sources=True)
        self._owners = table.identities(self._manifest.sources)
        self._replaced: list[tuple[str, str]] = []  # host and file whose rows are taken out
        self._files = self._rows = 0

    def run(self, files: list[Found]) -> None:
        """Add index files.

        Raises:
            FleetError: the storage cannot be read or written.
            duckdb.Error: there is no space left for its work.
        """
        known = self._manifest.sources
        new = [found for found in files if found.path not in known or known[found.path].stamp != found.stamp]
        if not new:
            return
        with tempfile.TemporaryDirectory(prefix="skbcapd-fleet-") as place, _connection(place) as engine:
            is_changed = False
            engine.execute("BEGIN").fetchall()  # one commit, not one for each file: each waits for the disk
            for found, data in self._storage.read_each(new):
                if isinstance(data, FleetError):
                    self._report.wrong.append(str(data))
                elif data is not None:  # otherwise deleted since it was listed
                    is_changed |= self._take(engine, found, data)
            if not is_changed:
                return
            engine.execute("COMMIT").fetchall()
            parts = self._write(engine, Path(place))
            self._manifest.parts = parts
            table.commit(self._storage, self._manifest)
        self._report.files += self._files
        self._report.rows += self._rows

    def _take(self, engine: Any, found: Found, data: bytes) -> bool:
        """Put the rows of a file among the new ones; whether the manifest is changed."""
        try:
            taken = intake.take(found.path, data)
        except FleetError as error:
            self._report.wrong.append(str(error))
            return False
        digest = hashlib.sha256(data).hexdigest()
        source = Source(found.stamp, digest, taken.host, taken.file, len(taken.table))
        before = self._manifest.sources.get(found.path)
        identity = taken.host, plain_name(taken.file)
        owner = self._owners.get(identity) if taken.host else None
        if before is not None and before.digest == digest:
            self._manifest.sources[found.path] = Source(
                found.stamp, digest, before.host, before.file, before.rows
            )  # sent again, unchanged
            return True
        same = self._manifest.sources[owner] if owner is not None else before
        if same is not None and same.digest == digest:
            self._report.said.append(f"{escaped(found.path)}: the same as {escaped(owner or '')}; counted once")
            self._manifest.sources[found.path] = Source(found.stamp, digest, taken.host, taken.file, 0)
            return True
        if same is not None and same.host:
            is_other_form = same.file != taken.file  # the capture was compressed after it had been indexed
            if is_other_form and taken.file == identity[1]:
                self._report.said.append(f"{escaped(found.path)}: indexed again when compressed; counted once")
                self._manifest.sources[found.path] = Source(found.stamp, digest, taken.host, taken.file, 0)
                return True
            if not (self._replaces or is_other_form):
                self._report.wrong.append(_conflict(found.path, owner or found.path, same))
                return False
            self._replaced.append((same.host, same.file))
            engine.execute("DELETE FROM fresh WHERE host_name = ? AND file = ?", [same.host, same.file]).fetchall()
            self._manifest.sources.pop(owner or found.path, None)
        self._report.said += taken.notes
        self._manifest.sources[found.path] = source
        self._owners[identity] = found.path
        _insert(engine, taken)
        self._files += 1
        self._rows += len(taken.table)
        return True

    def _write(self, engine: Any, place: Path) -> list[Part]:
        """Write the parts of all hours that have new rows, or rows that are taken out; all parts of the day."""
        hours = {hour for (hour,) in engine.execute("SELECT DISTINCT hour FROM fresh").fetchall()}
        if self._replaced:
            hours |= {part.hour for part in self._manifest.parts}
        kept = [part for part in self._manifest.parts if part.hour not in hours or not self._is_rewritten(part)]
        for hour in sorted(hours):
            old = [part for part in self._manifest.parts if part.hour == hour and self._is_rewritten(part)]
            kept += self._write_hour(engine, place, hour, old)
        return kept

    def _is_rewritten(self, part: Part) -> bool:
        return bool(self._replaced) or part.bytes < _SMALL

    def _write_hour(self, engine: Any, place: Path, hour: int, old: list[Part]) -> Iterator[Part]:
        """The new parts of an hour, made of its new rows and of old parts."""
        copies = []
        for number, part in enumerate(old):
            copy = place / f"old-{number}.parquet"
            copy.write_bytes(table.read_part(self._storage, part))
            copies.append(f"'{copy}'")
        columns = ", ".join(f'"{name}"' for name in (*intake.SCHEMA.names, "directory"))
        query = f"SELECT {columns} FROM fresh WHERE hour = {int(hour)}"
        if copies:
            query += f" UNION ALL SELECT {columns} FROM read_parquet([{', '.join(copies)}])"
            query += (
                " WHERE (host_name, file) NOT IN (SELECT (host_name, file) FROM replaced)" if self._replaced else ""
            )
            engine.execute("DELETE FROM replaced").fetchall()
            for host, file in self._replaced:
                engine.execute("INSERT INTO replaced VALUES (?, ?)", [host, file]).fetchall()
        made = place / f"hour-{hour}"
        copying = (
            f"COPY ({query} ORDER BY peer_address, ts_first) TO '{made}' "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_GROUP}, DICTIONARY_SIZE_LIMIT {_GROUP // 2}, "
            f"FILE_SIZE_BYTES {_LARGE})"
        )
        try:
            engine.execute(copying).fetchall()
        except UNREADABLE:
            for number, part in enumerate(old):
                self._expect_readable(part, place / f"old-{number}.parquet", columns)
            raise
        for number in range(len(copies)):
            (place / f"old-{number}.parquet").unlink()
        token = secrets.token_hex(6)
        for number, written in enumerate(sorted(made.iterdir())):
            count, first_us, last_us = engine.execute(
                "SELECT count(*), min(epoch_us(ts_first)), max(epoch_us(ts_last)) FROM read_parquet(?)", [str(written)]
            ).fetchall()[0]
            if count:
                path = f"{_directory(hour)}/part-{self._manifest.day}-{token}-{number}.parquet"
                size = written.stat().st_size
                self._storage.put(written, path)
                self._report.parts += 1
                self._report.bytes += size
                yield Part(path, hour, count, size, first_us, last_us)
            written.unlink()

    def _expect_readable(self, part: Part, copy: Path, columns: str) -> None:
        """Find out whether a copy of a part can be read.

        Raises:
            FleetError: it cannot.
        """
        engine = duckdb.connect()
        try:
            engine.execute(f"SELECT max(hash({columns})) FROM read_parquet(?)", [str(copy)]).fetchall()
        except UNREADABLE as error:
            raise table.damaged(self._storage, part, reason(error)) from None
        finally:
            engine.close()


def _conflict(path: str, owner: str, same: Source) -> str:
    what = f"host {escaped(same.host)}, file {escaped(same.file)}"
    beside = "it has changed since" if owner == path else f"{escaped(owner)} is in the table"
    return (
        f"{escaped(path)}: other content for {what}: {beside}; expected one index of a file; not added. "
        "Do two hosts have the same name? If not, --replace uses the new file"
    )


def _directory(hour: int) -> str:
    return f"{TABLE}/{_EPOCH + timedelta(hours=hour):date=%Y-%m-%d/hour=%H}"


@contextlib.contextmanager
def _connection(place: str) -> Iterator[Any]:
    """A database in a directory, with the tables of a run."""
    engine = duckdb.connect(f"{place}/work.db")
    try:
        engine.execute(f"SET temp_directory = '{place}/spill'").fetchall()
        engine.execute("SET TimeZone = 'UTC'").fetchall()
        empty = intake.SCHEMA.empty_table()
        empty = empty.append_column("directory", [[]]).append_column("hour", [[]])
        engine.register("empty", empty)
        engine.execute(
            "CREATE TABLE fresh AS SELECT * REPLACE (directory::VARCHAR AS directory, hour::BIGINT AS hour) FROM empty"
        ).fetchall()
        engine.execute("CREATE TABLE replaced (host_name VARCHAR, file VARCHAR)").fetchall()
        yield engine
    finally:
        engine.close()


def _insert(engine: Any, taken: Taken) -> None:
    engine.register("taken", taken.table)
    engine.execute("INSERT INTO fresh SELECT * FROM taken").fetchall()
    engine.unregister("taken")


def _clean(storage: Storage, grace_s: float) -> None:
    """Delete parts that no manifest names, and that are old: of runs that were killed, and replaced ones."""
    valid = {part.path for part in table.parts(storage)}
    before_s = time.time() - grace_s
    for found in storage.files(TABLE, ".parquet"):
        if found.path not in valid and found.changed_s < before_s:
            storage.remove(found.path)
