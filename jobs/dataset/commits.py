"""What of a job is done, from the store alone: the records that hold, and the shards that have to be made again.

Records are read many at a time and pass by one by one: what stays of each is a few numbers and hashes.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from jobs.job.plan import Plan
from jobs.words.errors import SpecError
from jobs.words.progress import Progress
from workers import layout
from workers.records import CommitRecord, FileRecord
from workers.shard import Chain, DamagedCommit, chain_of, file_problem, read_chain, verify_shard, void
from workers.store import Store

logger = logging.getLogger(__name__)
_RECORDS = 512  #: commit records held at a time
_THREADS = 16  #: files read at a time: an object store's latency outweighs its bandwidth here
_BYTES = 1 << 26  #: of the files that are read at a time, about
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class DamagedPart(ValueError):
    """A committed file is gone or is not what was committed; the message leads with its path."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is remembered of a commit record: hashes as bytes, for there may be a great many."""

    shard: int
    shards: int  #: of the job
    rows: int
    attempt: int
    generation: int
    closed: tuple[int, ...]  #: generations whose files are no part of the dataset
    sha256: bytes  #: of the record's own bytes
    sizes: tuple[int, ...]  #: bytes of the files, in the order of `workers.layout.parts`
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
            record.generation,
            record.closed,
            hashlib.sha256(raw).digest(),
            tuple(file.bytes for file in record.files),
            tuple(bytes.fromhex(file.sha256) for file in record.files),
            tuple(file.rows for file in record.files),
        )

    @property
    def path(self) -> str:
        """Of the record."""
        return layout.commit(self.shard, self.generation)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of the files."""
        return layout.parts(self.shard, self.shards, self.generation)[: len(self.sizes)]

    @property
    def closed_paths(self) -> tuple[str, ...]:
        """Names at which attempts of closed generations may have left files, or may yet."""
        return tuple(
            path
            for generation in self.closed
            for path in layout.parts(self.shard, self.shards, generation)[: len(self.sizes)]
        )

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The committed files."""
        facts = zip(self.paths, self.sizes, self.digests, self.file_rows, strict=True)
        return tuple(FileRecord(path=p, bytes=size, sha256=d.hex(), rows=rows) for p, size, d, rows in facts)


@dataclass
class Committed:
    """The records of an output."""

    records: dict[int, Kept] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)  #: shard and what is wrong with it
    voided: dict[int, int] = field(default_factory=dict)  #: shards to be made again, and their last attempt
    platforms: Counter[str] = field(default_factory=Counter)  #: shards by platform; "": it is not recorded


def _checked(record: CommitRecord, plan: Plan) -> CommitRecord:
    path = layout.commit(record.shard, record.generation)
    if record.rows != len(plan.rows_of(record.shard)):
        raise DamagedCommit(f"{path}: has {record.rows} rows, planned: {len(plan.rows_of(record.shard))}")
    planned = layout.parts(record.shard, plan.shards, record.generation)
    if (paths := tuple(file.path for file in record.files)) != planned[: len(paths)]:
        raise DamagedCommit(f"{path}: names files of another shard")
    return record


def _own(chain: Chain, plan: Plan) -> Chain:
    """The chain, a commit in it that cannot be the plan's counted as damaged.

    Raises:
        SpecError: it is another job's.
    """
    if chain.last is not None and chain.last.fingerprint != plan.fingerprint:
        raise SpecError(
            f"output: {layout.commit(chain.shard, chain.last.generation)} belongs to a job with fingerprint "
            f"{chain.last.fingerprint[:12]}..., allowed: {plan.fingerprint[:12]}...; use another output"
        )
    try:
        if chain.commit is not None:
            _checked(chain.commit, plan)
    except DamagedCommit as error:
        return Chain(chain.shard, chain.length, damage=str(error))
    return chain


def read_record(store: Store, plan: Plan, shard: int) -> CommitRecord | None:
    """The commit record of a shard, None if there is none.

    Raises:
        SpecError: the record is another job's.
        DamagedCommit: it is not a record of this shard.
    """
    chain = _own(read_chain(store, shard), plan)
    if chain.damage:
        raise DamagedCommit(chain.damage)
    return chain.commit


def last_generations(paths: Iterable[str], plan: Plan) -> dict[int, int]:
    """Generation of the last record of every shard that has one, by shard, ascending.

    Args:
        paths: of a listing of the records.
        plan: of the job.

    Raises:
        SpecError: a file is no record of this job.
    """
    last: dict[int, int] = {}
    for path in paths:
        found = layout.parse_commit(path)
        if found is None or found[0] >= plan.shards:
            raise SpecError(f"output: {path} is no shard of this job, allowed: another output")
        shard, generation = found
        last[shard] = max(generation, last.get(shard, 0))
    return dict(sorted(last.items()))


def read_committed(
    store: Store, plan: Plan, each: Callable[[CommitRecord], None] | None = None, known: Committed | None = None
) -> Committed:
    """The record that holds for every shard of the job; one that cannot be believed is damaged.

    Args:
        store: the output.
        plan: of the job.
        each: called with every sound commit record that is read, in the order of the shards; it is then forgotten.
        known: of an earlier look. A record never changes, so those that were sound then are not read again, and do
            not count for the platforms.

    Raises:
        SpecError: a record is another job's.
        UnknownVersion: a later program wrote a record.
        StoreError: the store cannot be read.
    """
    listed = store.list(layout.COMMITS)
    last = last_generations(listed, plan)
    result = Committed()
    if known is not None:
        same = {shard: kept for shard, kept in known.records.items() if last.get(shard) == kept.generation}
        result.records.update(same)
    shards = [shard for shard in last if shard not in result.records]
    for start in _begun(range(0, len(shards), _RECORDS), len(shards)):
        paths = {shard: layout.commit(shard, last[shard]) for shard in shards[start : start + _RECORDS]}
        found = store.read_many({path: listed[path] for path in paths.values()})
        for shard, path in paths.items():
            raw = found[path]
            if raw is None:
                continue  # gone since it was listed
            chain = _own(chain_of(raw, shard, last[shard]), plan)
            if chain.damage:
                result.damaged[shard] = chain.damage
            elif chain.commit is None:
                result.voided[shard] = chain.attempt
            else:
                result.records[shard] = Kept.of(chain.commit, raw, plan.shards)
                result.platforms[chain.commit.platform] += 1
                if each is not None:
                    each(chain.commit)
    result.records = dict(sorted(result.records.items()))
    return result


def _begun(starts: range, records: int) -> Iterator[int]:
    """Places of the records to read next; of more than are read at once it is shown how far the reading is."""
    if len(starts) < 2:
        yield from starts
        return
    with Progress(records, "commit records", note="reading") as progress:
        for start in starts:
            yield start
            progress.add(min(starts.step, records - start))
            progress.tick()


def list_parts(store: Store) -> dict[str, int]:
    """Bytes by path of everything in the folders of the shards' files.

    Raises:
        StoreError: the store cannot be read.
    """
    return {path: size for folder in layout.PARTS for path, size in store.list(folder).items()}


def find_missing(store: Store, committed: Committed, listed: Mapping[str, int] | None = None) -> None:
    """Moves the shards whose files are absent or of another size than committed to ``damaged``.

    What the listings lack, or show otherwise, is looked up by name: they may lag behind.

    Args:
        store: the output.
        committed: its records.
        listed: of `list_parts`, if that is at hand.

    Raises:
        StoreError: the store cannot be read.
    """
    sizes = list_parts(store) if listed is None else listed
    for shard, kept in committed.records.items():
        for path, size in zip(kept.paths, kept.sizes, strict=True):
            if sizes.get(path) == size:
                continue
            try:
                found = store.size(path)
            except FileNotFoundError:
                committed.damaged.setdefault(shard, f"{path}: missing")
                continue
            if found != size:
                committed.damaged.setdefault(shard, f"{path}: {found} bytes, committed: {size}")


def read_part(store: Store, kept: Kept, folder: str) -> bytes:
    """A committed file, checked against its hash.

    Args:
        store: the output.
        kept: of the shard.
        folder: which of its files, one of `workers.layout.PARTS`.

    Raises:
        DamagedPart: it is gone or has other bytes.
        StoreError: the store cannot be read.
    """
    file = kept.files[layout.PARTS.index(folder)]
    try:
        data = store.read(file.path)
    except FileNotFoundError as error:
        raise DamagedPart(f"{file.path}: missing") from error
    if problem := file_problem(file, data):
        raise DamagedPart(problem)
    return data


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

    amount = sum(len(kept.sizes) for kept in committed.records.values())
    with Progress(amount, "files", note="re-reading") as progress:
        for shard, found in _in_threads(problem, files, max(1, min(_THREADS, _BYTES // max(1, largest)))):
            if found:
                committed.damaged.setdefault(shard, found)
            progress.add()
            progress.tick()


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


def void_damaged(store: Store, plan: Plan, committed: Committed) -> dict[int, int]:
    """Closes what the damaged shards say, so that they are made again; returns the number of their next attempt.

    Nothing is deleted. A shard that proves sound, or that another driver has made again, is left as it is.

    Raises:
        SpecError: a record is another job's.
        StoreError: the store cannot be read or written.
    """
    attempts = {}
    for shard, problem in sorted(committed.damaged.items()):
        chain = _own(read_chain(store, shard), plan)
        while not (_is_whole(store, chain) or chain.open):
            logger.warning("shard %d is made again: %s", shard, problem)
            store.delete(layout.SUCCESS)
            void(store, chain, plan.fingerprint, problem)
            chain = _own(read_chain(store, shard), plan)
        if chain.commit is not None:
            raw = store.read(layout.commit(shard, chain.commit.generation))
            committed.records[shard] = Kept.of(chain.commit, raw, plan.shards)
        else:
            committed.records.pop(shard, None)
            attempts[shard] = chain.attempt + 1
    return attempts


def _is_whole(store: Store, chain: Chain) -> bool:
    return chain.commit is not None and not verify_shard(store, chain.commit)
