"""Questions to the table of a fleet, answered by ClickHouse.

    python3 contrib/clickhouse/fleet.py /srv/fleet --peer 1.2.3.4 --from 10:00 --to 10:05

The selectors are those of `skbcapd fleet query`. ClickHouse runs in this process (chdb), and reads the parts that the
manifests name, in a directory of this machine.

Needs: chdb, pyarrow and skbcapd[fleet].
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import chdb
import pyarrow as pa

from skbcapd.analysis.selectors import Selectors
from skbcapd.cli import selecting
from skbcapd.errors import FleetError, SkbcapdError
from skbcapd.fleet import answer, table
from skbcapd.fleet.engines import Answer
from skbcapd.fleet.questions import Questions, span_us
from skbcapd.fleet.storage import Storage

_KINDS = {str: "String", int: "Int64", datetime: "DateTime64(6, 'UTC')"}
_SPECIAL = re.compile(r"[\\'{},*?]")


class ClickHouse:
    """ClickHouse as an engine of `skbcapd.fleet.engines`.

    Args:
        paths: the parts, in directories of this machine.

    Raises:
        FleetError: ClickHouse cannot be given such a path.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        if any(_SPECIAL.search(path) for path in paths):
            raise FleetError("ClickHouse: a path has a quotation mark, a brace, a comma, or * or ?; expected none")
        each = " UNION ALL ".join(f"SELECT * FROM file('{path}', Parquet)" for path in paths)  # noqa: S608  checked
        self.source = f"({each})" if paths else ""

    def ask(self, query: str, values: Sequence[Any]) -> Answer:
        """See skbcapd.fleet.engines.Engine."""
        texts, given = query.split("?"), {}
        whole = texts[0]
        for number, (text, value) in enumerate(zip(texts[1:], values, strict=True)):
            whole += f"{{p{number}:{_KINDS[type(value)]}}}{text}"
            is_time = isinstance(value, datetime)
            given[f"p{number}"] = f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}" if is_time else value
        try:
            data = chdb.query(whole, "Arrow", params=given).bytes()
        except RuntimeError as error:
            raise FleetError(f"ClickHouse: {str(error).splitlines()[0]}; expected an answer") from None
        found = pa.ipc.open_file(data).read_all()
        return found.column_names, list(zip(*(column.to_pylist() for column in found.columns), strict=True))

    def close(self) -> None:
        """It has nothing open."""


def engine(storage: Storage, selectors: Selectors) -> ClickHouse:
    """ClickHouse with the parts that a question must open.

    Raises:
        FleetError: the storage is not on this machine.
    """
    if not storage.is_local:
        raise FleetError(f"{storage.url}: expected a directory of this machine")
    return ClickHouse(table.paths(storage, table.parts(storage, *span_us(selectors))))


def main() -> None:
    """Run a command line."""
    parser = argparse.ArgumentParser(description="Questions to the table of a fleet, answered by ClickHouse.")
    parser.add_argument("storage", metavar="DIRECTORY")
    parser.add_argument("--format", choices=answer.FORMATS, default="table")
    group = parser.add_argument_group("selectors")
    selecting.add_host(group)
    selecting.add_all(group)
    options = parser.parse_args()
    chosen = selecting.selectors_of(options)
    with Questions(engine(Storage(options.storage), chosen), chosen, options.hosts) as questions:
        answer.write(options.format, *questions.answer(), sys.stdout)


if __name__ == "__main__":
    try:
        main()
    except SkbcapdError as error:
        sys.exit(f"skbcapd: {error}")
