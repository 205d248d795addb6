"""What a job will take before it runs: shards, bytes, time and cost, from the pair's measured figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from jobs.auto import choices_of, measured_in_words
from jobs.plan import public_url
from jobs.progress import duration
from jobs.spec import FixedSpec, Spec
from jobs.words import law_in_words, method_in_words, number, of_codes, size
from spd_core.law import Choice, SamplerLaw, Settings
from spd_core.pairs.pair import PairCard
from workers.machine import usable_cpus

_FEATURE_BYTES = 1280 * 2


class Estimate(Settings):
    """A job's expected size; None where nothing was measured."""

    rows: int
    shards: int
    bytes_at_most: int = Field(description="pixels as they are and features; images compress below that")
    workers: int
    images_per_s_per_worker: float | None = Field(description="None also while the method is still to be measured")
    seconds: float | None = Field(description="without the start of the workers")
    cost: float | None = Field(description="at workers.price_per_hour")


def measured_rate(card: PairCard, spec: FixedSpec) -> float | None:
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


def estimate(card: PairCard, spec: Spec) -> Estimate:
    """The estimate of a spec; a worker count of 0 is taken as this machine's CPUs."""
    height, width, channels = card.image_shape
    per_image = height * width * channels + (_FEATURE_BYTES if spec.features else 0)
    cpus = max(spec.workers.num_cpus, float(spec.workers.threads))
    workers = min(spec.workers.count or max(1, int(usable_cpus() / cpus)), spec.shards)
    rate = measured_rate(card, spec) if isinstance(spec, FixedSpec) else None
    rows = spec.requests.count
    seconds = rows / (rate * workers) if rate else None
    price = spec.workers.price_per_hour
    cost = price * workers * seconds / 3600 if price is not None and seconds is not None else None
    return Estimate(
        rows=rows,
        shards=spec.shards,
        bytes_at_most=rows * per_image,
        workers=workers,
        images_per_s_per_worker=rate,
        seconds=seconds,
        cost=cost,
    )


def _method_lines(card: PairCard, spec: Spec) -> list[str]:
    codes = of_codes(card.sha256)
    if isinstance(spec, FixedSpec):
        return [f"method       {method_in_words(spec.method.model_dump(), codes)}, guarantee {spec.method.guarantee}"]
    options = choices_of(spec, card)
    return [
        f"method       auto, guarantee at least {spec.method.guarantee}: the fastest, before the plan is written",
        f"measured     {measured_in_words(spec, options)}, by one worker:",
        *(f"             {line}" for line in _listed(options, codes)),
    ]


def _listed(options: Sequence[Choice], codes: bool) -> list[str]:
    """Each method on a line, with the batch sizes it is measured at."""
    batches: dict[str, list[str]] = {}
    for choice in options:
        name = f"{method_in_words(choice.method.model_dump(), codes)}, guarantee {choice.method.guarantee}"
        batches.setdefault(name, []).append(str(choice.batch))
    return [f"{name}, batch {', '.join(sizes)}" for name, sizes in batches.items()]


def estimate_lines(card: PairCard, spec: Spec, guess: Estimate) -> list[str]:
    """The estimate as text."""
    fixed = isinstance(spec, FixedSpec)
    unknown = "the pair's card has no figures at this law and method" if fixed else "the method is still to be measured"
    lines = [
        f"output       {public_url(spec.output)}",
        f"images       {guess.rows:,} of {len(card.class_names)} classes, {guess.shards:,} shards",
        f"law          {law_in_words(spec.law.model_dump(), of_codes(card.sha256))}",
        *_method_lines(card, spec),
        f"bytes        at most about {size(guess.bytes_at_most)} before compression",
        f"workers      {guess.workers}",
        f"time         {f'unknown: {unknown}' if guess.seconds is None else 'about ' + duration(guess.seconds)}",
    ]
    if spec.workers.price_per_hour is not None:
        lines.append(f"cost         {'unknown' if guess.cost is None else 'about ' + number(guess.cost)}")
    fingerprint = spec.fingerprint(card.sha256) if isinstance(spec, FixedSpec) else "follows from the method"
    return [*lines, f"fingerprint  {fingerprint}"]
