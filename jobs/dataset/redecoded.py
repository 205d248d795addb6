"""Batch invariance: whether images depend on what was decoded with them, and where.

A sample of a dataset's requests is decoded again, at another batch size and in other company, and held against the
committed bytes. What came of it is kept beside the dataset, and report and card tell it.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pyarrow import BufferReader
from pydantic import Field, ValidationError

from jobs.dataset.commits import Kept, read_part
from jobs.job.plan import Plan, utc_now
from jobs.job.requests import Tasks
from spd_core.law import Settings
from workers import layout
from workers.encode import decode_image
from workers.records import ShardTask
from workers.sealed import canonical_json, seal, unseal
from workers.shard import read_commit
from workers.store import Store

_VERSION = 1
_LISTED = 20  #: ids of differing images that are kept, at most


class Redecoded(Settings):
    """What became of the images that were decoded again."""

    version: int = _VERSION
    images: int = Field(description="decoded again")
    equal: int = Field(description="of them with the committed bytes")
    largest_difference: int = Field(description="of a pixel of the others, of 255")
    differing_share: float = Field(description="share of all pixels that differ")
    differing: tuple[str, ...] = Field(description="request ids of the first images that differ")
    batch: int = Field(description="of the job")
    again_batch: int
    elsewhere: int = Field(description="images decoded again on another machine than they were made on")
    platforms: tuple[str, ...] = Field(description="that the images were made on; empty: not recorded")
    again_platforms: tuple[str, ...]
    made: str = Field(description="UTC")
    data: str = Field(description="hash over the data files of the images")
    sha256: str = Field("", description="over the record without this field, see `workers.sealed`")


@dataclass(frozen=True)
class Sampled:
    """An image that is decoded again."""

    task: ShardTask  #: of this request alone
    stored: bytes
    host: str  #: of the worker that made it
    platform: str


def sampled_rows(plan: Plan, images: int) -> dict[int, list[int]]:
    """Rows within their shard, ascending, of images drawn from the dataset, by shard: the same for the same plan."""
    drawn = random.Random(plan.fingerprint).sample(range(plan.rows), min(images, plan.rows))
    rows: dict[int, list[int]] = defaultdict(list)
    for index in sorted(drawn):
        rows[index // plan.spec.shard_size].append(index % plan.spec.shard_size)
    return rows


def read_sampled(store: Store, plan: Plan, records: Mapping[int, Kept], images: int) -> list[Sampled]:
    """The drawn images as they are committed, with their requests.

    Args:
        store: the output.
        plan: of the job.
        records: of its shards.
        images: to draw, at most.

    Raises:
        DamagedPart: a file is gone or not what was committed.
        StoreError: the store cannot be read, or the copied requests are damaged.
    """
    tasks, found = Tasks(store, plan), []
    for shard, rows in sampled_rows(plan, images).items():
        kept = records[shard]
        stored = pq.read_table(BufferReader(read_part(store, kept, layout.DATA)), columns=["image"])[
            "image"
        ].to_pylist()
        task, commit = tasks.task(shard, 0), read_commit(store, shard)
        host, platform = (host_of(commit.worker), commit.platform) if commit else ("", "")
        for row in rows:
            one = {name: (getattr(task, name)[row],) for name in ("request_ids", "labels", "seeds")}
            found.append(Sampled(task.model_copy(update=one), stored[row]["bytes"], host, platform))
    return found


def host_of(worker: str) -> str:
    """The host in a worker's name, see `workers.shard.worker_name`."""
    return worker.rpartition("-")[0]


def joined(sampled: Sequence[Sampled]) -> ShardTask:
    """One task of several images' requests."""
    every = {
        name: tuple(value for one in sampled for value in getattr(one.task, name))
        for name in ("request_ids", "labels", "seeds")
    }
    return sampled[0].task.model_copy(update=every)


@dataclass(frozen=True)
class Again:
    """A worker that decodes again."""

    name: str
    platform: str
    images: Callable[[ShardTask], Sequence[bytes]]


def redecode(
    plan: Plan, sampled: Sequence[Sampled], again_batch: int, workers: Sequence[Again], data: str
) -> Redecoded:
    """Decodes images again and holds them against the committed ones.

    Args:
        plan: of the job.
        sampled: the images; each goes to the first worker of another host than its own, if there is one.
        again_batch: the batch size that the workers decode at.
        workers: at least one.
        data: hash over the data files of the images.
    """
    shares: dict[int, list[Sampled]] = defaultdict(list)
    for one in sampled:
        others = (place for place, worker in enumerate(workers) if host_of(worker.name) != one.host)
        shares[next(others, 0)].append(one)
    differences: dict[str, np.ndarray[Any, np.dtype[np.uint8]]] = {}
    equal = pixels = 0
    for place, share in shares.items():
        for one, made in zip(share, workers[place].images(joined(share)), strict=True):
            apart = _difference(one.stored, made)
            pixels += apart.size
            if made == one.stored:
                equal += 1
            else:
                differences[one.task.request_ids[0]] = apart
    return Redecoded(
        images=len(sampled),
        equal=equal,
        largest_difference=max((int(apart.max()) for apart in differences.values()), default=0),
        differing_share=sum(np.count_nonzero(apart) for apart in differences.values()) / max(1, pixels),
        differing=tuple(sorted(differences)[:_LISTED]),
        batch=plan.spec.batch,
        again_batch=again_batch,
        elsewhere=sum(host_of(workers[place].name) != one.host for place, share in shares.items() for one in share),
        platforms=tuple(sorted({one.platform for one in sampled} - {""})),
        again_platforms=tuple(sorted({workers[place].platform for place in shares})),
        made=utc_now(),
        data=data,
    )


def _difference(stored: bytes, made: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """How far the pixels of two encoded images lie apart [H, W, 3]."""
    one, other = (decode_image(raw, channels=3).astype(np.int16) for raw in (stored, made))
    return np.abs(one - other).astype(np.uint8)


def data_digest(plan: Plan, records: Mapping[int, Kept], images: int) -> str:
    """Hash over the data files that the drawn images are in: a shard that is made again has another."""
    shards = sampled_rows(plan, images)
    return hashlib.sha256(b"".join(records[shard].digests[0] for shard in shards if shard in records)).hexdigest()


def keep_redecoded(store: Store, found: Redecoded) -> None:
    """Keeps what came of it for reports to show."""
    store.replace(layout.REDECODED, canonical_json(seal(found.model_dump(mode="json"))))


def kept_redecoded(store: Store, plan: Plan, shards: Sequence[Kept]) -> Redecoded | None:
    """What is kept, if it is of these shards; None: nothing, or nothing that can be believed.

    Raises:
        StoreError: the store cannot be read.
    """
    try:
        found = Redecoded.model_validate(unseal(store.read(layout.REDECODED)))
    except (FileNotFoundError, ValueError, ValidationError):
        return None
    records = {kept.shard: kept for kept in shards}
    return found if found.version == _VERSION and found.data == data_digest(plan, records, found.images) else None


def redecoded_json(store: Store, plan: Plan, shards: Sequence[Kept]) -> dict[str, Any] | None:
    """For the report."""
    found = kept_redecoded(store, plan, shards) if store.exists(layout.REDECODED) else None
    return found.model_dump(mode="json", exclude={"version", "data", "sha256"}) if found else None
