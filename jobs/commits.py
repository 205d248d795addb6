"""What of a job is done, from the store alone: commit records, and the shards that have to be made again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from jobs.plan import Plan
from jobs.spec import SpecError
from workers import layout
from workers.records import CommitRecord
from workers.shard import DamagedCommit, drop_shard, read_commit, verify_shard
from workers.store import Store

logger = logging.getLogger(__name__)
_THREADS = 16  # requests in flight against an object store, whose latency outweighs its bandwidth here
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass
class Committed:
    """The commit records of an output."""

    records: dict[int, CommitRecord] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)  #: shard and what is wrong with it


def _in_threads(call: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(call, items))


def read_record(store: Store, plan: Plan, shard: int) -> CommitRecord | None:
    """The commit record of a shard, None if there is none.

    Raises:
        SpecError: the record is another job's.
        DamagedCommit: it is not a record of this shard.
    """
    record = read_commit(store, shard)
    if record is None:
        return None
    if record.fingerprint != plan.fingerprint:
        raise SpecError(
            f"output: {layout.commit(shard)} belongs to a job with fingerprint {record.fingerprint[:12]}..., "
            f"allowed: {plan.fingerprint[:12]}...; use another output"
        )
    if record.rows != len(plan.rows_of(shard)):
        raise DamagedCommit(f"{layout.commit(shard)}: has {record.rows} rows, planned: {len(plan.rows_of(shard))}")
    return record


def read_committed(store: Store, plan: Plan) -> Committed:
    """Every commit record of the job; a record that cannot be believed is damaged, another job's is refused.

    Raises:
        SpecError: a record is another job's.
        StoreError: the store cannot be read.
    """
    names = {layout.commit(shard): shard for shard in range(plan.shards)}
    listed = store.list(layout.COMMITS)
    if stray := sorted(set(listed) - set(names)):
        raise SpecError(f"output: {stray[0]} is no shard of this job, allowed: another output")
    found = [names[path] for path in listed]

    def read(shard: int) -> CommitRecord | str | None:
        try:
            return read_record(store, plan, shard)
        except DamagedCommit as error:
            return str(error)

    result = Committed()
    for shard, outcome in zip(found, _in_threads(read, found), strict=True):
        if isinstance(outcome, CommitRecord):
            result.records[shard] = outcome
        elif outcome is not None:
            result.damaged[shard] = outcome
    return result


def find_damage(store: Store, committed: Committed) -> None:
    """Re-reads every file of every committed shard and moves those that do not match their record to ``damaged``.

    Raises:
        StoreError: the store cannot be read.
    """
    shards = sorted(committed.records)
    found = _in_threads(lambda shard: verify_shard(store, committed.records[shard]), shards)
    for shard, problems in zip(shards, found, strict=True):
        if problems:
            committed.damaged[shard] = problems[0]


def drop_damaged(store: Store, plan: Plan, committed: Committed) -> dict[int, int]:
    """Deletes the damaged shards so that they can be made again; returns the number of their next attempt."""
    attempts = {}
    for shard, problem in sorted(committed.damaged.items()):
        logger.warning("shard %d is made again: %s", shard, problem)
        record = committed.records.pop(shard, None)
        attempts[shard] = record.attempt + 1 if record else 0
        drop_shard(store, shard, plan.shards)
    committed.damaged.clear()
    return attempts
