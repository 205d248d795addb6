"""One night's record: what a finished dataset and its control have cost and been worth, as one sealed Parquet row."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from jobs.dataset.aggregate import Json
from jobs.dataset.commits import Kept
from jobs.dataset.manifest import read_finished
from jobs.job.figures import FIGURES
from jobs.job.plan import Plan, read_plan, utc_now
from jobs.words.errors import SpecError
from spd_core.law import Settings
from workers import layout
from workers.redact import public_url
from workers.sealed import SEAL, UnknownVersion, canonical_json, check_version, seal
from workers.store import Store

#: Of records. A record of a later version is named and not judged.
VERSION = 1
_FIGURE = "figure."
#: Columns that are text by themselves; lists and mappings are JSON.
_TEXTS = ("made", "name", "output", "fingerprint", "content", "commit", "machine", "device", "created", SEAL)
_NORMAL_95 = 1.959964


class Control(Settings):
    """Plain decoding and the job's method, in turns on one worker in the same night."""

    method: tuple[float, ...] = Field(description="images/s of each turn")
    plain: tuple[float, ...]
    method_cpu: float = Field(description="CPU seconds per image of the worker's process")
    plain_cpu: float
    images: int = Field(description="of a turn")
    load: float = Field(description="of the machine, over the last minute")
    device: str
    machine: str

    @property
    def logs(self) -> list[float]:
        """Logarithm of the method's speed over plain's, of each pair of turns."""
        return [math.log(one / other) for one, other in zip(self.method, self.plain, strict=True)]


class Night(Settings):
    """What stays of a night."""

    version: int = VERSION
    night: datetime.date
    made: str = Field(description="when the record was made, UTC")
    name: str
    output: str
    fingerprint: str = Field(description="of the plan: everything that decides a byte")
    platforms: tuple[str, ...] = Field(description="equal ones make equal bytes of a fingerprint")
    content: str = Field(description="sha256 over the sha256 of every file of the dataset's rows")
    created: str = Field(description="when the plan was made: two nights that recorded one dataset agree in it")
    commit: str = Field(description="of the program's repository; empty: not known")
    versions: dict[str, str]
    machine: str = Field(description="of the driver")
    device: str = Field(description="of the control's worker; empty: there was no control")
    spec: dict[str, Any] = Field(description="as the plan holds it")
    quality_n: int = Field(description="images behind the distances; only equal numbers compare")
    figures: dict[str, float] = Field(description="by name, see `jobs.job.figures`")
    errors: dict[str, float] = Field(description="relative standard errors of figures that have one")
    accepted_by_place: tuple[float | None, ...] = Field(description="share of the drafts, by place in the block")
    counts: dict[str, int] = Field(description="calls and rows of the networks, rounds, drafted, accepted")
    seconds: dict[str, float] = Field(description="of the workers' time, by span")
    control: Control | None = None
    sha256: str = Field("", description="over the record without this field, see `workers.sealed`")

    def sealed(self) -> Night:
        """The record with its seal."""
        return Night.model_validate(seal(self.model_dump(mode="json")))

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """Nights that agree in it have made the same bytes, or the program has changed."""
        return self.fingerprint, self.platforms


def commit_of_program() -> str:
    """``SPD_COMMIT``, or the commit of the checkout the program runs from, with ``+`` if files differ; else nothing."""
    folder = Path(__file__).parent
    if told := os.environ.get("SPD_COMMIT"):
        return told
    try:
        asked = ("git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+")
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _content(shards: Sequence[Kept]) -> str:
    digest = hashlib.sha256()
    for kept in shards:
        for one in kept.digests:
            digest.update(one)
    return digest.hexdigest()


def _relative_error(value: float | None, bounds: Sequence[float] | None) -> float | None:
    return (bounds[1] - bounds[0]) / (2 * _NORMAL_95) / abs(value) if value and bounds else None


def _figures(report: Json, control: Control | None) -> dict[str, float | None]:
    """By name; None where the job has no such figure."""
    speed, paid, quality = report["throughput"], report["cost"] or {}, report["quality"]
    images, tokens = report["images"]["committed"], report["counts"]["tokens_per_image"]
    total = report["counts"]["total"]

    def per_token(name: str) -> float | None:
        return total[name] / (images * tokens) if tokens and name in total else None

    found: dict[str, float | None] = {
        "acceptance": (report["acceptance"] or {}).get("rate"),
        "rounds_per_image": total.get("rounds", 0) / images,
        "tokens_per_round": report["counts"]["tokens_per_round"],
        "target_calls_per_token": per_token("target_context_calls"),
        "draft_calls_per_token": per_token("draft_context_calls"),
        "certificate": (report["certificate"] or {}).get("mean"),
        **{name: quality.get(name) for name in ("frechet", "kid", "label_agreement")},
        **{name: speed[name] for name in ("images_per_s", "images_per_s_per_worker", "images_per_s_per_gpu")},
        **{name: speed[name] for name in ("worker_seconds", "idle_share", "warm_up_seconds")},
        "cost_per_1000": paid.get("per_1000_images"),
        "cost": paid["price_per_hour"] * paid["worker_hours"] if paid else None,
        "bytes_per_image": report["bytes"] / images,
        "retries": report["attempts"] - report["shards"]["committed"],
        "images": images,
    }
    return found | (_of_control(control) if control else {})


def _of_control(control: Control) -> dict[str, float | None]:
    return {
        # The median of an even number of turns is geometric: a ratio and its inverse give the same.
        "speed_over_plain": math.exp(_median(control.logs)),
        "decoding_images_per_s": _median(control.method),
        "plain_images_per_s": _median(control.plain),
        "cpu_over_plain": control.method_cpu / control.plain_cpu if control.plain_cpu else None,
        "cpu_seconds_per_image": control.method_cpu,
        "load": control.load,
    }


def _median(values: Sequence[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _errors(report: Json, control: Control | None) -> dict[str, float]:
    quality = report["quality"]
    found = {
        name: _relative_error(quality.get(name), quality.get(f"{name}_interval"))
        for name in ("frechet", "kid", "label_agreement")
    }
    if control is not None and len(control.logs) > 1:
        middle = sum(control.logs) / len(control.logs)
        spread = math.sqrt(sum((one - middle) ** 2 for one in control.logs) / (len(control.logs) - 1))
        found["speed_over_plain"] = spread / math.sqrt(len(control.logs))
    return {name: value for name, value in found.items() if value is not None}


def night_of(
    url: str, night: datetime.date, storage_options: dict[str, Any] | None = None, control: Control | None = None
) -> Night:
    """The record of a finished dataset.

    Time and cost are sums over the commit records of the dataset, each shard once however many runs it took: a resume
    adds its own shards alone, and what a lost attempt spent is in none of them.

    Raises:
        SpecError: there is no dataset, or it is not finished, or damaged.
        StoreError: it cannot be read.
    """
    store = Store(url, storage_options)
    plan = read_plan(store)
    shards = read_finished(store, plan)
    try:
        report = json.loads(store.read(layout.REPORT_JSON))
        return _night(plan, report, shards, night, control)
    except (KeyError, TypeError, AttributeError, RecursionError, ValidationError, json.JSONDecodeError) as error:
        # The manifest lists it, so that another version of the program wrote it.
        raise SpecError(
            f"output: {public_url(url)}/{layout.REPORT_JSON} lacks what this version of spd reads, allowed: one that "
            "`spd report` has made anew"
        ) from error


def _night(plan: Plan, report: Json, shards: Sequence[Kept], night: datetime.date, control: Control | None) -> Night:
    figures = {name: value for name, value in _figures(report, control).items() if value is not None}
    unknown = figures.keys() - FIGURES.keys()
    if unknown:
        raise ValueError(f"figures: got {sorted(unknown)}, allowed: those of jobs.job.figures")
    return Night(
        night=night,
        made=utc_now(),
        name=plan.spec.name,
        output=plan.spec.output,
        fingerprint=plan.fingerprint,
        platforms=tuple(sorted(report["platforms"])),
        content=_content(shards),
        created=plan.created,
        commit=commit_of_program(),
        versions=plan.versions,
        machine=plan.machine,
        device=control.device if control else "",
        spec=plan.stored_spec,
        quality_n=report["quality"].get("n", 0),
        figures={name: float(value) for name, value in figures.items()},
        errors=_errors(report, control),
        accepted_by_place=tuple((report["acceptance"] or {}).get("by_index", ())),
        counts=report["counts"]["total"],
        seconds=report["throughput"]["seconds"],
        control=control,
    ).sealed()


def night_to_bytes(record: Night) -> bytes:
    """A Parquet file of one row: a column for each figure, so that any reader of tables can plot a folder of them."""
    dump = record.model_dump(mode="json")
    figures = dump.pop("figures")
    columns: dict[str, pa.Array] = {
        "night": pa.array([record.night], pa.date32()),
        "version": pa.array([record.version], pa.int32()),
        "quality_n": pa.array([record.quality_n], pa.int64()),
        **{name: pa.array([dump[name]], pa.string()) for name in _TEXTS},
        **{f"{_FIGURE}{name}": pa.array([value], pa.float64()) for name, value in sorted(figures.items())},
    }
    columns |= {name: pa.array([json.dumps(dump[name])], pa.string()) for name in dump if name not in columns}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def night_from_bytes(raw: bytes, path: str) -> Night:
    """A record as it was stored.

    Raises:
        ValueError: it is damaged; the message leads with its path.
        UnknownVersion: a later program wrote it.
    """
    try:
        record = _night_of_row(_only_row(raw), path)
        dump = record.model_dump(mode="json")
        sealed = seal(dump) == dump and bool(dump[SEAL])
    except UnknownVersion:
        raise
    except (pa.ArrowException, ArithmeticError, OSError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is no record of a night") from error
    if not sealed:
        raise ValueError(f"{path}: does not match its seal")
    return record


def _only_row(raw: bytes) -> dict[str, Any]:
    table = pq.read_table(pa.BufferReader(raw))
    if table.num_rows != 1:
        raise ValueError(f"has {table.num_rows} rows")
    (row,) = table.to_pylist()
    return dict(row)


def _night_of_row(row: dict[str, Any], path: str) -> Night:
    version = row.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"version is {version!r}")  # which no program writes, so it is damage and not a later one
    check_version(row, path, VERSION)
    figures = {name.removeprefix(_FIGURE): value for name, value in row.items() if name.startswith(_FIGURE)}
    plain = {"night", "version", "quality_n", *_TEXTS}
    rest = {
        name: value if name in plain else json.loads(value)
        for name, value in row.items()
        if not name.startswith(_FIGURE)
    }
    return Night.model_validate({**rest, "figures": figures})


def summary(record: Night) -> Json:
    """For JSON: the record without what only proves it."""
    content: Json = json.loads(canonical_json(record.model_dump(mode="json")))
    return content
