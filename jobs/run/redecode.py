"""Decodes a sample of a finished dataset again, on the workers of its job or in this process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from jobs.dataset.commits import DamagedPart, Kept
from jobs.dataset.finish import finish
from jobs.dataset.manifest import read_finished
from jobs.dataset.redecoded import (
    Again,
    Redecoded,
    data_digest,
    keep_redecoded,
    kept_redecoded,
    read_sampled,
    redecode,
)
from jobs.job.checks import Checks
from jobs.job.plan import Plan, read_plan
from jobs.job.spec import FixedSpec, options_of
from jobs.run.cluster import no_room, reserved, running_ray
from jobs.run.fleet import raise_if_hopeless, reason_of
from jobs.run.signals import stoppable
from jobs.words.errors import JobError
from workers.records import WorkerSettings
from workers.redecode import Redecoder
from workers.store import Store, StoreError

logger = logging.getLogger(__name__)
#: Workers that decode again where a cluster has several machines: one of them is another than the one that made it.
_WORKERS = 2


def check_batches(spec: FixedSpec, plan: Plan, store: Store) -> None:
    """Does what the spec's ``checks`` ask for, unless it was done for this dataset; the report then tells it.

    Args:
        spec: of the job.
        plan: of its finished dataset.
        store: its output.

    Raises:
        JobError: no worker comes up, or decoding fails; the dataset is finished without it.
    """
    if not spec.checks.batch_invariance:
        return
    records = {kept.shard: kept for kept in read_finished(store, plan)}
    if _is_done(store, plan, records, spec.checks):
        return
    with running_ray(spec.workers) as ray, stoppable():
        actors = [
            ray.remote(Redecoder).options(**options).remote(_settings(spec, plan)) for options in _placed(ray, spec)
        ]
        try:
            workers = [_again(ray, spec, actor) for actor in actors]
            found = _redecode(store, plan, records, spec.checks, workers)
        finally:
            for actor in actors:
                ray.kill(actor, no_restart=True)
    keep_redecoded(store, found)
    finish(spec.output, spec.storage_options)


def redecode_here(url: str, storage_options: dict[str, Any], checks: Checks) -> Redecoded:
    """Decodes a sample of a finished dataset again in this process, on its GPU if it has one; the report then tells it.

    Raises:
        SpecError: there is no finished dataset.
        PairError: its pair is not at hand.
        JobError: a file of it is not what was committed.
        StoreError: it cannot be read.
    """
    store = Store(url, storage_options)
    plan = read_plan(store)
    records = {kept.shard: kept for kept in read_finished(store, plan)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = plan.spec.model_copy(update={"output": store.url, "storage_options": storage_options, "checks": checks})
    decoder = Redecoder(_settings(spec, plan).model_copy(update={"device": device}))
    ready = decoder.ready()
    found = _redecode(store, plan, records, checks, [Again(ready["name"], ready["platform"], decoder.images)])
    try:
        keep_redecoded(store, found)
        finish(url, storage_options)
    except StoreError as error:
        logger.warning("the report does not say it: %s", error)
    return found


def _is_done(store: Store, plan: Plan, records: dict[int, Kept], checks: Checks) -> bool:
    kept = kept_redecoded(store, plan, list(records.values()))
    asked = (min(checks.batch_invariance, plan.rows), checks.other_batch(plan.spec.batch))
    return kept is not None and (kept.images, kept.again_batch) == asked


def _redecode(
    store: Store, plan: Plan, records: dict[int, Kept], checks: Checks, workers: Sequence[Again]
) -> Redecoded:
    images, batch = checks.batch_invariance, checks.other_batch(plan.spec.batch)
    logger.info("batch invariance: decoding %d images again at batch %d", min(images, plan.rows), batch)
    try:
        sampled = read_sampled(store, plan, records, images)
    except DamagedPart as error:
        raise JobError(
            f"output: the dataset is damaged ({error}); `spd generate` with the same spec mends it"
        ) from error
    return redecode(plan, sampled, batch, workers, data_digest(plan, records, images))


def _settings(spec: FixedSpec, plan: Plan) -> WorkerSettings:
    """What a worker is told that makes the same images at another batch size."""
    return WorkerSettings(
        output=spec.output,
        pair=spec.pair,
        pair_options=options_of(spec, spec.pair),
        pair_sha256=plan.pair_sha256,
        law=plan.spec.law,
        method=plan.spec.method,
        batch=spec.checks.other_batch(plan.spec.batch),
        image=plan.spec.image,
        features=False,
        device=spec.workers.device,
        threads=spec.workers.threads,
        fingerprint=plan.fingerprint,
        shards=plan.shards,
    )


def _placed(ray: Any, spec: FixedSpec) -> list[dict[str, Any]]:
    """What Ray is told of each actor: one, or where there are several machines two on different ones, if they fit."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    count = min(_WORKERS, len(alive))
    return [{**reserved(spec.workers), "scheduling_strategy": "SPREAD"} for _ in range(count)]


def _again(ray: Any, spec: FixedSpec, actor: Any) -> Again:
    def ask(reference: Any, longest: float) -> Any:
        try:
            return ray.get(reference, timeout=longest)
        except ray.exceptions.GetTimeoutError as error:
            raise JobError(f"batch invariance: {no_room(ray, spec.workers)}") from error
        except ray.exceptions.RayError as error:
            raise_if_hopeless(error)
            raise JobError(f"batch invariance: {reason_of(error)}") from error

    ready = ask(actor.ready.remote(), spec.workers.start_timeout_s)
    return Again(
        ready["name"], ready["platform"], lambda task: ask(actor.images.remote(task), spec.workers.shard_timeout_s)
    )
