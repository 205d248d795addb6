"""The requests of a plan, shard by shard: worked out from the spec, or rows of its request file.

Rows of a file are copied below the output before the plan is stored, in Parquet files of whole shards: a resume and a
validation read the few they need, also when the file itself is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.plan import Plan, request_id, task_of
from jobs.request_file import BATCH, RequestFileError, RowDigest, Rows
from jobs.spec import FixedSpec, SpecError, request_file
from spd_core.draws import image_seed
from workers import layout
from workers.records import ShardTask
from workers.store import Conflict, Store, StoreError


def part_rows(plan: Plan) -> int:
    """Rows of a part: as many whole shards as fit into a batch, and at least one."""
    size: int = plan.spec["shard_size"]
    return size * max(1, BATCH // size)


def request_parts(plan: Plan) -> tuple[str, ...]:
    """Paths of the copied rows; none if the spec names no request file."""
    digest = plan.spec["requests"].get("sha256", "")
    parts = -(-plan.rows // part_rows(plan)) if digest else 0
    return tuple(layout.requests(digest, part, parts) for part in range(parts))


def store_requests(store: Store, spec: FixedSpec, plan: Plan) -> None:
    """Copies the rows of the spec's request file below the output, unless they are there.

    Raises:
        SpecError: the file cannot be read, or has changed since the spec was made.
        StoreError: the output cannot be written.
    """
    paths = request_parts(plan)
    if not paths or set(paths) <= set(store.list(paths[0].rpartition("/")[0])):
        return
    source = request_file(spec, len(plan.class_names))
    digest = RowDigest()
    try:
        tables = _regrouped((_table(rows, digest) for rows in source.rows()), part_rows(plan))
        for path, table in zip(paths, tables, strict=False):
            _put(store, path, _to_bytes(table))
    except RequestFileError as error:
        raise SpecError(str(error)) from error
    if digest.hexdigest() != plan.spec["requests"]["sha256"]:
        for path in paths:
            store.delete(path)
        raise SpecError(f"requests.file: {source.shown} was changed while it was read, allowed: a file that stays")


def _table(rows: Rows, digest: RowDigest) -> pa.Table:
    digest.add(rows)
    columns = {"id": rows.ids, "label": rows.labels, "seed": rows.seeds}
    return pa.table({name: column for name, column in columns.items() if column is not None})


def _regrouped(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``size``; the last one may be smaller."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += table.num_rows
        while count >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size)
            held, count = [whole.slice(size)], count - size
    if count:
        yield pa.concat_tables(held)


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def _put(store: Store, path: str, data: bytes) -> None:
    try:
        store.create(path, data)
    except Conflict:
        # Its name holds the hash of the rows: it is damaged, or the same rows in another library's spelling.
        store.replace(path, data)


def rows_problem(store: Store, plan: Plan) -> str | None:
    """What is wrong with the copied rows, led by a path; None: they are those the plan was made for.

    Raises:
        StoreError: the store cannot be read.
    """
    paths, digest, first = request_parts(plan), RowDigest(), 0
    for path in paths:
        try:
            table = _read_part(store, path)
        except FileNotFoundError:
            return f"{path}: missing"
        except StoreError as error:
            return str(error)
        ids = table["id"].to_pylist() if "id" in table.column_names else None
        seeds = np.asarray(table["seed"]) if "seed" in table.column_names else None
        digest.add(Rows(first, np.asarray(table["label"]), ids, seeds))
        first += table.num_rows
    if paths and digest.hexdigest() != plan.spec["requests"]["sha256"]:
        return f"{paths[0]}: the requests are not the plan's"
    return None


def _read_part(store: Store, path: str) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(store.read(path)), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, (StoreError, FileNotFoundError)):
            raise
        raise StoreError(f"{path}: damaged; without it, `spd generate` with the same spec writes it again") from error


class Tasks:
    """Shards of a plan as tasks, made when they are needed; may be asked by several threads.

    Args:
        store: the output.
        plan: of the job.
    """

    def __init__(self, store: Store, plan: Plan) -> None:
        self._store, self._plan = store, plan
        self._parts = request_parts(plan)
        # Shards are asked for about in order, so a few parts are enough.
        self._read = lru_cache(maxsize=4)(self._part)

    def task(self, shard: int, attempt: int) -> ShardTask:
        """The requests of one shard.

        Raises:
            StoreError: the copied rows cannot be read.
        """
        if not self._parts:
            return task_of(self._plan, shard, attempt)
        wanted, size = self._plan.rows_of(shard), part_rows(self._plan)
        table = self._read(wanted.start // size).slice(wanted.start % size, len(wanted))
        given = {name: table[name].to_pylist() for name in table.column_names}
        ids = given.get("id") or [request_id(index) for index in wanted]
        seeds = given.get("seed") or [image_seed(self._plan.spec["seed"], name) for name in ids]
        return ShardTask(
            shard=shard, attempt=attempt, request_ids=tuple(ids), labels=tuple(given["label"]), seeds=tuple(seeds)
        )

    def _part(self, part: int) -> pa.Table:
        path = self._parts[part]
        table = _read_part(self._store, path)
        if table.num_rows != min(part_rows(self._plan), self._plan.rows - part * part_rows(self._plan)):
            raise StoreError(f"{path}: has {table.num_rows} rows, not the plan's")
        return table
