"""The figures of a job from the totals of its commit records and its feature files: the content of report.json."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq
import torch
from pyarrow import BufferReader
from torch import Tensor

from jobs.dataset.commits import Kept, read_part
from jobs.dataset.redecoded import redecoded_json
from jobs.dataset.totals import Totals
from jobs.job.plan import Plan, package_version
from jobs.words.progress import Progress, following
from spd_core.accept.certificate import bounds
from spd_core.law import Guarantee
from workers import layout
from workers.parquet import FEATURE_DIMS
from workers.records import stages_of
from workers.store import Store

#: Images the distances are computed on, at most: the number published figures use, and what fits into memory.
QUALITY_IMAGES = 50_000
#: Fewer say nothing about a distribution of 1280 features.
MIN_QUALITY_IMAGES = 50
#: What the report calls a stage, where that is not its name.
_AT_WORK = {"decode": "decoder"}
Json = dict[str, Any]


def _last_made(totals: Totals) -> str | None:
    """When the last image was made, not when somebody looked: the same shards give the same report, byte by byte."""
    if not totals.shards:
        return None
    last = datetime.datetime.fromtimestamp(totals.activity().last, datetime.UTC)
    return last.isoformat(timespec="milliseconds")


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def throughput(plan: Plan, totals: Totals) -> Json:
    """Images per second in total, per worker and per GPU, the idle and warm-up time, and the time split.

    ``at_work`` is how many of each stage were at work at a time, on average over the time of the workers: of the
    decoder (with codec and features), of the threads that encode, of uploads. They come to more than 1 where stages
    overlap; what the decoder's lacks of 1 is time in which it waited.
    """
    when, images = totals.activity(), totals.images
    gpus = when.workers * plan.spec.workers.num_gpus
    started = datetime.datetime.fromisoformat(plan.created).timestamp()
    paid = when.workers * when.active_seconds
    stages = {_AT_WORK.get(stage, stage): seconds for stage, seconds in stages_of(totals.seconds).items()}
    split = {**totals.seconds, "other": max(0.0, when.worker_seconds - sum(totals.seconds.values()))}
    return {
        "images_per_s": _ratio(images, when.active_seconds),
        "images_per_s_per_worker": _ratio(images, when.worker_seconds),
        "images_per_s_per_gpu": _ratio(images, when.active_seconds * gpus),
        "active_seconds": when.active_seconds,
        "worker_seconds": when.worker_seconds,
        "workers": when.workers,
        "warm_up_seconds": max(0.0, when.first - started),
        "idle_seconds": max(0.0, paid - when.worker_seconds),
        "idle_share": _ratio(max(0.0, paid - when.worker_seconds), paid),
        "seconds": dict(sorted(split.items(), key=lambda item: -item[1])),
        "at_work": {name: _ratio(seconds, when.worker_seconds) for name, seconds in stages.items()},
        "peak_memory": totals.memory,
        "by_worker": [
            {
                "worker": name,
                **row,
                "seconds": when.by_worker[name],
                "images_per_s": _ratio(row["images"], when.by_worker[name]),
                "from_seconds": when.reach[name][0] - when.first,
                "to_seconds": when.reach[name][1] - when.first,
                "slowest_shard_seconds": when.slowest_shard[name],
            }
            for name, row in totals.workers.items()
        ],
    }


def cost(plan: Plan, speed: Json, images: int) -> Json | None:
    """What the workers cost at the spec's price, warm-up and idle time included; None without a price."""
    price = plan.spec.workers.price_per_hour
    if price is None:
        return None
    hours = speed["workers"] * (speed["active_seconds"] + speed["warm_up_seconds"]) / 3600
    return {"price_per_hour": price, "worker_hours": hours, "per_1000_images": price * hours / images * 1000}


def acceptance(totals: Totals) -> Json | None:
    """Tested and accepted drafts: in total, by place in the block, and by token; None if nothing was drafted."""
    tested, accepted = totals.tested_by_index, totals.accepted_by_index
    if not sum(tested):
        return None
    tokens = zip(totals.accepted_by_token, totals.tested_by_token, strict=True)
    return {
        "tested": sum(tested),
        "accepted": sum(accepted),
        "rate": sum(accepted) / sum(tested),
        "by_index": [_ratio(a, n) for a, n in zip(accepted, tested, strict=True)],
        "tested_by_index": tested,
        "by_token": [_ratio(a, n) for a, n in tokens],
        "tested_by_token": totals.tested_by_token,
    }


def counts(totals: Totals) -> Json:
    """Calls and rows of the networks: in total, per image and per token."""
    images, tokens = totals.images, len(totals.tested_by_token)
    return {
        "total": dict(totals.counts),
        "per_image": {name: value / images for name, value in totals.counts.items()},
        "per_token": {name: value / (images * tokens) for name, value in totals.counts.items()} if tokens else {},
        "tokens_per_image": tokens,
        "tokens_per_round": _ratio(images * tokens, totals.counts["rounds"]),
    }


def certificate(totals: Totals, guarantee: str) -> Json | None:
    """Mean of the images' certificates with its 95 % interval, and the excess per token; None but for guarantee tv.

    Images are independent of each other, so the interval is over images; it holds for images of distinct seeds.
    """
    if guarantee != Guarantee.TV or math.isnan(totals.certificate_sum):
        return None
    images, tokens = totals.images, len(totals.tested_by_token)
    found = bounds(images, totals.certificate_sum, totals.certificate_square_sum)
    return {**asdict(found), "images": images, "excess_per_token": _ratio(totals.excess_sum, images * tokens)}


def classes(plan: Plan, totals: Totals) -> list[Json]:
    """Images of each class, and how many of them a classifier sees as that class."""
    images, agreeing = totals.images_by_label, totals.agreeing_by_label
    return [
        {
            "label": label,
            "name": name,
            "images": images[label] if label < len(images) else 0,
            "agreeing": None if agreeing is None else agreeing[label] if label < len(agreeing) else 0,
        }
        for label, name in enumerate(plan.class_names)
    ]


def _features(store: Store, shards: Sequence[Kept], images: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features float16 [n, D], labels int64 [n] and agreement bool [n] of the first n = ``images`` images."""
    features = torch.empty(images, FEATURE_DIMS, dtype=torch.float16)
    labels: list[int] = []
    agrees: list[bool | None] = []
    with Progress(images, "images", note="reading features") as progress:
        for kept in shards:
            have = len(labels)
            if have >= images:
                break
            column = pq.read_table(BufferReader(read_part(store, kept, layout.FEATURES)))["feature"]
            part = column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)[: images - have]
            table = pq.read_table(BufferReader(read_part(store, kept, layout.DATA)), columns=["label", "label_agrees"])
            features[have : have + len(part)] = torch.from_numpy(part.copy())
            labels += table["label"].to_pylist()[: len(part)]
            agrees += table["label_agrees"].to_pylist()[: len(part)]
            progress.add(len(part))
            progress.tick()
    agree = None if any(value is None for value in agrees) else torch.tensor(agrees)
    return features, torch.tensor(labels), agree


def quality(store: Store, plan: Plan, shards: Sequence[Kept], images: int) -> Json:
    """Distances to the plan's reference and label agreement, or ``{"skipped": reason}``.

    Args:
        store: the output.
        plan: of the job.
        shards: that are committed.
        images: in them.

    Raises:
        DamagedPart: a file is gone or not what was committed.
        StoreError: a file cannot be read.
    """
    reference = plan.pair.reference
    if not plan.spec.features:
        return {"skipped": "the job wrote no image features (features: false)"}
    if not reference:
        return {"skipped": "the pair's card names no reference statistics"}
    if images < MIN_QUALITY_IMAGES:
        return {"skipped": f"{images} images are too few, at least {MIN_QUALITY_IMAGES} are needed"}
    from spd_core.quality.evaluate import evaluate  # loads what only this figure needs

    features = _features(store, shards, min(images, QUALITY_IMAGES))
    with following("quality"):
        figures = evaluate(*features, reference)
    return figures.model_dump(mode="json")


def _comparison(store: Store, shards: Sequence[Kept]) -> Json | None:
    """The figures of a quality block, if somebody asked for them."""
    if not store.exists(layout.COMPARISON):
        return None
    from jobs.dataset.comparison import kept_comparison  # loads what only these figures need

    return kept_comparison(store, shards)


def _against_plain(plan: Plan) -> Json | None:
    """What the method gains over plain decoding, as measured before the job; None: that was not measured."""
    found = plan.calibration.comparison if plan.calibration else None
    return found.model_dump(mode="json") if found else None


def aggregate(store: Store, plan: Plan, shards: Sequence[Kept], totals: Totals) -> Json:
    """Everything the report shows except the images.

    Args:
        store: the output, for the feature files.
        plan: of the job.
        shards: that are committed, ascending; fewer than planned give a partial report.
        totals: of their commit records.

    Raises:
        DamagedPart: a file that is read is gone or not what was committed.
        StoreError: a feature file cannot be read.
    """
    spec = plan.spec
    report: Json = {
        "version": 1,
        "made": _last_made(totals) or plan.created,
        "spd": package_version("spd"),
        "name": spec.name,
        "output": spec.output,
        "partial": len(shards) < plan.shards,
        "images": {"planned": plan.rows, "committed": totals.images},
        "shards": {"planned": plan.shards, "committed": len(shards)},
        "bytes": totals.bytes,
        "attempts": totals.attempts,
        "platforms": {name or "not recorded": images for name, images in sorted(totals.platforms.items())},
        "law": spec.law.model_dump(mode="json"),
        "method": spec.method.model_dump(mode="json"),
        "guarantee": plan.guarantee,
        "against_plain": _against_plain(plan),
        "calibration": plan.calibration.model_dump(mode="json") if plan.calibration else None,
        "seed": spec.seed,
        "pair": {**plan.pair.model_dump(), "family": plan.family, "sha256": plan.pair_sha256},
        "plan": plan.model_dump(mode="json", exclude={"calibration", "class_names", "pair", "pair_sha256", "spec"}),
        "spec": plan.stored_spec,
    }
    if not totals.shards:
        return report
    speed = throughput(plan, totals)
    if again := redecoded_json(store, plan, shards):
        report["batch_invariance"] = again
    if comparison := _comparison(store, shards):
        report["comparison"] = comparison
    return report | {
        "throughput": speed,
        "cost": cost(plan, speed, totals.images),
        "acceptance": acceptance(totals),
        "counts": counts(totals),
        "certificate": certificate(totals, plan.guarantee),
        "classes": classes(plan, totals),
        "quality": quality(store, plan, shards, totals.images),
    }
