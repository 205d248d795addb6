"""The committed rows of an output as one Arrow dataset."""

from __future__ import annotations

from typing import Any

import pyarrow.dataset as arrow

from jobs.dataset.commits import find_missing, read_committed
from jobs.job.plan import read_plan
from workers import layout
from workers.parquet import data_schema
from workers.store import Store


def committed_rows(output: str, storage_options: dict[str, Any] | None = None) -> arrow.Dataset:
    """The rows of every committed shard, in the order of the requests; nothing is read before it is asked for.

    A shard whose files are gone or shorter than they were is left out. Hashes are not looked at: `spd validate` does.

    Args:
        output: URL or folder of a dataset, finished or not.
        storage_options: of its file system.

    Raises:
        SpecError: no job is there.
        StoreError: the output cannot be read.
    """
    store = Store(output, storage_options)
    plan = read_plan(store)
    committed = read_committed(store, plan)
    find_missing(store, committed)
    images = layout.PARTS.index(layout.DATA)
    records = sorted(committed.records.items())
    paths = [kept.paths[images] for shard, kept in records if shard not in committed.damaged]
    schema = data_schema(plan.class_names)
    if not paths:
        return arrow.dataset(schema.empty_table())
    file_system, keys = store.addresses(paths)
    return arrow.dataset(keys, schema=schema, format="parquet", filesystem=file_system)
