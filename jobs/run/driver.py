"""The driver: from a spec to a finished dataset, from whatever state an earlier run left."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.dataset.commits import Committed, DamagedPart, find_damage, find_missing, read_committed, void_damaged
from jobs.dataset.finish import check_whole, finish
from jobs.dataset.presence import Presence
from jobs.job.calibration import Calibration
from jobs.job.plan import Plan, as_planned, check_weights, make_plan, store_plan
from jobs.job.requests import store_requests
from jobs.job.spec import FixedSpec, Spec, options_of
from jobs.run.auto import Decided, decide, decided_before
from jobs.run.cluster import running_ray
from jobs.run.fit import fitted, is_to_be_fitted
from jobs.run.fleet import Fleet
from jobs.run.redecode import check_batches
from jobs.run.signals import resumable, stoppable
from jobs.run.state import Case, State, find_state, is_unfinished, missing_shards, refuse_foreign_files
from jobs.words.errors import JobError, SpecError
from jobs.words.phrases import counted
from jobs.words.progress import Progress
from spd_core.pairs.pair import load_card
from workers import layout
from workers.place import DRIVER, leave_sign
from workers.records import WorkerSettings
from workers.redact import public_url
from workers.store import Store

if TYPE_CHECKING:
    from jobs.dataset.comparison import Asked

logger = logging.getLogger(__name__)
#: Set by Ray for the entry point of a submitted job.
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def _settings(spec: FixedSpec, plan: Plan, store: Store, run: str, asked: Asked | None) -> WorkerSettings:
    return WorkerSettings(
        name=spec.name,
        output=store.url,  # absolute: a worker's current folder is not the driver's
        storage_options=spec.storage_options,
        pair=spec.pair,
        pair_options=options_of(spec, spec.pair),
        pair_sha256=plan.pair_sha256,
        law=spec.law,
        method=spec.method,
        batch=spec.batch,
        image=spec.image,
        features=spec.features,
        device=spec.workers.device,
        threads=spec.workers.threads,
        fingerprint=plan.fingerprint,
        shards=plan.shards,
        encoders=spec.workers.encoders,
        quality=asked.for_workers() if asked else None,
        run=run,
    )


@contextmanager
def _sign(store: Store, run: str) -> Iterator[None]:
    """The driver's sign for its workers, see `workers.place`; nothing of it stays, not even a folder."""
    made = store.missing_folders()
    try:
        leave_sign(store, run, DRIVER)
        yield
    finally:
        store.withdraw(layout.sign(run, DRIVER), made)


def _make_shards(
    spec: FixedSpec, store: Store, state: State, presence: Presence, asked: Asked | None
) -> tuple[Plan, int]:
    """Starts Ray, makes what is missing or damaged, and returns the plan that holds and the images made.

    Nothing is written but signs, and nothing closed, before a worker has loaded its models and has shown that it sees
    the output: until then the spec may still prove wrong.
    """
    plan, committed = state.plan, state.committed
    todo = len(missing_shards(plan, committed)) + sum(shard in committed.records for shard in committed.damaged)
    logger.info("starting Ray and the workers, which load the models")
    made = 0
    # Ray puts its own signal handlers in place of the first ones.
    with running_ray(spec.workers) as ray, stoppable(), _sign(store, presence.run):
        fleet = Fleet(ray, store, plan, _settings(spec, plan, store, presence.run, asked), spec.workers, todo)
        try:
            fleet.wait_for_first()
            presence.announce()
            store_requests(store, spec, plan)
            plan = store_plan(store, plan)
            attempts = open_shards(store, plan, committed)
            _warn_of_platforms({*committed.platforms, *fleet.platforms})
            done = sum(record.rows for record in committed.records.values())
            logger.info("%s", _to_make(plan, attempts, fleet.size))
            with Progress(plan.rows, "images", done) as progress:
                for record in fleet.run(attempts):
                    if record is not None:
                        made_shards = plan.shards - fleet.missing
                        progress.add(record.rows, f"{made_shards:,}/{plan.shards:,} shards")
                        made += record.rows if record.run == presence.run else 0
                    progress.tick(fleet.in_words())
                    presence.beat()
        finally:
            fleet.stop()
    return plan, made


def open_shards(store: Store, plan: Plan, committed: Committed) -> dict[int, int]:
    """Closes what is damaged; the shards to make, with the number of their next attempt.

    ``_SUCCESS`` is taken away before a record says that it is wrong, and once more after it, see `jobs.dataset.finish`.
    """
    damaged = void_damaged(store, plan, committed)
    attempts = {
        shard: damaged.get(shard, committed.voided.get(shard, -1) + 1)
        for shard in range(plan.shards)
        if shard not in committed.records
    }
    if attempts:
        store.delete(layout.SUCCESS)
    return attempts


def _warn_of_platforms(platforms: set[str]) -> None:
    known = sorted(platforms - {""})
    if len(known) > 1:
        logger.warning(
            "the shards come from %d kinds of machine (%s): made again, one has the same bytes on its own kind only",
            len(known),
            "; ".join(known),
        )


def _to_make(plan: Plan, shards: Iterable[int], workers: int) -> str:
    rows = [len(plan.rows_of(shard)) for shard in shards]
    images, in_shards = counted(sum(rows), "image", "images"), counted(len(rows), "shard", "shards")
    return f"making {images} in {in_shards} on {counted(workers, 'worker', 'workers')}"


def generate(spec: Spec) -> dict[str, Any]:
    """Makes the dataset of a spec, or what an earlier run left to make of it.

    Returns:
        Where it is, its images and shards, what this run made, and its seconds.

    Raises:
        SpecError, PairError, StoreError: wrong input; nothing is written.
        JobError: the job cannot go on; the same spec resumes it.
        Stopped: a signal came; the same spec resumes it.
    """
    began = time.monotonic()
    _refuse_a_lost_folder(spec)
    with stoppable():
        store = Store(spec.output, spec.storage_options)
        asked = _asked(spec, store)
        spec = as_planned(spec, store)
        decided = decided_before(spec, store)
        if decided is not None and not is_to_be_fitted(decided[0], store):
            fixed = decided
            plan, made = _generate(*fixed, store, asked)
        else:
            # What would stop the job later must not cost a measurement first.
            refuse_foreign_files(store)
            store.check_writable()
            check_weights(spec.pair, load_card(spec.pair).sha256)
            logger.info("starting Ray and the worker that measures")
            with running_ray(spec.workers) as ray, stoppable():
                fixed = _measured(ray, spec, store) if decided is None else (fitted(ray, decided[0]), decided[1])
                plan, made = _generate(*fixed, store, asked)
        check_batches(fixed[0], plan, store)
    return {
        "output": public_url(spec.output),
        "images": plan.rows,
        "shards": plan.shards,
        "made": made,
        "seconds": round(time.monotonic() - began, 3),
    }


def _measured(ray: Any, spec: Spec, store: Store) -> Decided:
    """The method that a worker finds to be the fastest, at a batch that fits."""
    if "method" in spec.open_fields and spec.batch != "auto":
        fixed = spec.unmeasured(load_card(spec.pair))
        if is_to_be_fitted(fixed, store):
            spec = spec.with_open({"batch": fitted(ray, fixed).batch})
    return decide(ray, spec)


def _refuse_a_lost_folder(spec: Spec) -> None:
    """A submitted job runs in a copy of its working directory, which Ray deletes some day."""
    path = Path(spec.output).expanduser()
    if _SUBMITTED in os.environ and "://" not in spec.output and "::" not in spec.output and not path.is_absolute():
        raise SpecError(
            f"output: got {spec.output!r}, allowed inside a submitted job: a URL or an absolute path that every node "
            "reaches"
        )


def _asked(spec: Spec, store: Store) -> Asked | None:
    """The spec's quality block with its files read, before anything else is done for the job; None: it asks nothing.

    Raises:
        QualityError: a file is missing or wrong.
    """
    if not spec.quality.asked:
        return None
    from jobs.dataset.comparison import resolve  # loads what only these figures need

    return resolve(spec.quality, store.url, spec.storage_options, load_card(spec.pair).class_names)


def _generate(spec: FixedSpec, calibration: Calibration | None, store: Store, asked: Asked | None) -> tuple[Plan, int]:
    """`generate` with the method decided; the plan that holds and the images made."""
    state = find_state(store, make_plan(spec, calibration))
    match state.case:
        case Case.DONE:
            if asked is not None and _compared(asked, store, state.plan, state.committed):
                finish(spec.output, spec.storage_options)
            return state.plan, 0
        case Case.TO_FINISH:
            with _present(store) as presence:
                presence.announce()
                store_requests(store, spec, state.plan)
                plan = store_plan(store, state.plan)
                _finish(spec, store, plan, state.committed, presence, asked)
            return plan, 0
        case Case.NEW | Case.UNFINISHED | Case.DAMAGED:
            with _present(store) as presence:
                check_weights(spec.pair, state.plan.pair_sha256)
                plan, made = _make_shards(spec, store, state, presence, asked)
                _finish(spec, store, plan, _committed_now(store, plan, presence), presence, asked)
            return plan, made


@contextmanager
def _present(store: Store) -> Iterator[Presence]:
    """The driver at work on the output; from here on a store that fails stops a job that can be resumed."""
    exclusive = not store.check_writable()
    with resumable(), Presence(store, exclusive) as presence:
        yield presence


def _committed_now(store: Store, plan: Plan, presence: Presence) -> Committed:
    """What is committed after the work.

    Raises:
        JobError: a shard is still missing or damaged.
    """
    committed = read_committed(store, plan)
    find_missing(store, committed)
    if presence.exclusive:
        find_damage(store, committed)  # two attempts at a shard may have overwritten each other here
    check_whole(plan, committed)
    return committed


def _compared(
    asked: Asked, store: Store, plan: Plan, committed: Committed, beat: Callable[[], None] | None = None
) -> bool:
    """Computes the figures of the quality block; whether they are new.

    Raises:
        JobError: a file that is read is not what was committed.
    """
    try:
        return asked.compare(store, plan, list(committed.records.values()), beat)
    except DamagedPart as error:
        raise JobError(f"output: the dataset is not whole ({error}); the same command resumes") from error


def _finish(
    spec: FixedSpec, store: Store, plan: Plan, committed: Committed, presence: Presence, asked: Asked | None
) -> None:
    presence.beat()
    new = asked is not None and _compared(asked, store, plan, committed, presence.beat)
    # Another driver may have finished it meanwhile.
    if new or is_unfinished(store, plan, committed):
        finish(spec.output, spec.storage_options)
