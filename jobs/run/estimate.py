"""What a job will take before it runs: shards, bytes, time and cost.

From the pair's measured figures; on GPUs, for which a pair's card has none, from the counted work of its models and the
ceilings of the card, and then the words say that it is a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from jobs.job.spec import FixedSpec, Spec
from jobs.run.auto import choices_of, measured_in_words
from jobs.run.encoding import encoding_cost, encoding_in_words
from jobs.words.phrases import counted, law_in_words, method_in_words, number, rounding_in_words, size
from jobs.words.progress import duration
from spd_core.decode.cards import CARDS, card_of
from spd_core.decode.ceilings import Ceilings, known_ceilings
from spd_core.decode.predict import images_per_s
from spd_core.law import Choice, SamplerLaw, Settings
from spd_core.memory import BatchMemory, batch_memory
from spd_core.pairs.pair import PairCard
from workers.machine import usable_cpus
from workers.redact import public_url

_FEATURE_BYTES = 1280 * 2
#: What the workers' GPUs are taken for where this machine has none.
ASSUMED = "NVIDIA H100"


class Estimate(Settings):
    """A job's expected size; None where nothing was measured."""

    rows: int
    shards: int
    bytes_at_most: int = Field(description="pixels as they are and features; images compress below that")
    workers: int
    images_per_s_per_worker: float | None = Field(description="None also while the method is still to be measured")
    predicted_for: str = Field("", description="the GPU that the speed is predicted for; empty: it was measured")
    without_windows: bool = Field(False, description="the prediction leaves windows out: their gain here is unknown")
    measured_on: str = Field("", description="the machine of the pair's measured figures; empty: the card names none")
    seconds: float | None = Field(description="without the start of the workers")
    cost: float | None = Field(description="at workers.price_per_hour")
    encoded_per_s: float = Field(description="images that a worker encodes a second, as measured here")
    memory: BatchMemory | None = Field(
        description="of a batch; where no method is asked for, by the pair's own; None with auto"
    )

    @property
    def waits_for_encoding(self) -> bool:
        """Whether the decoder is faster than the encoding beside it."""
        rate = self.images_per_s_per_worker
        return rate is not None and rate > self.encoded_per_s


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


def assumed_device(spec: Spec) -> Ceilings | None:
    """The ceilings of the workers' GPU; None for workers on CPUs, or where nothing is known of the GPU.

    It is the one that the spec names, or else this machine's, or else an H100.
    """
    if spec.workers.num_gpus == 0:
        return None
    if named := spec.workers.accelerator_type:
        return known_ceilings(named, spec.law.dtype)
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return known_ceilings(here, spec.law.dtype) or known_ceilings(ASSUMED, spec.law.dtype)


def _predicted(card: PairCard, spec: Spec, at: Ceilings) -> tuple[float | None, bool]:
    """Images per second of a worker by the cost model, and whether that is the speed without windows.

    Of a spec with auto it is the speed of its fastest predicted choice. What windows gain is known of pairs for which
    they were tuned; for others the speed without them is what can be said.
    """
    fixed = isinstance(spec, FixedSpec)
    choices = [Choice(method=spec.method, batch=spec.batch)] if fixed else choices_of(spec, card, at)
    without = [
        choice.model_copy(update={"method": choice.method.model_copy(update={"head_window": ()})})
        for choice in choices
        if getattr(choice.method, "head_window", ())
    ]
    for options in (choices, without):
        rates = [images_per_s(card, spec.law, choice, at) for choice in options]
        best = max((rate for rate in rates if rate is not None), default=None)
        if best is not None:
            return best * min(1.0, spec.workers.num_gpus), options is without
    return None, False


def _workers(spec: Spec) -> int:
    """Actors; a count of 0 is taken as what this machine has room for, at least one."""
    cpus = usable_cpus() / max(spec.workers.num_cpus, float(spec.workers.threads))
    room = torch.cuda.device_count() / spec.workers.num_gpus if spec.workers.num_gpus > 0 else cpus
    return min(spec.workers.count or max(1, int(room)), spec.shards)


def estimate(card: PairCard, spec: Spec) -> Estimate:
    """The estimate of a spec."""
    height, width, channels = card.image_shape
    per_image = height * width * channels + (_FEATURE_BYTES if spec.features else 0)
    workers = _workers(spec)
    fixed = [spec] if isinstance(spec, FixedSpec) else [spec.decided(choice) for choice in choices_of(spec, card)]
    rate = max((found for each in fixed if (found := measured_rate(card, each))), default=None)
    at = assumed_device(spec) if rate is None else None
    rate, without_windows = _predicted(card, spec, at) if at else (rate, False)
    own = spec.unmeasured(card) if "method" in spec.open_fields else spec
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
        predicted_for=at.name if at and rate else "",
        without_windows=without_windows,
        measured_on=str(card.figures.get("bench", {}).get("machine", {}).get("cpu", "")),
        seconds=seconds,
        cost=cost,
        encoded_per_s=_encoders(spec) / encoding_cost(card.image_shape, spec.image).seconds,
        memory=batch_memory(card, spec.law, own.method, own.batch) if isinstance(own, FixedSpec) else None,
    )


def _method_lines(card: PairCard, spec: Spec) -> list[str]:
    if isinstance(spec, FixedSpec):
        return [
            f"method       {method_in_words(spec.method.model_dump(), card.family)}, guarantee {spec.method.guarantee}"
        ]
    at = assumed_device(spec)
    options = choices_of(spec, card, at)
    rates = [images_per_s(card, spec.law, choice, at) if at else None for choice in options]
    return [
        f"method       auto, guarantee at least {spec.method.guarantee}: the fastest, before the plan is written",
        f"measured     {measured_in_words(spec, options)}, by one worker:",
        *(f"             {line}" for line in _listed(options, card.family, rates)),
    ]


def _listed(options: Sequence[Choice], family: str, rates: Sequence[float | None]) -> list[str]:
    """Each method on a line, with the batch sizes it is measured at and, if known, its predicted speeds."""
    batches: dict[str, list[str]] = {}
    for choice, predicted in zip(options, rates, strict=True):
        name = f"{method_in_words(choice.method.model_dump(), family)}, guarantee {choice.method.guarantee}"
        shown = f"{choice.batch} (predicted {number(predicted)}/s)" if predicted else str(choice.batch)
        batches.setdefault(name, []).append(shown)
    return [f"{name}, batch {', '.join(sizes)}" for name, sizes in batches.items()]


def _encoders(spec: Spec) -> int:
    """Threads that a worker encodes with; beside a GPU, where the spec leaves it open, as many as cores here."""
    return spec.workers.encoders or (usable_cpus() if spec.workers.num_gpus > 0 else 1)


def _worker_lines(spec: Spec, guess: Estimate) -> list[str]:
    """Memory of a batch and speed of encoding, and a warning if a decoder would wait for it."""
    lines = []
    if guess.memory is not None and guess.memory.total:
        parts = ((name, getattr(guess.memory, name)) for name in ("weights", "cache", "activations", "head"))
        listed = ", ".join(f"{name} {size(held)}" for name, held in parts if held)
        lines.append(f"memory       about {size(guess.memory.total)} for a batch of {spec.batch} ({listed})")
        if spec.workers.device == "cpu":
            libraries = "torch, Ray and the feature model" if spec.features else "torch and Ray"
            lines.append(
                f"             and on top each worker's process with {libraries}: the report has the peak of both"
            )
    rate = f"about {number(guess.encoded_per_s)} images/s a worker, {encoding_in_words(spec.image)}"
    lines.append(f"encoding     {rate}, threads: {_encoders(spec)}, measured on this machine")
    if guess.waits_for_encoding:
        lines.append("warning      encoding is the bottleneck: more workers.encoders, image.effort fast or format webp")
    return lines + _memory_warning(spec, guess)


def _time_in_words(guess: Estimate, seconds: float) -> str:
    """The time and where it is known from."""
    if guess.predicted_for:
        card = card_of(guess.predicted_for)
        source = f", from {card.source}" if card else ""
        without = ", without head self-speculation, whose gain here is not known" if guess.without_windows else ""
        told = f"predicted for one {guess.predicted_for} a worker, not measured"
        return f"{told}: at least about {duration(seconds)}{source}{without}"
    where = f"measured on {guess.measured_on}" if guess.measured_on else "measured on another machine"
    return f"about {duration(seconds)} at the speed in the pair's card, {where}"


def _unknown(spec: Spec) -> str:
    """Why there is no time."""
    named = spec.workers.accelerator_type
    if spec.workers.num_gpus > 0 and named and card_of(named) is None:
        known = ", ".join(card.words[0] for card in CARDS)
        return f"no peak speeds of workers.accelerator_type {named} are listed, only those of {known}"
    if isinstance(spec, FixedSpec):
        return "the pair's card has no figures at this law and method"
    return "the method is still to be measured"


def _cost_lines(spec: Spec, guess: Estimate) -> list[str]:
    """The cost at the spec's price, or on a GPU the hours that one has to pay."""
    price, seconds = spec.workers.price_per_hour, guess.seconds
    at_least = "predicted: at least about" if guess.predicted_for else "about"
    if price is None:
        if not guess.predicted_for or seconds is None:
            return []
        hours = number(guess.workers * seconds / 3600)
        return [f"cost         {at_least} {hours} hours of a worker; workers.price_per_hour makes them an amount"]
    if guess.cost is None:
        return ["cost         unknown"]
    return [f"cost         {at_least} {number(guess.cost)} at {number(price)} an hour of a worker"]


def _memory_warning(spec: Spec, guess: Estimate) -> list[str]:
    """Says where a batch needs more than the card has that the spec names, or that its speed is predicted for."""
    named = spec.workers.accelerator_type if spec.workers.num_gpus > 0 else None
    card = card_of(named or guess.predicted_for)
    if card is None or guess.memory is None or guess.memory.total < card.memory_gb * 1e9:
        return []
    slower = ", and slower than predicted" if guess.predicted_for else ""
    given = "is refused" if "batch" not in spec.open_fields else f"is halved until it fits{slower}"
    return [f"warning      one {card.name} has {card.memory_gb} GB: a batch of {spec.batch} {given}"]


def estimate_lines(card: PairCard, spec: Spec, guess: Estimate) -> list[str]:
    """The estimate as text."""
    shards = counted(guess.shards, "shard", "shards")
    rounding = rounding_in_words(spec.law.dtype, card.sha256["target"])
    time = f"unknown: {_unknown(spec)}" if guess.seconds is None else _time_in_words(guess, guess.seconds)
    classes = counted(spec.classes(len(card.class_names)), "class", "classes")
    lines = [
        f"output       {public_url(spec.output)}",
        f"images       {guess.rows:,} of {classes}, {shards}",
        f"law          {law_in_words(spec.law.model_dump(), card.family)}",
        *_method_lines(card, spec),
        *([f"rounding     {rounding}"] if rounding else []),
        f"bytes        at most about {size(guess.bytes_at_most)} before compression",
        f"workers      {guess.workers}",
        f"time         {time}",
    ]
    lines += _worker_lines(spec, guess)
    lines += _cost_lines(spec, guess)
    fingerprint = spec.fingerprint(card) if isinstance(spec, FixedSpec) else "follows from the method"
    return [*lines, f"fingerprint  {fingerprint}"]
