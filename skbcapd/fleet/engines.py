"""What answers a question: a program that has the table, and understands SQL.

In: parts of the table. Out: lines of an answer. DuckDB is here; others are in contrib/.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import duckdb

from skbcapd.errors import FleetError
from skbcapd.fleet import table
from skbcapd.fleet.storage import Storage
from skbcapd.fleet.table import Part
from skbcapd.text_safety import escaped

Answer: TypeAlias = tuple[list[str], list[tuple[Any, ...]]]
"""Names of columns, and lines."""

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
        self._engine: Any = duckdb.connect()
        self._engine.execute("SET TimeZone = 'UTC'").fetchall()
        self._engine.execute("SET VARIABLE parts = ?", [table.paths(storage, parts)]).fetchall()
        if not storage.is_local:
            self._engine.register_filesystem(storage.system)

    def ask(self, query: str, values: Sequence[Any]) -> Answer:
        """See Engine."""
        try:
            result = self._engine.execute(query, list(values))
            return [column[0] for column in result.description], result.fetchall()
        except (duckdb.Error, OSError) as error:
            # Errors of a file system contain its stack, and a part of the query.
            why = escaped(_STACK.sub("", " ".join(str(error).split())).partition(" LINE 1: ")[0][:300])
            raise FleetError(
                f"the table: {why}; expected to read it", "a compaction may have replaced a part: ask again"
            ) from None

    def close(self) -> None:
        """See Engine."""
        self._engine.close()
