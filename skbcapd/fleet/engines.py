"""What answers a question: a program that has the table, and understands SQL.

In: parts of the table. Out: lines of an answer. DuckDB is here; others are in contrib/.

The rule: parts are not trusted, a disk can damage them. Libraries do not always name the file that they cannot read, so
it is searched: with the same query, on fewer and fewer parts.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias

import duckdb

from skbcapd.errors import FleetError
from skbcapd.fleet import table
from skbcapd.fleet.storage import Storage
from skbcapd.fleet.table import Part
from skbcapd.text_safety import escaped

Answer: TypeAlias = tuple[list[str], list[tuple[Any, ...]]]
"""Names of columns, and lines."""

UNREADABLE = (duckdb.Error, OSError, ValueError, OverflowError)
"""What DuckDB raises for a file that it cannot read; the last two while it makes values of it."""

_STACK = re.compile(r"Traceback \(most recent call last\):.*, in \w+ ")


class Engine(Protocol):
    """Answers questions.

    Args:
        source: what follows FROM in a query, also several times; empty: there are no rows.
    """

    source: str

    def ask(self, query: str, values: Sequence[Any]) -> Answer:
        """Ask.

        Args:
            query: in SQL as SQL:2016 has it, with `?` for values.
            values: texts, integers and times.

        Raises:
            FleetError: it cannot be answered.
        """

    def close(self) -> None:
        """Release what it has."""


class DuckDB:
    """DuckDB in this process, on the files of the table.

    Args:
        storage: the storage.
        parts: what it reads.
    """

    def __init__(self, storage: Storage, parts: Sequence[Part]) -> None:
        self.source = "read_parquet(getvariable('parts'), hive_partitioning = false)" if parts else ""
        self._storage, self._parts = storage, parts
        self._engine = self._connection(parts)

    def _connection(self, parts: Sequence[Part]) -> Any:
        """A database of parts."""
        engine: Any = duckdb.connect()
        engine.execute("SET TimeZone = 'UTC'").fetchall()
        engine.execute("SET VARIABLE parts = ?", [table.paths(self._storage, parts)]).fetchall()
        if not self._storage.is_local:
            engine.register_filesystem(self._storage.system)
        return engine

    def ask(self, query: str, values: Sequence[Any]) -> Answer:
        """See Engine."""
        try:
            return _ask(self._engine, query, values)
        except UNREADABLE as error:
            self._expect_readable(query, values)
            raise FleetError(
                f"the table: {reason(error)}; expected to read it", "a compaction may have replaced a part: ask again"
            ) from None

    def _expect_readable(self, query: str, values: Sequence[Any]) -> None:
        """Find out whether a query has failed because of one part, which cannot be read without the query, either.

        Raises:
            FleetError: it has; or the storage has failed.
        """
        table.expect_sizes(self._storage, self._parts)
        left = list(self._parts)  # without any, there is no query
        with contextlib.suppress(FileNotFoundError):  # whether the storage works
            self._storage.part(left[0].path, 0, 4)
        while len(left) > 1:
            half = left[: len(left) // 2]
            left = half if self._problem(half, query, values) else left[len(half) :]
        for part in left:
            why = self._problem(left, query, values)
            if why and self._problem(left, f"SELECT max(hash(whole)) FROM {self.source} AS whole", ()):
                raise table.damaged(self._storage, part, why)

    def _problem(self, parts: Sequence[Part], query: str, values: Sequence[Any]) -> str:
        """Why a query on some parts fails; empty if it does not."""
        engine = self._connection(parts)
        try:
            _ask(engine, query, values)
        except UNREADABLE as error:
            return reason(error)
        finally:
            engine.close()
        return ""

    def close(self) -> None:
        """See Engine."""
        self._engine.close()


def _ask(engine: Any, query: str, values: Sequence[Any]) -> Answer:
    """Ask a database, in a thread: DuckDB 2.0 sees a signal late or never, and then raises RuntimeError."""

    def ask() -> Answer:
        result = engine.execute(query, list(values))
        return [column[0] for column in result.description], result.fetchall()

    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            return pool.submit(ask).result()
        except KeyboardInterrupt:
            engine.interrupt()
            raise


def reason(error: BaseException) -> str:
    """One of UNREADABLE in words; errors of a file system contain its stack, and a part of the query."""
    text = _STACK.sub("", " ".join(str(error).split())).partition(" LINE 1: ")[0]
    return escaped(text[:300]) or type(error).__name__
