"""What a driver finds at an output, before it changes anything there."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum

from jobs.dataset.commits import Committed, find_damage, find_missing, list_parts, read_committed
from jobs.dataset.finish import stray
from jobs.dataset.leftovers import foreign_parts, is_empty_at, stray_parts
from jobs.dataset.manifest import check_manifest
from jobs.job.plan import Plan, stored_plan
from jobs.words.errors import SpecError
from workers import layout
from workers.redact import public_url
from workers.store import Store

logger = logging.getLogger(__name__)


class Case(Enum):
    """How far a job is."""

    NEW = "no plan and no shard is there"
    UNFINISHED = "shards are missing"
    DAMAGED = "all shards are committed, and files of some are missing or not what was committed"
    TO_FINISH = "all shards are there; the plan, the report or `_SUCCESS` is missing, or older than the shards"
    DONE = "everything is there"


@dataclass(frozen=True)
class State:
    """An output as it was found."""

    case: Case
    plan: Plan  #: the stored one, or the new one if none is stored
    committed: Committed


def find_state(store: Store, plan: Plan) -> State:
    """Reads how far the job of a plan is; writes nothing.

    Raises:
        SpecError: the output holds another job, or files of no job.
        StoreError: the store cannot be read.
    """
    stored = stored_plan(store, plan)
    plan = stored or plan
    committed = read_committed(store, plan)
    new = stored is None and not committed.records
    if new:
        refuse_foreign_files(store)
    look_at_files(store, plan, committed)
    if new:
        case = Case.NEW
    elif missing_shards(plan, committed):
        case = Case.UNFINISHED
    elif committed.damaged:
        case = Case.DAMAGED
    elif stored is None or is_unfinished(store, plan, committed):
        case = Case.TO_FINISH
    else:
        case = Case.DONE
    return State(case, plan, committed)


def missing_shards(plan: Plan, committed: Committed) -> list[int]:
    """Shards without a record that holds."""
    return [shard for shard in range(plan.shards) if shard not in committed.records]


def refuse_foreign_files(store: Store) -> None:
    """An output without plan and commits may hold nothing that the end of a job would overwrite.

    Raises:
        SpecError: it does.
    """
    for path in (layout.CARD, layout.REPORT_JSON, layout.REPORT_HTML, layout.SUCCESS):
        if store.exists(path):
            raise SpecError(
                f"output: {public_url(store.url)} holds a {path} of no job, allowed: an empty folder or an output"
            )


def look_at_files(store: Store, plan: Plan, committed: Committed) -> None:
    """Moves what is damaged to ``damaged``, as far as it is looked at, and refuses files that no attempt makes.

    Raises:
        SpecError: another's file lies where readers take it for rows of the dataset.
    """
    listed = list_parts(store)
    if foreign := foreign_parts(listed, plan):
        raise SpecError(stray(foreign))
    if committed.voided or not missing_shards(plan, committed):
        # A shard that was closed and is not made again: whoever found its damage may have died before it had closed
        # all that it found.
        find_damage(store, committed)
        return
    find_missing(store, committed, listed)  # reading it all again would keep the workers waiting
    if committed.records:
        logger.info(
            "resuming: %d of %d shards are committed; their files have the right sizes and are not read again "
            "(`spd validate` does that)",
            len(committed.records),
            plan.shards,
        )


def is_unfinished(store: Store, plan: Plan, committed: Committed) -> bool:
    """Whether the manifest is missing or another, or files lie about that it does not know."""
    records = committed.records.values()
    if check_manifest(store, plan, records):
        return True
    paths = [path for kept in records for path in kept.closed_paths]
    return bool(stray_parts(list_parts(store), committed)) or not all(is_empty_at(store, path) for path in paths)
