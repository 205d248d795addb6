"""The commit protocol of a shard: its files first, its commit record last, every write create-only.

A shard exists if and only if its commit record does. A crash at any instant leaves either a committed shard or files
without a record, which the next attempt finishes or replaces.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from dataclasses import dataclass

from pydantic import ValidationError

from workers import layout
from workers.parquet import acceptance_bytes, data_bytes, features_bytes
from workers.records import CommitRecord, FileRecord, ShardTask, WorkerSettings
from workers.result import ShardResult
from workers.sealed import canonical_json, seal, unseal
from workers.store import Conflict, Store, StoreError

logger = logging.getLogger(__name__)
#: Attempts of other workers that may get in the way of one commit; each costs the loser one rewrite.
_COMMIT_TRIES = 5


class DamagedCommit(ValueError):
    """A commit record that cannot be believed; the message names it."""


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


def shard_paths(shard: int, shards: int) -> tuple[str, ...]:
    """Every file a shard may have, without its commit record."""
    return layout.data(shard, shards), layout.acceptance(shard, shards), layout.features(shard, shards)


def worker_name() -> str:
    """Host and process."""
    return f"{socket.gethostname()}-{os.getpid()}"


def read_commit(store: Store, shard: int) -> CommitRecord | None:
    """The commit record of a shard; None if the shard is not committed.

    Raises:
        DamagedCommit: something else lies there.
        StoreError: the store cannot be read.
    """
    try:
        raw = store.read(layout.commit(shard))
    except FileNotFoundError:
        return None
    return parse_commit(raw, shard)


def parse_commit(raw: bytes, shard: int) -> CommitRecord:
    """The commit record of a shard from the bytes of its file.

    Raises:
        DamagedCommit: they are something else.
    """
    path = layout.commit(shard)
    try:
        record = CommitRecord.model_validate(unseal(raw))
    except ValidationError as error:
        raise DamagedCommit(f"{path}: is not a commit record") from error
    except ValueError as error:
        raise DamagedCommit(f"{path}: {error}") from error
    if record.shard != shard:
        raise DamagedCommit(f"{path}: is of shard {record.shard}, allowed: {shard}")
    return record


def committed(store: Store, settings: WorkerSettings, shard: int) -> CommitRecord | None:
    """The shard's commit record; a damaged one is dropped with its files, so that the shard is made again: None.

    Raises:
        StoreError: another plan's shard lies there; it is never touched.
    """
    try:
        record = read_commit(store, shard)
    except DamagedCommit as error:
        logger.warning("%s; the shard is made again", error)
        drop_shard(store, shard, settings.shards)
        return None
    if record is not None and record.fingerprint != settings.fingerprint:
        raise StoreError(
            f"output: {layout.commit(shard)} belongs to another plan, allowed: {settings.fingerprint[:12]}"
        )
    return record


def commit_shard(store: Store, settings: WorkerSettings, task: ShardTask, result: ShardResult) -> CommitRecord:
    """Writes a shard and its commit record; the first committer wins and its record is returned.

    Raises:
        StoreError: the store cannot be written, or other attempts keep overwriting this one.
        UnequalCommit: another attempt was first, with other bytes.
    """
    blobs = _blobs(settings, task, result)
    files = tuple(blob.record for blob in blobs)
    for _ in range(_COMMIT_TRIES):
        existing = committed(store, settings, task.shard)
        if existing is not None:
            return _first_wins(existing, files)
        upload = _write(store, settings, task.shard, blobs)
        if upload is None:
            continue
        record = _record(settings, task, result, files, upload)
        try:
            store.create(layout.commit(task.shard), canonical_json(record.model_dump(mode="json")))
        except Conflict:
            existing = committed(store, settings, task.shard)
            if existing is None:
                continue
            # Another attempt committed while this one may have replaced its files: believe only what is there.
            if not (problems := verify_shard(store, existing)):
                return _first_wins(existing, files)
            logger.warning("shard %d: two attempts collided (%s); writing it again", task.shard, problems[0])
            drop_shard(store, task.shard, settings.shards)
            continue
        return record
    raise StoreError(f"output: shard {task.shard} is being written by other attempts; gave up after {_COMMIT_TRIES}")


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


def drop_shard(store: Store, shard: int, shards: int) -> None:
    """Deletes a shard, its commit record first: a crash in between leaves an uncommitted shard, never a broken one."""
    for path in (layout.commit(shard), *shard_paths(shard, shards)):
        store.delete(path)


def _blobs(settings: WorkerSettings, task: ShardTask, result: ShardResult) -> list[_Blob]:
    shard, shards, rows = task.shard, settings.shards, len(task.request_ids)
    drafts = len(result.drafts.image)
    blobs = [
        _Blob(layout.data(shard, shards), data_bytes(task, result), rows),
        _Blob(layout.acceptance(shard, shards), acceptance_bytes(task, result), drafts),
    ]
    if result.features is not None:
        blobs.append(_Blob(layout.features(shard, shards), features_bytes(task, result.features), rows))
    return blobs


def _first_wins(committed: CommitRecord, files: tuple[FileRecord, ...]) -> CommitRecord:
    if committed.files != files:
        raise UnequalCommit(
            f"shard {committed.shard} is committed by {committed.worker} with other bytes than those that "
            f"{worker_name()} made; the first commit stays"
        )
    return committed


def _write(store: Store, settings: WorkerSettings, shard: int, blobs: list[_Blob]) -> float | None:
    """Writes the files of an uncommitted shard; whatever else lies under their names gives way.

    Returns:
        seconds it took; None: another attempt committed the shard meanwhile, and its files stay.
    """
    began = time.perf_counter()
    for blob in blobs:
        try:
            store.create(blob.path, blob.data)
        except Conflict:
            if committed(store, settings, shard) is not None:
                return None
            logger.warning("%s is left over from an attempt that never committed; replacing it", blob.path)
            store.delete(blob.path)
            store.create(blob.path, blob.data)
    return time.perf_counter() - began


def _record(
    settings: WorkerSettings, task: ShardTask, result: ShardResult, files: tuple[FileRecord, ...], upload: float
) -> CommitRecord:
    seconds = {**result.seconds, "upload": upload}
    record = CommitRecord(
        shard=task.shard,
        attempt=task.attempt,
        worker=worker_name(),
        fingerprint=settings.fingerprint,
        rows=len(task.request_ids),
        first_id=task.request_ids[0],
        last_id=task.request_ids[-1],
        files=files,
        started=result.started,
        wall_seconds=time.perf_counter() - result.began,
        memory=result.memory,
        seconds={name: round(value, 6) for name, value in sorted(seconds.items())},
        **result.figures(task.labels),
    )
    return CommitRecord.model_validate(seal(record.model_dump(mode="json")))
