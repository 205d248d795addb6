"""The end of a job: report and card, then the manifest that says that everything before it is there."""

from __future__ import annotations

import contextlib
from typing import Any

from jobs.dataset.aggregate import Json
from jobs.dataset.card import render_card
from jobs.dataset.commits import Committed, DamagedPart, find_missing, last_generations, list_parts, read_committed
from jobs.dataset.leftovers import put_empty_parts, stray_parts
from jobs.dataset.manifest import build_manifest, check_manifest, read_manifest
from jobs.dataset.report import make_report
from jobs.dataset.totals import Totals
from jobs.job.plan import Plan, read_plan
from jobs.job.quality import Quality
from jobs.words.errors import JobError
from workers import layout
from workers.store import Conflict, Store


def finish(url: str, storage_options: dict[str, Any] | None = None) -> Json:
    """Writes report, card and _SUCCESS, the last, of an output whose shards are all committed; returns the report.

    Nothing is written before every file of every record has been seen with its size and everything that the report
    reads has matched its hash.

    Raises:
        SpecError: there is no job.
        JobError: a shard is not committed or not whole, or another driver is in the way.
        StoreError: the output cannot be read or written.
    """
    store = Store(url, storage_options)
    plan, totals = read_plan(store), Totals()
    _refuse_later_manifest(store)
    committed = read_committed(store, plan, totals.add)
    listed = list_parts(store)
    find_missing(store, committed, listed)
    check_whole(plan, committed)
    if strays := stray_parts(listed, committed):
        raise JobError(f"{stray(strays)}, then the same command resumes")
    put_empty_parts(store, plan, committed)
    shards = list(committed.records.values())
    try:
        report, documents = make_report(store, plan, shards, totals)
    except DamagedPart as error:
        raise _not_whole(str(error)) from error
    for path, data in {**documents, layout.CARD: render_card(plan, report).encode()}.items():
        store.replace(path, data)
    try:
        _publish(store, build_manifest(store, plan, shards))
    except FileNotFoundError as error:
        raise JobError(f"{error}: the dataset changed while it was finished; the same command resumes") from error
    _look_again(store, plan, committed)
    return report


def _refuse_later_manifest(store: Store) -> None:
    """What a later program published is not replaced; what is missing or damaged is."""
    with contextlib.suppress(ValueError):
        read_manifest(store)


def check_whole(plan: Plan, committed: Committed) -> None:
    """Refuses to go on with a shard that is not there, or damaged as far as it was looked at.

    Raises:
        JobError: names it.
    """
    for shard in range(plan.shards):
        if shard in committed.damaged:
            raise _not_whole(committed.damaged[shard])
        if shard not in committed.records:
            raise _not_whole(f"{layout.commit(shard)}: no commit record of shard {shard} is there")


def stray(paths: list[str]) -> str:
    """What to say of files that no attempt can have made and that readers would take for rows of the dataset."""
    others = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
    return f"output: {paths[0]}{others} is no file of this job and would be read with it: move it away"


class _NotWhole(JobError):
    """What is wrong with it stands in ``what``."""

    def __init__(self, message: str, what: str) -> None:
        super().__init__(message)
        self.what = what


def _not_whole(what: str) -> _NotWhole:
    return _NotWhole(f"output: the dataset is not whole ({what}); the same command resumes", what)


def _publish(store: Store, manifest: bytes) -> None:
    try:
        store.create(layout.SUCCESS, manifest)
    except Conflict:
        # An older one, over other reports or a shard made again since, or a damaged one.
        store.replace(layout.SUCCESS, manifest)


def _look_again(store: Store, plan: Plan, committed: Committed) -> None:
    """Holds what is there now against what was published.

    Another driver may have found damage that no size shows, and be about to make a shard again: it takes ``_SUCCESS``
    away after it has closed the shard, so that one of the two sees the other.
    """
    now = last_generations(store.list(layout.COMMITS), plan)
    if moved := [shard for shard, kept in committed.records.items() if now.get(shard, 0) > kept.generation]:
        store.delete(layout.SUCCESS)
        raise JobError(f"output: another driver makes shard {moved[0]} again; the same command resumes")
    if problems := check_manifest(store, plan, committed.records.values()):
        # Report and card follow from the commit records, so only another version of the program writes other ones.
        raise JobError(f"output: {problems[0]}, because another driver ends this job too; the same command resumes")


def rewrite_report(url: str, storage_options: dict[str, Any] | None = None, quality: Quality | None = None) -> Json:
    """Writes the report of any output; a finished one stays finished, its manifest made anew over the new report.

    Args:
        url: of the output.
        storage_options: of its file system.
        quality: further figures that are computed first; None: those of before stay.

    Raises:
        SpecError: there is no job.
        QualityError: a file of the quality block is missing or wrong.
        JobError: a committed file is not what was committed, or a finished dataset lacks one; nothing is written.
        StoreError: the output cannot be read or written.
    """
    store = Store(url, storage_options)
    plan, totals = read_plan(store), Totals()
    if quality is not None:
        _compare(store, plan, quality, storage_options or {})
    if store.exists(layout.SUCCESS):
        return _finish_again(url, storage_options)
    committed = read_committed(store, plan, totals.add)
    try:
        report, documents = make_report(store, plan, list(committed.records.values()), totals)
    except DamagedPart as error:
        raise _damaged(str(error)) from error
    for path, data in documents.items():
        store.replace(path, data)
    if store.exists(layout.SUCCESS):  # the job has ended meanwhile, and its report is the whole one
        return _finish_again(url, storage_options)
    return report


def _compare(store: Store, plan: Plan, quality: Quality, storage_options: dict[str, Any]) -> None:
    from jobs.dataset.comparison import resolve  # loads what only these figures need

    asked = resolve(quality, store.url, storage_options, plan.class_names)
    try:
        asked.compare(store, plan, list(read_committed(store, plan).records.values()))
    except DamagedPart as error:
        raise _damaged(str(error)) from error


def _finish_again(url: str, storage_options: dict[str, Any] | None) -> Json:
    try:
        return finish(url, storage_options)
    except _NotWhole as error:
        raise _damaged(error.what) from error


def _damaged(what: str) -> JobError:
    return JobError(f"output: the dataset is damaged ({what}); `spd generate` with the same spec and output mends it")
