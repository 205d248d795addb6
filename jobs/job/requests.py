"""The requests of a plan, shard by shard: worked out from the spec, or rows of its request file.

Rows of a file are copied below the output before the plan is stored: Parquet files of whole shards, and last an index
with the hash of each. Whoever needs the requests of a shard then reads one small file, also when the source is gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.job.plan import Plan, request_id, task_of
from jobs.job.request_file import BATCH, RequestFileError, RowDigest, Rows
from jobs.job.spec import FixedSpec, request_file
from jobs.words.errors import SpecError
from spd_core.draws import image_seed
from workers import layout
from workers.records import ShardTask
from workers.sealed import canonical_json, seal, unseal
from workers.store import Conflict, Store, StoreError


def part_rows(plan: Plan) -> int:
    """Rows of a part: as many whole shards as fit into a batch, and at least one."""
    size = plan.spec.shard_size
    return size * max(1, BATCH // size)


def request_parts(plan: Plan) -> tuple[str, ...]:
    """Paths of the copied rows; none if the spec names no request file."""
    digest = plan.spec.requests.sha256
    parts = -(-plan.rows // part_rows(plan)) if digest else 0
    return tuple(layout.requests(digest, part, parts) for part in range(parts))


def request_files(plan: Plan) -> tuple[str, ...]:
    """Paths of the parts and of their index."""
    parts = request_parts(plan)
    return (*parts, layout.requests_index(plan.spec.requests.sha256)) if parts else ()


def store_requests(store: Store, spec: FixedSpec, plan: Plan) -> None:
    """Copies the rows of the spec's request file below the output, unless they are there.

    Raises:
        SpecError: the file cannot be read, or has changed since the spec was made.
        StoreError: the output cannot be written.
    """
    if not request_parts(plan) or _is_sound(store, plan):
        return
    source = request_file(spec, plan.class_names)
    digest, made = RowDigest(), []
    try:
        tables = _regrouped((_table(rows, digest) for rows in source.rows()), part_rows(plan))
        for path, table in zip(request_parts(plan), tables, strict=False):
            made.append(_put(store, path, table))
    except RequestFileError as error:
        raise SpecError(str(error)) from error
    if digest.hexdigest() != plan.spec.requests.sha256:
        for path in request_files(plan):
            store.delete(path)
        raise SpecError(
            f"requests.file: {source.shown} was changed while it was read, allowed: a file that does not change"
        )
    store.replace(request_files(plan)[-1], canonical_json(seal({"parts": made})))
    pa.default_memory_pool().release_unused()  # the driver lives on for hours


def _is_sound(store: Store, plan: Plan) -> bool:
    tasks = Tasks(store, plan)
    try:
        for part in range(len(request_parts(plan))):
            tasks.part(part)
    except DamagedRequests:
        return False
    return True


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
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    return bytes(sink.getvalue())


def _put(store: Store, path: str, table: pa.Table) -> str:
    """Writes a part; its sha256."""
    data = _to_bytes(table)
    try:
        store.create(path, data)
    except Conflict:
        # The path holds the hash of the rows: this one is damaged, or another library's spelling of the same rows.
        store.replace(path, data)
    return hashlib.sha256(data).hexdigest()


def rows_problem(store: Store, plan: Plan) -> str | None:
    """What is wrong with the copied rows, led by a path; None: they are those the plan was made for.

    Raises:
        StoreError: the store cannot be read.
    """
    digest, first = RowDigest(), 0
    tasks = Tasks(store, plan)
    for part in range(len(request_parts(plan))):
        try:
            table = tasks.part(part)
        except DamagedRequests as error:
            return str(error)
        ids = table["id"].to_pylist() if "id" in table.column_names else None
        seeds = np.asarray(table["seed"]) if "seed" in table.column_names else None
        digest.add(Rows(first, np.asarray(table["label"]), ids, seeds))
        first += table.num_rows
    if first and digest.hexdigest() != plan.spec.requests.sha256:
        return f"{request_files(plan)[-1]}: the requests are not the plan's"
    return None


class DamagedRequests(StoreError):
    """The copied rows are not those that were written; the message leads with the path."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path}: {what}; `spd generate` with the same spec writes it again")


class Tasks:
    """Shards of a plan as tasks, made when they are needed; may be asked by several threads.

    Args:
        store: the output.
        plan: of the job.
    """

    def __init__(self, store: Store, plan: Plan) -> None:
        self._store, self._plan = store, plan
        self._paths = request_parts(plan)
        self._digests = cache(self._index)
        # Shards are asked for about in order, so a few parts are enough.
        self.part = lru_cache(maxsize=4)(self._part)

    def task(self, shard: int, attempt: int) -> ShardTask:
        """The requests of one shard.

        Raises:
            StoreError: the copied rows cannot be read, or are damaged.
        """
        if not self._paths:
            return task_of(self._plan, shard, attempt)
        wanted, size = self._plan.rows_of(shard), part_rows(self._plan)
        table = self.part(wanted.start // size).slice(wanted.start % size, len(wanted))
        given = {name: table[name].to_pylist() for name in table.column_names}
        ids = given.get("id") or [request_id(index) for index in wanted]
        seeds = given.get("seed") or [image_seed(self._plan.spec.seed, name) for name in ids]
        return ShardTask(
            shard=shard, attempt=attempt, request_ids=tuple(ids), labels=tuple(given["label"]), seeds=tuple(seeds)
        )

    def _index(self) -> list[str]:
        """Hashes of the parts."""
        path = request_files(self._plan)[-1]
        try:
            digests: list[str] = unseal(self._store.read(path))["parts"]
        except FileNotFoundError as error:
            raise DamagedRequests(path, "missing") from error
        except (ValueError, KeyError) as error:
            raise DamagedRequests(path, "damaged") from error
        if len(digests) != len(self._paths):
            raise DamagedRequests(path, f"lists {len(digests)} parts, planned: {len(self._paths)}")
        return digests

    def _part(self, part: int) -> pa.Table:
        path, digests = self._paths[part], self._digests()
        try:
            data = self._store.read(path)
        except FileNotFoundError as error:
            raise DamagedRequests(path, "missing") from error
        if hashlib.sha256(data).hexdigest() != digests[part]:
            raise DamagedRequests(path, "damaged")
        return pq.read_table(pa.BufferReader(data))
