"""The table of a fleet as an Iceberg table, for engines that search a year of it.

    python3 contrib/iceberg/fleet.py s3://captures --catalog fleet --table skbcapd.rows

Run it after each `skbcapd fleet compact`, on one machine. The Iceberg table then has the parts that the manifests
name, as they are: no row is copied. What has changed since the last run is one commit, so readers see all of it or
nothing, and a run can be killed at any moment. If another run commits at the same time, one of them fails, and
changes nothing. The catalog is described in .pyiceberg.yaml, or in PYICEBERG_CATALOG__FLEET__... (pyiceberg's own).

Needs: pyiceberg and skbcapd[fleet].
"""

from __future__ import annotations

import argparse
import sys

from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.io.pyarrow import parquet_file_to_data_file
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform
from pyiceberg.types import IntegerType, LongType, NestedField, StringType, TimestamptzType

from skbcapd.errors import FleetError, SkbcapdError
from skbcapd.fleet import intake, table
from skbcapd.fleet.storage import Storage

_KINDS = {
    "int32": IntegerType(),
    "int64": LongType(),
    "string": StringType(),
    "timestamp[us, tz=UTC]": TimestamptzType(),
}
_COLUMNS = [*((name, str(intake.SCHEMA.field(name).type)) for name in intake.SCHEMA.names), ("directory", "string")]
_SCHEMA = Schema(*(NestedField(number, name, _KINDS[kind]) for number, (name, kind) in enumerate(_COLUMNS, 1)))
_DAY = PartitionField(_SCHEMA.find_field("ts_first").field_id, 1000, DayTransform(), "day")
_PROPERTIES = {
    "schema.name-mapping.default": _SCHEMA.name_mapping.model_dump_json(),  # the parts have no Iceberg ids
    "commit.retry.num-retries": "0",  # a repeated commit could add a part that another run has added
    "commit.manifest-merge.enabled": "true",
    "write.metadata.delete-after-commit.enabled": "true",
}


def opened(catalog: Catalog, name: str) -> Table:
    """The Iceberg table; made if there is none.

    Args:
        catalog: has it.
        name: NAMESPACE.NAME.
    """
    try:
        return catalog.load_table(name)
    except NoSuchTableError:
        catalog.create_namespace_if_not_exists(name.rpartition(".")[0])
        return catalog.create_table_if_not_exists(
            name, _SCHEMA, partition_spec=PartitionSpec(_DAY), properties=_PROPERTIES
        )


def commit(storage: Storage, rows: Table) -> tuple[int, int]:
    """Make the Iceberg table have the valid parts, and no others.

    Args:
        storage: has the parts.
        rows: the Iceberg table, as `opened` has loaded it.

    Returns:
        How many parts were added, and how many removed: those that a compaction has replaced.

    Raises:
        FleetError: the storage cannot be read, or another run has committed since the table was loaded.
    """
    valid = table.paths(storage, table.parts(storage))
    known = {task.file.file_path: task.file for task in rows.scan().plan_files()}
    added = [parquet_file_to_data_file(rows.io, rows.metadata, path) for path in sorted(set(valid).difference(known))]
    removed = [file for path, file in known.items() if path not in set(valid)]
    if added or removed:
        try:
            with rows.transaction() as transaction:
                update = transaction.update_snapshot()
                with update.overwrite() if removed else update.merge_append() as change:
                    for file in removed:
                        change.delete_data_file(file)
                    for file in added:
                        change.append_data_file(file)
        except CommitFailedException as error:
            why = " ".join(str(error).split())
            raise FleetError(
                f"Iceberg: {why}; expected one run at a time", "nothing was changed; run it again"
            ) from None
    return len(added), len(removed)


def main() -> None:
    """Run a command line."""
    parser = argparse.ArgumentParser(description="The table of a fleet as an Iceberg table.")
    parser.add_argument("storage", metavar="URL")
    parser.add_argument("--catalog", default="fleet", help="name in pyiceberg's configuration")
    parser.add_argument("--table", default="skbcapd.rows", metavar="NAMESPACE.NAME")
    options = parser.parse_args()
    added, removed = commit(Storage(options.storage), opened(load_catalog(options.catalog), options.table))
    print(f"{added} parts added, {removed} removed")


if __name__ == "__main__":
    try:
        main()
    except SkbcapdError as error:
        sys.exit(f"skbcapd: {error}")
