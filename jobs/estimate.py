"""What a job will take before it runs: shards, bytes, time and cost, from the pair's measured figures."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from jobs.plan import Plan, usable_cpus
from jobs.progress import duration
from jobs.spec import Spec
from jobs.words import law_in_words, method_in_words, number, size
from spd_core.law import SamplerLaw, Settings
from spd_core.pairs.pair import PairCard

_FEATURE_BYTES = 1280 * 2


class Estimate(Settings):
    """A job's expected size; None where nothing was measured."""

    rows: int
    shards: int
    bytes_at_most: int = Field(description="pixels as they are and features; images compress below that")
    workers: int
    images_per_s_per_worker: float | None
    seconds: float | None = Field(description="without the start of the workers")
    cost: float | None = Field(description="at workers.price_per_hour")


def measured_rate(card: PairCard, spec: Spec) -> float | None:
    """Images per second of one CPU worker in the card's benchmark rows at this law and method, nearest batch."""
    # Compared as models: a knob that is newer than the figures counts with its default.
    rows: list[dict[str, Any]] = [
        row
        for row in card.figures.get("bench", {}).get("rows", [])
        if row["method"] == spec.method.name
        and type(spec.method).model_validate(row["settings"]) == spec.method
        and SamplerLaw.model_validate(row["law"]) == spec.law
    ]
    if not rows or spec.workers.num_gpus > 0:
        return None
    return float(min(rows, key=lambda row: abs(row["batch"] - spec.batch))["images_per_s"])


def estimate(card: PairCard, plan: Plan, spec: Spec) -> Estimate:
    """The estimate of a plan; a worker count of 0 is taken as this machine's CPUs."""
    height, width, channels = card.image_shape
    per_image = height * width * channels + (_FEATURE_BYTES if spec.features else 0)
    cpus = max(spec.workers.num_cpus, float(spec.workers.threads))
    workers = min(spec.workers.count or max(1, int(usable_cpus() / cpus)), plan.shards)
    rate = measured_rate(card, spec)
    seconds = plan.rows / (rate * workers) if rate else None
    price = spec.workers.price_per_hour
    cost = price * workers * seconds / 3600 if price is not None and seconds is not None else None
    return Estimate(
        rows=plan.rows,
        shards=plan.shards,
        bytes_at_most=plan.rows * per_image,
        workers=workers,
        images_per_s_per_worker=rate,
        seconds=seconds,
        cost=cost,
    )


def estimate_lines(plan: Plan, guess: Estimate) -> list[str]:
    """The estimate as text."""
    unknown = "unknown: the pair's card has no figures at this law and method"
    lines = [
        f"output       {plan.spec['output']}",
        f"images       {guess.rows:,} of {len(plan.class_names)} classes, {guess.shards:,} shards",
        f"law          {law_in_words(plan.spec['law'])}",
        f"method       {method_in_words(plan.spec['method'])}, guarantee {plan.guarantee}",
        f"bytes        at most about {size(guess.bytes_at_most)} before compression",
        f"workers      {guess.workers}",
        f"time         {unknown if guess.seconds is None else 'about ' + duration(guess.seconds)}",
    ]
    if plan.spec["workers"]["price_per_hour"] is not None:
        lines.append(f"cost         {'unknown' if guess.cost is None else 'about ' + number(guess.cost)}")
    return [*lines, f"fingerprint  {plan.fingerprint}"]
