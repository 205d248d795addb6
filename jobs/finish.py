"""The end of a job: report and card, then the manifest that says that everything before it is there."""

from __future__ import annotations

from typing import Any

from jobs.aggregate import Json
from jobs.card import write_card
from jobs.commits import read_committed
from jobs.manifest import build_manifest
from jobs.plan import read_plan
from jobs.report import write_report
from workers import layout
from workers.store import Store


def finish(url: str, storage_options: dict[str, Any] | None = None) -> Json:
    """Writes report, card and _SUCCESS, the last, of an output whose shards are all committed; returns the report.

    Raises:
        SpecError: there is no job.
        ValueError: a shard is not committed.
        StoreError: the output cannot be read or written.
    """
    store = Store(url, storage_options)
    store.delete(layout.SUCCESS)
    report = write_report(url, storage_options)
    plan = read_plan(store)
    write_card(store, plan, report)
    records = read_committed(store, plan).records
    store.create(layout.SUCCESS, build_manifest(store, plan, list(records.values())))
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
