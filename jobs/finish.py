"""The end of a job: report and card, then the manifest that says that everything before it is there."""

from __future__ import annotations

from typing import Any

from jobs.aggregate import Json
from jobs.card import write_card
from jobs.commits import read_committed
from jobs.fleet import JobError
from jobs.manifest import build_manifest
from jobs.plan import read_plan
from jobs.report import write_report
from workers import layout
from workers.store import Conflict, Store


def finish(url: str, storage_options: dict[str, Any] | None = None) -> Json:
    """Writes report, card and _SUCCESS, the last, of an output whose shards are all committed; returns the report.

    Raises:
        SpecError: there is no job.
        JobError: a shard is not committed, or another driver is in the way.
        StoreError: the output cannot be read or written.
    """
    store = Store(url, storage_options)
    store.delete(layout.SUCCESS)
    try:
        report = write_report(url, storage_options)
        plan = read_plan(store)
        records = read_committed(store, plan).records
        if lost := [shard for shard in range(plan.shards) if shard not in records]:
            raise FileNotFoundError(f"{layout.commit(lost[0])} is not there")
        write_card(store, plan, report)
        manifest = build_manifest(store, plan, list(records.values()))
    except FileNotFoundError as error:
        raise JobError(f"{error}: the dataset changed while it was finished; the same command resumes") from error
    try:
        store.create(layout.SUCCESS, manifest)
    except Conflict as error:
        # Report and card follow from the commit records, so only another version of the program writes other ones.
        raise JobError(
            "output: another driver finished this job at the same moment with other reports; the same command ends it"
        ) from error
    return report


def rewrite_report(url: str, storage_options: dict[str, Any] | None = None) -> Json:
    """Writes the report of any output; a finished one stays finished, its manifest made anew over the new report.

    Raises:
        SpecError: there is no job.
        StoreError: the output cannot be read or written.
    """
    store = Store(url, storage_options)
    plan = read_plan(store)
    complete = len(read_committed(store, plan).records) == plan.shards
    if complete and store.exists(layout.SUCCESS):
        return finish(url, storage_options)
    return write_report(url, storage_options)
