"""The commit protocol of a shard: its files first, its commit record last, every write create-only.

A shard has a chain of records, ``_commits/00042.json``, ``.r1.json``, ``.r2.json``, each of them created once and never
changed or deleted. The last one says what holds: a *commit* names the files of the shard; after a *void* record, or
with none at all, the shard is open, and the next commit goes to the next place of the chain, its *generation*. Files
are named by shard and generation, created once, and written by attempts that saw their generation open. So:

1. Of two attempts at one generation the first creator of a file wins it; the same bytes count as written.
2. An attempt that finds other bytes under a name puts a void record into the chain, in the very place where the commit
   of that generation would stand: either the rival's commit or the void record gets it, never both.
3. Damage is mended by a void record behind the commit, and a new generation. Nothing that a record may point at is
   deleted or replaced, at whatever time somebody who was paused goes on.
4. What lies under the names of closed generations is replaced by empty parts at the end of the job
   (`jobs.dataset.leftovers`): a generation never opens again, so that is harmless at any time, and keeps late attempts
   from creating them.

A crash at any instant leaves a committed shard, or an open one.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import socket
import time
from dataclasses import dataclass, replace
from itertools import count

from pydantic import ValidationError

from workers import layout
from workers.machine import describe_platform
from workers.parquet import acceptance_bytes, data_bytes, features_bytes
from workers.records import RECORD_VERSION, CommitRecord, FileRecord, ShardTask, VoidRecord, WorkerSettings
from workers.result import ShardResult
from workers.sealed import canonical_json, check_version, seal, unseal
from workers.store import Conflict, Store, StoreError

logger = logging.getLogger(__name__)
#: Attempts of other workers that may get in the way of one commit; each costs the loser one more write of its files.
_COMMIT_TRIES = 5
#: Time a rival with other bytes has for its commit before its generation is closed; it may be about to write it.
GRACE_S = 3.0
_LOOKS = 4


class DamagedCommit(ValueError):
    """A record that cannot be believed; the message names it."""


class UnequalCommit(RuntimeError):
    """An attempt made other bytes than the one that committed first, whose commit stays; the message names both."""


@dataclass(frozen=True)
class _Blob:
    """One file to write."""

    path: str
    data: bytes
    rows: int

    @property
    def record(self) -> FileRecord:
        digest = hashlib.sha256(self.data).hexdigest()
        return FileRecord(path=self.path, bytes=len(self.data), sha256=digest, rows=self.rows)


@dataclass(frozen=True)
class Chain:
    """The records of a shard, as far as they matter: how many there are, and the last."""

    shard: int
    length: int = 0
    last: CommitRecord | VoidRecord | None = None  #: None: there is none, or it is damaged
    damage: str = ""  #: what is wrong with the last one; led by its path

    @property
    def commit(self) -> CommitRecord | None:
        """The commit that holds; None: there is none."""
        return self.last if isinstance(self.last, CommitRecord) else None

    @property
    def open(self) -> bool:
        """Whether attempts may write files, those of generation ``length``."""
        return self.commit is None and not self.damage

    @property
    def closed(self) -> tuple[int, ...]:
        """Generations that are closed already."""
        return self.last.closed if self.last else ()

    @property
    def attempt(self) -> int:
        """Number of the last attempt that the chain tells of, -1: none."""
        return self.last.attempt if self.last else -1


def worker_name() -> str:
    """Host and process."""
    return f"{socket.gethostname()}-{os.getpid()}"


def parse_record(raw: bytes, shard: int, generation: int) -> CommitRecord | VoidRecord:
    """A record of a shard from the bytes of its file.

    Raises:
        DamagedCommit: they are something else.
        UnknownVersion: a later program wrote it.
    """
    path = layout.commit(shard, generation)
    try:
        content = unseal(raw)
        check_version(content, path, RECORD_VERSION)
        kind = VoidRecord if content.get("void") is True else CommitRecord
        record = kind.model_validate(content)
    except ValidationError as error:
        raise DamagedCommit(f"{path}: is not a commit record") from error
    except ValueError as error:
        raise DamagedCommit(f"{path}: {error}") from error
    if (record.shard, record.generation) != (shard, generation):
        raise DamagedCommit(f"{path}: is of shard {record.shard}, generation {record.generation}")
    return record


def read_chain(store: Store, shard: int) -> Chain:
    """The records of a shard, looked up by name.

    Raises:
        UnknownVersion: a later program wrote one of them.
        StoreError: the store cannot be read.
    """
    chain = Chain(shard)
    for generation in count():
        try:
            raw = store.read(layout.commit(shard, generation))
        except FileNotFoundError:
            break
        chain = chain_of(raw, shard, generation)
    return chain


def chain_of(raw: bytes, shard: int, generation: int) -> Chain:
    """The chain whose last record has these bytes."""
    try:
        return Chain(shard, generation + 1, parse_record(raw, shard, generation))
    except DamagedCommit as error:
        return Chain(shard, generation + 1, damage=str(error))


def read_commit(store: Store, shard: int) -> CommitRecord | None:
    """The commit record that holds for a shard; None if the shard is not committed.

    Raises:
        DamagedCommit: the last record cannot be believed.
        StoreError: the store cannot be read.
    """
    chain = read_chain(store, shard)
    if chain.damage:
        raise DamagedCommit(chain.damage)
    return chain.commit


def _own_chain(store: Store, settings: WorkerSettings, shard: int) -> Chain:
    """The shard's chain.

    Raises:
        StoreError: another plan's shard lies there; it is never touched.
    """
    chain = read_chain(store, shard)
    if chain.last is not None and chain.last.fingerprint != settings.fingerprint:
        path = layout.commit(shard, chain.last.generation)
        raise StoreError(f"output: {path} belongs to another plan, allowed: {settings.fingerprint[:12]}")
    return chain


def committed(store: Store, settings: WorkerSettings, shard: int) -> CommitRecord | None:
    """The commit record that holds for a shard; None: it has to be made.

    Raises:
        StoreError: the store cannot be read, or another plan's shard lies there.
    """
    return _own_chain(store, settings, shard).commit


def commit_shard(store: Store, settings: WorkerSettings, task: ShardTask, result: ShardResult) -> CommitRecord:
    """Writes a shard and its commit record; the first committer wins and its record is returned.

    Safe to call from any thread, and by any number of attempts at once.

    Raises:
        StoreError: the store cannot be written, or other attempts get in the way again and again.
        UnequalCommit: another attempt was first, with other bytes.
    """
    shard = task.shard
    blobs = _blobs(settings, task, result)
    for _ in range(_COMMIT_TRIES):
        chain = _own_chain(store, settings, shard)
        if chain.commit is not None:
            return _first_wins(chain.commit, blobs, settings.device)
        if chain.damage:
            logger.warning("%s; the shard is made again", chain.damage)
            void(store, chain, settings.fingerprint, chain.damage)
            continue
        paths = layout.parts(shard, settings.shards, chain.length)
        placed = [replace(blob, path=path) for blob, path in zip(blobs, paths, strict=False)]
        began = time.perf_counter()
        if (taken := _write(store, placed)) is not None:
            if _stays_open(store, settings, chain):
                logger.warning("%s is left over from an attempt that never committed; the shard gets new names", taken)
                void(store, chain, settings.fingerprint, f"{taken}: other bytes, of an attempt without a commit")
            continue
        record = _record(settings, task, result, placed, chain, time.perf_counter() - began)
        try:
            store.create(layout.commit(shard, chain.length), canonical_json(record.model_dump(mode="json")))
        except Conflict:
            continue
        return record
    raise StoreError(f"output: shard {shard} is being written by other attempts; gave up after {_COMMIT_TRIES}")


def void(store: Store, chain: Chain, fingerprint: str, reason: str) -> bool:
    """Closes what a chain says: an open generation, a commit whose files are damaged, a damaged record.

    Returns:
        False: the chain has gone on meanwhile, and nothing is changed.

    Raises:
        StoreError: the store cannot be written.
    """
    closes = (chain.length,) if chain.open else (chain.length - 1,)
    record = VoidRecord(
        shard=chain.shard,
        generation=chain.length,
        fingerprint=fingerprint,
        # Behind a damaged record nobody knows which were closed, and now all of them are.
        closed=tuple(range(chain.length)) if chain.damage else (*chain.closed, *closes),
        attempt=chain.attempt,
        reason=reason,
        worker=worker_name(),
    )
    sealed = VoidRecord.model_validate(seal(record.model_dump(mode="json")))
    try:
        store.create(layout.commit(chain.shard, chain.length), canonical_json(sealed.model_dump(mode="json")))
    except Conflict:
        return False
    return True


def verify_shard(store: Store, record: CommitRecord) -> list[str]:
    """What is wrong with the files of a commit record, each problem led by the file's path; empty: nothing."""
    problems = []
    for file in record.files:
        try:
            problem = file_problem(file, store.read(file.path))
        except FileNotFoundError:
            problem = f"{file.path}: missing"
        if problem:
            problems.append(problem)
    return problems


def file_problem(file: FileRecord, data: bytes) -> str | None:
    """How the bytes of a file differ from those committed, led by its path; None: not at all."""
    if len(data) != file.bytes:
        return f"{file.path}: {len(data)} bytes, committed: {file.bytes}"
    if (digest := hashlib.sha256(data).hexdigest()) != file.sha256:
        return f"{file.path}: sha256 {digest[:12]}..., committed: {file.sha256[:12]}..."
    return None


def _blobs(settings: WorkerSettings, task: ShardTask, result: ShardResult) -> list[_Blob]:
    """The files, with the names of generation 0."""
    rows, drafts = len(task.request_ids), len(result.drafts.image)
    contents = [(data_bytes(task, result), rows), (acceptance_bytes(task, result), drafts)]
    if result.features is not None:
        contents.append((features_bytes(task, result.features), rows))
    paths = layout.parts(task.shard, settings.shards)
    return [_Blob(path, data, count) for path, (data, count) in zip(paths, contents, strict=False)]


def _first_wins(committed: CommitRecord, blobs: list[_Blob], device: str) -> CommitRecord:
    if [file.sha256 for file in committed.files] != [blob.record.sha256 for blob in blobs]:
        raise UnequalCommit(
            f"shard {committed.shard} is committed by {committed.worker} ({committed.platform or 'platform unknown'}) "
            f"with other bytes than those that {worker_name()} ({describe_platform(device)}) made; "
            "the first commit stays"
        )
    return committed


def _write(store: Store, blobs: list[_Blob]) -> str | None:
    """Creates the files of an open generation; the name that other bytes have already, None: none."""
    for blob in blobs:
        try:
            store.create(blob.path, blob.data)
        except Conflict:
            return blob.path
    return None


def _stays_open(store: Store, settings: WorkerSettings, chain: Chain) -> bool:
    """Whether nobody commits or closes a generation within the grace time."""
    for _ in range(_LOOKS):
        if _own_chain(store, settings, chain.shard) != chain:
            return False
        # Two rivals that close each other's generations for ever must fall out of step.
        time.sleep(random.uniform(0.5, 1.5) * GRACE_S / _LOOKS)
    return True


def _record(
    settings: WorkerSettings, task: ShardTask, result: ShardResult, blobs: list[_Blob], chain: Chain, upload: float
) -> CommitRecord:
    seconds = {**result.seconds, "upload": upload}
    record = CommitRecord(
        shard=task.shard,
        generation=chain.length,
        closed=chain.closed,
        attempt=task.attempt,
        run=settings.run,
        platform=describe_platform(settings.device),
        worker=worker_name(),
        fingerprint=settings.fingerprint,
        rows=len(task.request_ids),
        first_id=task.request_ids[0],
        last_id=task.request_ids[-1],
        files=tuple(blob.record for blob in blobs),
        started=result.started,
        wall_seconds=time.perf_counter() - result.began,
        memory=result.memory,
        seconds={name: round(value, 6) for name, value in sorted(seconds.items())},
        **result.figures(task.labels),
    )
    return CommitRecord.model_validate(seal(record.model_dump(mode="json")))
