"""What the Parquet files of one shard must say, checked against the plan, the commit record and each other."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jobs.job.plan import Plan
from spd_core.accept.certificate import image_certificates, log_weights
from spd_core.law import Guarantee
from workers import layout
from workers.encode import decode_image
from workers.parquet import acceptance_schema, data_schema, features_schema, read_table
from workers.records import CommitRecord, ShardTask

#: float32 columns are summed in another order than where they were made.
_CERTIFICATE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class ShardFiles:
    """One shard as read back."""

    plan: Plan
    task: ShardTask
    record: CommitRecord
    blobs: dict[str, bytes]  #: bytes by path of the files the record lists, hashes checked
    shape: tuple[int, int, int] | None  #: of the images; None: unknown, then the first image's

    @property
    def data_path(self) -> str:
        return layout.data(self.record.shard, self.plan.shards, self.record.generation)

    @property
    def acceptance_path(self) -> str:
        return layout.acceptance(self.record.shard, self.plan.shards, self.record.generation)

    @property
    def features_path(self) -> str:
        return layout.features(self.record.shard, self.plan.shards, self.record.generation)


def part_problems(files: ShardFiles) -> list[str]:
    """What is wrong inside the files of a shard whose bytes are those committed, each problem led by a path."""
    schemas = {
        files.data_path: data_schema(files.plan.class_names),
        files.acceptance_path: acceptance_schema(),
        files.features_path: features_schema(),
    }
    tables: dict[str, pa.Table] = {}
    problems = []
    for file in files.record.files:
        try:
            table = tables[file.path] = read_table(files.blobs[file.path])
        except ValueError as error:
            problems.append(f"{file.path}: {error}")
            continue
        schema = schemas[file.path]
        # Without check_metadata: Parquet itself renames the items of a list.
        if not table.schema.equals(schema) or table.schema.metadata != schema.metadata:
            problems.append(f"{file.path}: has another schema")
        elif table.num_rows != file.rows:
            problems.append(f"{file.path}: {table.num_rows} rows, committed: {file.rows}")
    if problems:
        return problems
    data, acceptance = tables[files.data_path], tables[files.acceptance_path]
    problems += [f"{files.data_path}: {problem}" for problem in _data_problems(files, data)]
    problems += [f"{files.acceptance_path}: {problem}" for problem in _acceptance_problems(files, data, acceptance)]
    if files.features_path in tables:
        problems += [f"{files.features_path}: {p}" for p in _features_problems(files, tables[files.features_path])]
    return problems


def _data_problems(files: ShardFiles, data: pa.Table) -> list[str]:
    task, record = files.task, files.record
    columns = {
        "request_id": task.request_ids,
        "label": task.labels,
        "seed": task.seeds,
        "guarantee": (files.plan.guarantee,) * record.rows,
    }
    problems = [
        f"column {name} is not the plan's"
        for name, planned in columns.items()
        if data[name].to_pylist() != list(planned)
    ]
    agrees = data["label_agrees"].to_pylist()
    if record.agreeing_by_label is None:
        agree_fits = data["label_agrees"].null_count == record.rows
    else:
        seen = Counter(label for label, agree in zip(task.labels, agrees, strict=True) if agree)
        agree_fits = None not in agrees and _as_counts(record.agreeing_by_label) == seen
    if not agree_fits:
        problems.append("column label_agrees is not the commit record's")
    if _as_counts(record.images_by_label) != Counter(task.labels):
        problems.append("labels are not those the commit record counts")
    if sum(data["rounds"].to_pylist()) != record.counts.get("rounds"):
        problems.append("column rounds is not the commit record's")
    return problems + _image_problems(files, data)


def _as_counts(by_index: tuple[int, ...]) -> Counter[int]:
    return Counter({index: count for index, count in enumerate(by_index) if count})


def _image_problems(files: ShardFiles, data: pa.Table) -> list[str]:
    shape = files.shape
    problems = []
    for name, image in zip(files.task.request_ids, data["image"].to_pylist(), strict=True):
        try:
            pixels = decode_image(image["bytes"], channels=shape[2] if shape else 3)
        except ValueError as error:
            problems.append(f"image {name}: {error}")
            continue
        shape = shape or pixels.shape
        if pixels.shape != shape:
            problems.append(f"image {name} is {list(pixels.shape)}, planned: {list(shape)}")
    return problems


def _acceptance_problems(files: ShardFiles, data: pa.Table, acceptance: pa.Table) -> list[str]:
    record = files.record
    drafted: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    for name, was_accepted in zip(*(acceptance[name].to_pylist() for name in ("request_id", "accepted")), strict=True):
        drafted[name] += 1
        accepted[name] += was_accepted
    problems = [f"request {name} is not of this shard" for name in sorted(set(drafted) - set(files.task.request_ids))]
    rows = (data[name].to_pylist() for name in ("request_id", "drafted", "accepted"))
    for name, *counted in zip(*rows, strict=True):
        if counted != [drafted[name], accepted[name]]:
            problems.append(
                f"request {name} has drafted, accepted {drafted[name]}, {accepted[name]}, its image: {counted}"
            )
    problems += _certificate_problems(files, data, acceptance)
    for column, tested_name, accepted_name in (
        ("draft_index", "tested_by_index", "accepted_by_index"),
        ("token", "tested_by_token", "accepted_by_token"),
    ):
        values, was = acceptance[column].to_numpy(), acceptance["accepted"].to_numpy()
        for name, chosen in ((tested_name, values), (accepted_name, values[was.astype(bool)])):
            if _as_counts(getattr(record, name)) != Counter(chosen.tolist()):
                problems.append(f"column {column} is not the commit record's {name}")
    return problems


def _certificate_problems(files: ShardFiles, data: pa.Table, acceptance: pa.Table) -> list[str]:
    """Certificates of images that do not follow from their drafts, and sums that are not the commit record's."""
    record, index = files.record, {name: row for row, name in enumerate(files.task.request_ids)}
    of_this_shard = [name in index for name in acceptance["request_id"].to_pylist()]
    image = np.array([index.get(name, 0) for name in acceptance["request_id"].to_pylist()], dtype=np.int64)
    log_ratio, excess = (acceptance[name].to_numpy().astype(np.float64) for name in ("log_ratio", "excess"))
    weights = log_weights(log_ratio, acceptance["accepted"].to_numpy().astype(bool), excess)
    expected = image_certificates(image, np.where(of_this_shard, weights, 0.0), len(index))
    if files.plan.guarantee not in (Guarantee.EXACT, Guarantee.TV):
        expected = np.full(len(index), np.nan)
    stored = data["certificate"].to_numpy().astype(np.float64)
    problems = [
        f"request {name} has certificate {follows:.6g} by its drafts, its image's: {certificate:.6g}"
        for name, follows, certificate in zip(files.task.request_ids, expected, stored, strict=True)
        if not _same(follows, certificate)
    ]
    sums = {
        "certificate_sum": expected.sum(),
        "certificate_square_sum": np.square(expected).sum(),
        "excess_sum": excess.sum() if not np.isnan(expected).any() else math.nan,
    }
    problems += [
        f"the commit record's {name} is {getattr(record, name)}, by the drafts: {value:.6g}"
        for name, value in sums.items()
        # A record of an earlier version does not have all of them.
        if getattr(record, name) is not None and not _same(getattr(record, name), value)
    ]
    return problems


def _same(one: float, other: float) -> bool:
    both = math.isnan(one) and math.isnan(other)
    return both or math.isclose(one, other, rel_tol=_CERTIFICATE_TOLERANCE, abs_tol=_CERTIFICATE_TOLERANCE)


def _features_problems(files: ShardFiles, features: pa.Table) -> list[str]:
    problems = []
    if features["request_id"].to_pylist() != list(files.task.request_ids):
        problems.append("column request_id is not the plan's")
    values = features["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if not np.isfinite(values.astype(np.float32)).all():
        problems.append("a feature is not finite")
    return problems
