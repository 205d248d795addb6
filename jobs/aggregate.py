"""The figures of a job, added up from its commit records and feature files: the content of report.json."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
import torch
from pyarrow import BufferReader
from scipy.stats import t
from torch import Tensor

from jobs.plan import Plan, package_version
from workers import layout
from workers.records import CommitRecord
from workers.store import Store

#: Images the distances are computed on, at most: the number published figures use, and what fits into memory.
QUALITY_IMAGES = 50_000
#: Fewer say nothing about a distribution of 1280 features.
MIN_QUALITY_IMAGES = 50
Json = dict[str, Any]


@dataclass(frozen=True)
class Activity:
    """When the workers of a job worked; times without any worker, as between two runs, are left out."""

    first: float  #: start of the first shard, seconds since 1970
    last: float  #: end of the last one
    active_seconds: float  #: with at least one worker at work
    worker_seconds: float  #: summed over the workers
    workers: int  #: most at work at one moment


def activity(records: Sequence[CommitRecord]) -> Activity:
    """Activity of at least one record, from start times and wall seconds alone."""
    spans = []
    for record in records:
        start = datetime.datetime.fromisoformat(record.started).timestamp()
        spans.append((start, start + record.wall_seconds))
    # At equal times an end comes before a start: one worker's next shard is no second worker.
    edges = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    running, most, active, since = 0, 0, 0.0, 0.0
    for at, change in edges:
        if running == 0:
            since = at
        running += change
        most = max(most, running)
        if running == 0:
            active += at - since
    return Activity(edges[0][0], edges[-1][0], active, sum(end - start for start, end in spans), most)


def _last_made(records: Sequence[CommitRecord]) -> str | None:
    """When the last image was made, not when somebody looked: the same shards give the same report, byte by byte."""
    if not records:
        return None
    last = datetime.datetime.fromtimestamp(activity(records).last, datetime.UTC)
    return last.isoformat(timespec="milliseconds")


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _sum_columns(rows: Sequence[Sequence[int]]) -> list[int]:
    """Element-wise sums of rows that may differ in length."""
    sums = [0] * max((len(row) for row in rows), default=0)
    for row in rows:
        for index, value in enumerate(row):
            sums[index] += value
    return sums


def throughput(plan: Plan, records: Sequence[CommitRecord]) -> Json:
    """Images per second in total, per worker and per GPU, the idle and warm-up time, and the time split."""
    when, images = activity(records), sum(record.rows for record in records)
    gpus = when.workers * float(plan.spec["workers"]["num_gpus"])
    started = datetime.datetime.fromisoformat(plan.created).timestamp()
    split: Counter[str] = Counter()
    by_worker: dict[str, Json] = {}
    for record in records:
        for name, seconds in record.seconds.items():
            split[name] += seconds  # type: ignore[assignment]
        row = by_worker.setdefault(record.worker, {"worker": record.worker, "shards": 0, "images": 0, "seconds": 0.0})
        row["shards"] += 1
        row["images"] += record.rows
        row["seconds"] += record.wall_seconds
    paid = when.workers * when.active_seconds
    split["other"] = max(0.0, when.worker_seconds - split.total())  # type: ignore[assignment]
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
        "by_worker": [{**row, "images_per_s": _ratio(row["images"], row["seconds"])} for row in by_worker.values()],
    }


def cost(plan: Plan, speed: Json, images: int) -> Json | None:
    """What the workers cost at the spec's price, warm-up and idle time included; None without a price."""
    price = plan.spec["workers"]["price_per_hour"]
    if price is None:
        return None
    hours = speed["workers"] * (speed["active_seconds"] + speed["warm_up_seconds"]) / 3600
    return {"price_per_hour": price, "worker_hours": hours, "per_1000_images": price * hours / images * 1000}


def acceptance(records: Sequence[CommitRecord]) -> Json | None:
    """Tested and accepted drafts: in total, by place in the block, and by token; None if nothing was drafted."""
    tested, accepted = (
        _sum_columns([getattr(record, f"{kind}_by_index") for record in records]) for kind in ("tested", "accepted")
    )
    if not sum(tested):
        return None
    tested_tokens, accepted_tokens = (
        _sum_columns([getattr(record, f"{kind}_by_token") for record in records]) for kind in ("tested", "accepted")
    )
    return {
        "tested": sum(tested),
        "accepted": sum(accepted),
        "rate": sum(accepted) / sum(tested),
        "by_index": [_ratio(a, n) for a, n in zip(accepted, tested, strict=True)],
        "tested_by_index": tested,
        "by_token": [_ratio(a, n) for a, n in zip(accepted_tokens, tested_tokens, strict=True)],
        "tested_by_token": tested_tokens,
    }


def counts(records: Sequence[CommitRecord]) -> Json:
    """Calls and rows of the networks: in total, per image and per token."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.counts)
    images = sum(record.rows for record in records)
    tokens = max((len(record.tested_by_token) for record in records), default=0)
    return {
        "total": dict(total),
        "per_image": {name: value / images for name, value in total.items()},
        "per_token": {name: value / (images * tokens) for name, value in total.items()} if tokens else {},
        "tokens_per_image": tokens,
        "tokens_per_round": _ratio(images * tokens, total["rounds"]),
    }


def certificate(records: Sequence[CommitRecord]) -> Json | None:
    """Mean of the images' certificates with a 95 % t-interval over the shards; None where no bound exists."""
    sums = [record.certificate_sum for record in records]
    if any(value is None for value in sums):
        return None
    images = sum(record.rows for record in records)
    mean = math.fsum(value for value in sums if value is not None) / images
    result: Json = {"mean": mean, "low": None, "high": None, "shards": len(records)}
    if len(records) > 1:
        # Of a ratio: shards may differ in size.
        spread = math.fsum((s - mean * r.rows) ** 2 for s, r in zip(sums, records, strict=True) if s is not None)
        error = math.sqrt(spread * len(records) / (len(records) - 1)) / images
        reach = float(t.ppf(0.975, len(records) - 1)) * error
        result |= {"low": max(0.0, mean - reach), "high": mean + reach}
    return result


def classes(plan: Plan, records: Sequence[CommitRecord]) -> list[Json]:
    """Images of each class, and how many of them a classifier sees as that class."""
    images = _sum_columns([record.images_by_label for record in records])
    seen = [record.agreeing_by_label for record in records]
    agreeing = _sum_columns([row for row in seen if row is not None])
    known = all(row is not None for row in seen)
    return [
        {
            "label": label,
            "name": name,
            "images": images[label] if label < len(images) else 0,
            "agreeing": (agreeing[label] if label < len(agreeing) else 0) if known else None,
        }
        for label, name in enumerate(plan.class_names)
    ]


def _features(store: Store, plan: Plan, records: Sequence[CommitRecord]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features float16 [n, D], labels int64 [n] and agreement bool [n] of the first `QUALITY_IMAGES` images."""
    features, labels, agrees = [], [], []
    have = 0
    for record in records:
        if have >= QUALITY_IMAGES:
            break
        column = pq.read_table(BufferReader(store.read(layout.features(record.shard, plan.shards))))["feature"]
        part = torch.from_numpy(column.combine_chunks().flatten().to_numpy().reshape(len(column), -1).copy())
        table = pq.read_table(
            BufferReader(store.read(layout.data(record.shard, plan.shards))), columns=["label", "label_agrees"]
        )
        features.append(part)
        labels += table["label"].to_pylist()
        agrees += table["label_agrees"].to_pylist()
        have += len(part)
    agree = None if any(value is None for value in agrees) else torch.tensor(agrees[:QUALITY_IMAGES])
    return torch.cat(features)[:QUALITY_IMAGES], torch.tensor(labels[:QUALITY_IMAGES]), agree


def quality(store: Store, plan: Plan, records: Sequence[CommitRecord]) -> Json:
    """Distances to the plan's reference and label agreement, or ``{"skipped": reason}``."""
    images, reference = sum(record.rows for record in records), plan.pair.reference
    if not plan.spec["features"]:
        return {"skipped": "the job wrote no image features (features: false)"}
    if not reference:
        return {"skipped": "the pair's card names no reference statistics"}
    if images < MIN_QUALITY_IMAGES:
        return {"skipped": f"{images} images are too few, at least {MIN_QUALITY_IMAGES} are needed"}
    from spd_core.quality.evaluate import evaluate  # loads what only this figure needs

    figures = evaluate(*_features(store, plan, records), reference)
    return figures.model_dump(mode="json")


def aggregate(store: Store, plan: Plan, records: dict[int, CommitRecord]) -> Json:
    """Everything the report shows except the images.

    Args:
        store: the output, for the feature files.
        plan: of the job.
        records: commit records by shard; fewer than planned give a partial report.

    Raises:
        StoreError: a feature file cannot be read.
    """
    ordered = [records[shard] for shard in sorted(records)]
    spec = plan.spec
    images = sum(record.rows for record in ordered)
    report: Json = {
        "version": 1,
        "made": _last_made(ordered) or plan.created,
        "spd": package_version("spd"),
        "name": spec["name"],
        "output": spec["output"],
        "partial": len(ordered) < plan.shards,
        "images": {"planned": plan.rows, "committed": images},
        "shards": {"planned": plan.shards, "committed": len(ordered)},
        "bytes": sum(file.bytes for record in ordered for file in record.files),
        "attempts": sum(record.attempt + 1 for record in ordered),
        "law": spec["law"],
        "method": spec["method"],
        "guarantee": plan.guarantee,
        "calibration": plan.calibration.model_dump(mode="json") if plan.calibration else None,
        "seed": spec["seed"],
        "pair": {**plan.pair.model_dump(), "sha256": plan.pair_sha256},
        "plan": plan.model_dump(mode="json", exclude={"calibration", "class_names", "pair", "pair_sha256", "spec"}),
        "spec": spec,
    }
    if not ordered:
        return report
    speed = throughput(plan, ordered)
    return report | {
        "throughput": speed,
        "cost": cost(plan, speed, images),
        "acceptance": acceptance(ordered),
        "counts": counts(ordered),
        "certificate": certificate(ordered),
        "classes": classes(plan, ordered),
        "quality": quality(store, plan, ordered),
    }
