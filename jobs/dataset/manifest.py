"""``_SUCCESS``: the manifest of a finished dataset, the sha256 of every file, sealed by a sha256 of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from pydantic import Field, ValidationError

from jobs.dataset.commits import Committed, Kept, find_missing, read_committed
from jobs.job.plan import Plan
from jobs.job.requests import request_files
from jobs.words.errors import SpecError
from spd_core.law import Settings
from workers import layout
from workers.redact import public_url
from workers.sealed import canonical_json, check_version, seal, unseal
from workers.store import Store

_THREADS = 16  # small objects: an object store's latency outweighs its bandwidth here
_VERSION = 1
_DOCUMENTS = (layout.PLAN, layout.CARD, layout.REPORT_JSON, layout.REPORT_HTML)


class Manifest(Settings):
    """Content of ``_SUCCESS``."""

    version: int = _VERSION
    fingerprint: str = Field(description="of the plan")
    shards: int
    rows: int
    files: dict[str, str] = Field(description="sha256 by path: plan, commit records, parts, card and reports")
    sha256: str = Field("", description="over everything else in here")


def _digests(store: Store, paths: Iterable[str]) -> dict[str, str | None]:
    """sha256 by path; None for a file that is not there."""

    def digest(path: str) -> str | None:
        try:
            return hashlib.sha256(store.read(path)).hexdigest()
        except FileNotFoundError:
            return None

    names = list(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _of_shards(records: Iterable[Kept]) -> dict[str, str]:
    """sha256 of the commit records and of the files they name, by path."""
    digests = {}
    for kept in records:
        digests[kept.path] = kept.sha256.hex()
        digests.update(zip(kept.paths, map(bytes.hex, kept.digests), strict=True))
    return digests


def build_manifest(store: Store, plan: Plan, records: Iterable[Kept]) -> bytes:
    """The bytes of ``_SUCCESS``; every other file of the dataset must be there.

    Args:
        store: the output.
        plan: of the job.
        records: commit records of all its shards.

    Raises:
        ValueError: a shard is not committed.
        FileNotFoundError: the card, a report, the plan or a part of the requests is missing.
        StoreError: the store cannot be read.
    """
    by_shard = {record.shard: record for record in records}
    if missing := [shard for shard in range(plan.shards) if shard not in by_shard]:
        raise ValueError(f"manifest: shard {missing[0]} and {len(missing) - 1} more are not committed")
    digests = _digests(store, [*_DOCUMENTS, *request_files(plan)])
    files = {path: digest for path, digest in digests.items() if digest is not None}
    if absent := sorted(set(digests) - set(files)):
        raise FileNotFoundError(f"manifest: {absent[0]} is not there")
    files |= _of_shards(by_shard.values())
    manifest = Manifest(fingerprint=plan.fingerprint, shards=plan.shards, rows=plan.rows, files=files)
    return canonical_json(seal(manifest.model_dump(mode="json")))


def read_manifest(store: Store) -> Manifest:
    """The stored manifest.

    Raises:
        ValueError: there is none, or it is damaged; the message leads with its path.
        UnknownVersion: a later program wrote it.
        StoreError: the store cannot be read.
    """
    try:
        content = unseal(store.read(layout.SUCCESS))
        check_version(content, layout.SUCCESS, _VERSION)
        return Manifest.model_validate(content)
    except FileNotFoundError as error:
        raise ValueError(f"{layout.SUCCESS}: missing, the dataset is not finished") from error
    except ValidationError as error:
        raise ValueError(f"{layout.SUCCESS}: is not a manifest") from error
    except ValueError as error:
        raise ValueError(f"{layout.SUCCESS}: {error}") from error


def check_manifest(store: Store, plan: Plan | None, records: Iterable[Kept]) -> list[str]:
    """Problems of ``_SUCCESS`` and of the files it covers, each led by the file's path; empty: none.

    The parts are compared through their commit records; `jobs.dataset.commits.find_damage` reads the parts themselves.

    Args:
        store: the output.
        plan: of the job; None if it is unreadable, which the manifest then tells too.
        records: the commit records that could be read.
    """
    try:
        manifest = read_manifest(store)
    except ValueError as error:
        return [str(error)]
    if plan and (plan.fingerprint, plan.shards, plan.rows) != (manifest.fingerprint, manifest.shards, manifest.rows):
        return [f"{layout.SUCCESS}: belongs to another plan"]
    whole = list(records)
    made = _of_shards(whole)
    documents = [*_DOCUMENTS, *(request_files(plan) if plan else ())]
    shards = {kept.shard for kept in whole}
    uncommitted = [layout.commit(shard) for shard in range(manifest.shards) if shard not in shards]
    covered = [*documents, *uncommitted, *made]
    problems = [f"{layout.SUCCESS}: does not list {path}" for path in covered if path not in manifest.files]
    found = {**_digests(store, [*documents, *uncommitted]), **made}
    for path in covered:
        if path in manifest.files and found[path] != manifest.files[path]:
            digest = found[path]
            problems.append(
                f"{path}: missing" if digest is None else f"{path}: is not the file that {layout.SUCCESS} lists"
            )
    return problems


def read_finished(store: Store, plan: Plan) -> list[Kept]:
    """The commit records of a dataset that ``_SUCCESS`` covers as it stands now, every file there with its size.

    Raises:
        SpecError: it is not finished, or damaged.
        UnknownVersion: a later program wrote a record of it.
        StoreError: it cannot be read.
    """
    committed = read_committed(store, plan)
    if problem := _unfinished(store, plan, committed):
        raise SpecError(
            f"output: got {public_url(store.url)}, allowed: a finished dataset ({problem}); `spd generate` with the "
            "same spec and output resumes"
        )
    return list(committed.records.values())


def _unfinished(store: Store, plan: Plan, committed: Committed) -> str:
    """The first thing that is wrong with a dataset that ought to be finished; empty: nothing."""
    if not store.exists(layout.SUCCESS):
        return f"{layout.SUCCESS}: missing"
    find_missing(store, committed)
    problems = [problem for _, problem in sorted(committed.damaged.items())]
    return next(iter(problems or check_manifest(store, plan, committed.records.values())), "")
