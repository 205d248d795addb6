"""What of a job is done, from the store alone: commit records, and the shards that have to be made again.

Records are read many at a time and pass by one by one: what stays of each is a few numbers and hashes.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from jobs.plan import Plan
from jobs.spec import SpecError
from workers import layout
from workers.records import CommitRecord, FileRecord
from workers.shard import DamagedCommit, drop_shard, file_problem, parse_commit, read_commit, shard_paths, verify_shard
from workers.store import Store

logger = logging.getLogger(__name__)
_RECORDS = 512  #: commit records held at a time
_THREADS = 16  #: files read at a time: an object store's latency outweighs its bandwidth here
_BYTES = 1 << 26  #: of the files that are read at a time, about
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Kept:
    """What is remembered of a commit record: hashes as bytes, for there may be a great many."""

    shard: int
    shards: int  #: of the job
    rows: int
    attempt: int
    sha256: bytes  #: of the record's own bytes
    sizes: tuple[int, ...]  #: bytes of the files, in the order of `workers.shard.shard_paths`
    digests: tuple[bytes, ...]
    file_rows: tuple[int, ...]

    @staticmethod
    def of(record: CommitRecord, raw: bytes, shards: int) -> Kept:
        """Of a record whose files are those of its shard, and its bytes."""
        return Kept(
            record.shard,
            shards,
            record.rows,
            record.attempt,
            hashlib.sha256(raw).digest(),
            tuple(file.bytes for file in record.files),
            tuple(bytes.fromhex(file.sha256) for file in record.files),
            tuple(file.rows for file in record.files),
        )

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the files."""
        return shard_paths(self.shard, self.shards)[: len(self.sizes)]

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The committed files."""
        facts = zip(self.paths, self.sizes, self.digests, self.file_rows, strict=True)
        return tuple(FileRecord(path=p, bytes=size, sha256=d.hex(), rows=rows) for p, size, d, rows in facts)


@dataclass
class Committed:
    """The commit records of an output."""

    records: dict[int, Kept] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)  #: shard and what is wrong with it


def _checked(record: CommitRecord, plan: Plan) -> CommitRecord:
    path = layout.commit(record.shard)
    if record.fingerprint != plan.fingerprint:
        raise SpecError(
            f"output: {path} belongs to a job with fingerprint {record.fingerprint[:12]}..., "
            f"allowed: {plan.fingerprint[:12]}...; use another output"
        )
    if record.rows != len(plan.rows_of(record.shard)):
        raise DamagedCommit(f"{path}: has {record.rows} rows, planned: {len(plan.rows_of(record.shard))}")
    if (paths := tuple(file.path for file in record.files)) != shard_paths(record.shard, plan.shards)[: len(paths)]:
        raise DamagedCommit(f"{path}: names files of another shard")
    return record


def read_record(store: Store, plan: Plan, shard: int) -> CommitRecord | None:
    """The commit record of a shard, None if there is none.

    Raises:
        SpecError: the record is another job's.
        DamagedCommit: it is not a record of this shard.
    """
    record = read_commit(store, shard)
    return None if record is None else _checked(record, plan)


def _shard_of(path: str, plan: Plan) -> int:
    name = path.removeprefix(f"{layout.COMMITS}/").removesuffix(".json")
    shard = int(name) if name.isascii() and name.isdecimal() else plan.shards
    if shard >= plan.shards or layout.commit(shard) != path:
        raise SpecError(f"output: {path} is no shard of this job, allowed: another output")
    return shard


def read_committed(store: Store, plan: Plan, each: Callable[[CommitRecord], None] | None = None) -> Committed:
    """Every commit record of the job; a record that cannot be believed is damaged, another job's is refused.

    Args:
        store: the output.
        plan: of the job.
        each: called with every sound record, in the order of the shards; it is then forgotten.

    Raises:
        SpecError: a record is another job's.
        StoreError: the store cannot be read.
    """
    listed = store.list(layout.COMMITS)
    shards = sorted(_shard_of(path, plan) for path in listed)
    result = Committed()
    for start in range(0, len(shards), _RECORDS):
        some = shards[start : start + _RECORDS]
        found = store.read_many({path: listed[path] for path in map(layout.commit, some)})
        for shard in some:
            raw = found[layout.commit(shard)]
            if raw is None:
                continue  # deleted since it was listed
            try:
                record = _checked(parse_commit(raw, shard), plan)
            except DamagedCommit as error:
                result.damaged[shard] = str(error)
                continue
            result.records[shard] = Kept.of(record, raw, plan.shards)
            if each is not None:
                each(record)
    return result


def find_missing(store: Store, committed: Committed) -> None:
    """Moves the shards whose files are absent or of another size than committed to ``damaged``, from listings alone.

    Raises:
        StoreError: the store cannot be read.
    """
    sizes = {
        path: size
        for folder in {path.rpartition("/")[0] for path in shard_paths(0, 1)}
        for path, size in store.list(folder).items()
    }
    for shard, kept in committed.records.items():
        for path, size in zip(kept.paths, kept.sizes, strict=True):
            if sizes.get(path) != size:
                got = f"{sizes[path]} bytes, committed: {size}" if path in sizes else "missing"
                committed.damaged.setdefault(shard, f"{path}: {got}")


def find_damage(store: Store, committed: Committed) -> None:
    """Re-reads every file of every committed shard and moves those that do not match their record to ``damaged``.

    Raises:
        StoreError: the store cannot be read.
    """
    files = ((kept.shard, file) for kept in committed.records.values() for file in kept.files)
    largest = max((size for kept in committed.records.values() for size in kept.sizes), default=0)

    def problem(item: tuple[int, FileRecord]) -> tuple[int, str | None]:
        shard, file = item
        try:
            return shard, file_problem(file, store.read(file.path))
        except FileNotFoundError:
            return shard, f"{file.path}: missing"

    for shard, found in _in_threads(problem, files, max(1, min(_THREADS, _BYTES // max(1, largest)))):
        if found:
            committed.damaged.setdefault(shard, found)


def _in_threads(call: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Results in the order of the items, of which only a few are begun before their turn."""
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _is_whole(store: Store, plan: Plan, shard: int) -> bool:
    """Whether a shard is sound after all: a listing may have lagged behind, another driver may have made it again."""
    try:
        record = read_record(store, plan, shard)
    except DamagedCommit:
        return False
    return record is not None and not verify_shard(store, record)


def drop_damaged(store: Store, plan: Plan, committed: Committed) -> dict[int, int]:
    """Deletes the damaged shards so that they can be made again; returns the number of their next attempt."""
    attempts = {}
    for shard, problem in sorted(committed.damaged.items()):
        if _is_whole(store, plan, shard):
            continue
        logger.warning("shard %d is made again: %s", shard, problem)
        kept = committed.records.pop(shard, None)
        attempts[shard] = kept.attempt + 1 if kept else 0
        drop_shard(store, shard, plan.shards)
    return attempts
