"""Questions to the table of a fleet, and its packets, on Spark.

    spark-submit contrib/spark/fleet.py query s3://captures --peer 1.2.3.4 --from 10:00 --to 10:05
    spark-submit contrib/spark/fleet.py extract s3://captures --peer 1.2.3.4 -w found.pcapng

The selectors are those of `skbcapd fleet`. Spark reads the parts that the manifests name. Each capture file is one
group of rows: its packets are read by `skbcapd.fleet.packets`, on the machine that Spark chooses, over fsspec. The
driver merges them into one file in the order of time.

Needs: pyspark, pyarrow and skbcapd[fleet] on all machines, and a Java runtime (Debian: default-jre-headless).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from skbcapd.analysis.selectors import Selection, Selectors
from skbcapd.cli import selecting
from skbcapd.errors import FileError, FleetError, SkbcapdError
from skbcapd.fleet import answer, extraction, intake, table
from skbcapd.fleet.engines import Answer
from skbcapd.fleet.questions import ROWS, Questions, row, span_us
from skbcapd.fleet.storage import Storage

_KINDS = {"int32": "int", "int64": "bigint", "string": "string", "timestamp[us, tz=UTC]": "timestamp"}
_COLUMNS = [
    *((name, _KINDS[str(intake.SCHEMA.field(name).type)]) for name in intake.SCHEMA.names),
    ("directory", "string"),
]
_TASKS = 8  # in which captures are read
_FILE = ("host_name", "directory", "file")
_FOUND = "host_name string, file string, packets long, opened long, bytes long, size long, wrong string, pcapng binary"


class Spark:
    """Spark as an engine of `skbcapd.fleet.engines`.

    Args:
        spark: a session.
        paths: the parts, as Spark finds them.
    """

    def __init__(self, spark: SparkSession, paths: Sequence[str]) -> None:
        self._spark = spark
        self.source = "parts" if paths else ""
        if paths:
            # With a schema, no file is opened to find one.
            columns = ", ".join(f"`{name}` {kind}" for name, kind in _COLUMNS)
            spark.read.schema(columns).parquet(*paths).createOrReplaceTempView(self.source)

    def frame(self, query: str, values: Sequence[Any]) -> DataFrame:
        """A query that was not run yet."""
        return self._spark.sql(query, args=list(values))

    def ask(self, query: str, values: Sequence[Any]) -> Answer:
        """See skbcapd.fleet.engines.Engine."""
        try:
            found = self.frame(query, values).toArrow()
        except PySparkException as error:
            raise FleetError(f"Spark: {str(error).splitlines()[0]}; expected an answer") from None
        return found.column_names, list(zip(*(column.to_pylist() for column in found.columns), strict=True))

    def close(self) -> None:
        """The session belongs to the caller."""


def session(master: str) -> SparkSession:
    """Start Spark.

    Args:
        master: such as local[*] or spark://HOST:7077; empty: what spark-submit says.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("skbcapd")
    if master:
        builder = builder.master(master)
    if master.startswith("local"):
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
        # Answers are small: more than one partition, and planning again between stages, costs half of the time.
        builder = builder.config("spark.ui.enabled", "false").config("spark.sql.adaptive.enabled", "false")
    return (
        builder.config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.ansi.doubleQuotedIdentifiers", "true")
        .config("spark.sql.shuffle.partitions", "1" if master.startswith("local") else str(_TASKS))
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )


def engine(spark: SparkSession, storage: Storage, selectors: Selectors, root: str = "") -> Spark:
    """Spark with the parts that a question must open.

    Args:
        spark: a session.
        storage: has the manifests.
        selectors: of the question.
        root: where Spark finds the storage; empty: at its URL, s3:// as s3a://.
    """
    begin = (root or storage.full("").replace("s3://", "s3a://", 1)).rstrip("/")
    return Spark(spark, [f"{begin}/{part.path}" for part in table.parts(storage, *span_us(selectors))])


def extract(
    spark: Spark, questions: Questions, template: str, selection: Selection, into: Path
) -> tuple[list[str], list[str]]:
    """Write the selected packets of all files to one; lines about what was written, and about what could not be read.

    Args:
        spark: the engine of the questions.
        questions: their rows.
        template: of URLs of captures, as of `skbcapd fleet extract --captures`.
        selection: of packets.
        into: the file to write.
    """

    def packets(rows: pa.Table) -> pa.Table:
        captures = extraction.Captures(template)
        lines = rows.to_pylist()
        host, directory, file = (lines[0][name] for name in _FILE)
        names = [name for name in rows.column_names if name != "directory"]
        data, count, wrong = b"", 0, ""
        try:
            found = [row([line[name] for name in names]) for line in lines]
            data, count, problem = captures.packets(directory, found, selection)
            wrong = str(problem or "")
        except (FileError, FleetError) as error:
            wrong = str(error)
        read = captures.counts
        values = (host, file, count, read.opened, read.bytes, captures.size, wrong, data)
        return pa.table({name.split()[0]: [value] for name, value in zip(_FOUND.split(", "), values, strict=True)})

    made: list[Path] = []
    wrong, opened, read, size = [], 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="skbcapd-fleet-") as place:
        if spark.source:
            frame = spark.frame(*questions.query(ROWS)).repartition(_TASKS, *_FILE)
            for found in frame.groupBy(*_FILE).applyInArrow(packets, _FOUND).toLocalIterator():
                opened, read, size = opened + found.opened, read + found.bytes, size + found.size
                if found.wrong:
                    wrong.append(found.wrong)
                if found.packets:
                    made.append(Path(place) / f"{len(made)}.pcapng")
                    made[-1].write_bytes(found.pcapng)
        said = extraction.merge(made, into, Path(place))
    return [*said, f"{opened} ranges, {read} of {size} bytes read"], sorted(set(wrong))


def main() -> Iterator[str]:
    """Run a command line; lines about what is wrong."""
    parser = argparse.ArgumentParser(description="Questions to the table of a fleet, and its packets, on Spark.")
    parser.add_argument("action", choices=("query", "extract"))
    parser.add_argument("storage", metavar="URL")
    parser.add_argument("--master", default="", help="of Spark; default: that of spark-submit")
    parser.add_argument("--root", default="", help="where Spark finds the storage; default: URL, s3:// as s3a://")
    parser.add_argument("--format", choices=answer.FORMATS, default="table")
    parser.add_argument("-w", dest="file", type=Path, default=Path("found.pcapng"))
    parser.add_argument("--captures", default="", help="as of skbcapd fleet extract")
    group = parser.add_argument_group("selectors")
    selecting.add_host(group)
    selecting.add_all(group)
    options = parser.parse_args()
    chosen = selecting.selectors_of(options)
    spark = session(options.master)
    try:
        on = engine(spark, Storage(options.storage), chosen, options.root)
        with Questions(on, chosen, options.hosts) as questions:
            if options.action == "query":
                answer.write(options.format, *questions.answer(), sys.stdout)
                return
            template = options.captures or f"{options.storage.rstrip('/')}/{extraction.CAPTURES}"
            said, wrong = extract(on, questions, template, Selection(replace(chosen, interfaces=())), options.file)
        print(*said, sep="\n", file=sys.stderr)
        yield from wrong
    finally:
        spark.stop()


if __name__ == "__main__":
    try:
        problems = list(main())
    except SkbcapdError as error:
        sys.exit(f"skbcapd: {error}")
    if problems:
        sys.exit("\n".join(f"skbcapd: {line}" for line in problems))
