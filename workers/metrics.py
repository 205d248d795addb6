"""The metrics of a job for Prometheus: the list of them, and what records them through Ray.

Names and units follow the conventions of Prometheus. Ray serves them on every node with ``ray_`` before the name and
labels of its own, of which ``NodeAddress`` and ``WorkerId`` (the process) are of use. It sends what was recorded every
10 seconds; a gauge that was not set for 20 is gone. Everything is counted by shard, nothing by token.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from workers.records import CommitRecord

EVERY_S = 5.0  #: between two looks at a worker, so that none of its gauges goes


class Kind(Enum):
    """What may be done with a metric: a counter only grows, so that its rate is asked for."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()  #: besides ``dataset``, the name of the job's dataset

    @property
    def exported(self) -> str:
        """Its name at Prometheus."""
        return f"ray_{self.name}"


# Of workers
IMAGES = Metric("spd_images_total", Kind.COUNTER, "Images committed.")
SHARDS_MADE = Metric("spd_shards_made_total", Kind.COUNTER, "Shards committed.")
BYTES = Metric("spd_written_bytes_total", Kind.COUNTER, "Bytes of committed files.")
DRAFTS_TESTED = Metric("spd_drafts_tested_total", Kind.COUNTER, "Drafts that the target model has tested.")
DRAFTS_ACCEPTED = Metric("spd_drafts_accepted_total", Kind.COUNTER, "Drafts that it has accepted.")
STAGE_SECONDS = Metric(
    "spd_stage_seconds_total",
    Kind.COUNTER,
    "Seconds of the workers by stage: decode, encode (summed over its threads), upload, waiting (no shard at hand).",
    ("stage",),
)
STORE_RETRIES = Metric("spd_store_retries_total", Kind.COUNTER, "Operations on the output that were tried once more.")
HOST_MEMORY = Metric("spd_worker_memory_bytes", Kind.GAUGE, "Memory that a worker's process holds.")
GPU_MEMORY = Metric("spd_gpu_memory_bytes", Kind.GAUGE, "Memory of its GPU that a worker holds, free blocks included.")

# Of the driver
SHARDS = Metric(
    "spd_shards", Kind.GAUGE, "Shards of the dataset by state: committed, in_flight, waiting for a worker.", ("state",)
)
DATASET_IMAGES = Metric(
    "spd_dataset_images", Kind.GAUGE, "Images of the dataset, by state: committed, left.", ("state",)
)
WORKERS = Metric("spd_workers", Kind.GAUGE, "Workers that are wanted, by state: up, missing.", ("state",))
SHARD_FAILURES = Metric("spd_shard_failures_total", Kind.COUNTER, "Attempts at a shard that ended in an error.")
SHARD_RETRIES = Metric(
    "spd_shard_retries_total",
    Kind.COUNTER,
    "Shards handed out once more, by reason: error, lost (the worker is), slow (an idle worker makes it too).",
    ("reason",),
)
WORKER_FAILURES = Metric(
    "spd_worker_failures_total", Kind.COUNTER, "Workers that were replaced, by reason: start, lost.", ("reason",)
)

METRICS = (
    IMAGES, SHARDS_MADE, BYTES, DRAFTS_TESTED, DRAFTS_ACCEPTED, STAGE_SECONDS, STORE_RETRIES, HOST_MEMORY, GPU_MEMORY,
    SHARDS, DATASET_IMAGES, WORKERS, SHARD_FAILURES, SHARD_RETRIES, WORKER_FAILURES,
)  # fmt: skip


class Meter:
    """Records metrics of this process; nothing where it is not connected to a Ray.

    Args:
        dataset: name of the job's dataset.
    """

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._instruments: dict[Metric, Any] = {}

    def add(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Lets a counter grow."""
        if amount > 0 and connected():
            self._instrument(metric).inc(float(amount), self._tags(labels))

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Sets a gauge."""
        if connected():
            self._instrument(metric).set(float(value), self._tags(labels))

    def add_shard(self, record: CommitRecord) -> None:
        """Counts a shard that this process has committed."""
        self.add(IMAGES, record.rows)
        self.add(SHARDS_MADE)
        self.add(BYTES, sum(file.bytes for file in record.files))
        self.add(DRAFTS_TESTED, record.counts.get("drafted", 0))
        self.add(DRAFTS_ACCEPTED, record.counts.get("accepted", 0))
        for stage, seconds in record.stages.items():
            self.add(STAGE_SECONDS, seconds, stage=stage)

    def watch(self, look: Callable[[], None]) -> None:
        """Calls every few seconds, in a thread that ends with the process, what records the state of it."""
        if connected():
            threading.Thread(target=_repeat, args=(look,), name="metrics", daemon=True).start()

    def _tags(self, labels: dict[str, str]) -> dict[str, str]:
        return {"dataset": self._dataset, **labels}

    def _instrument(self, metric: Metric) -> Any:
        if metric not in self._instruments:
            from ray.util import metrics

            made: Any = {Kind.COUNTER: metrics.Counter, Kind.GAUGE: metrics.Gauge}[metric.kind]
            self._instruments[metric] = made(metric.name, metric.help, ("dataset", *metric.labels))
        return self._instruments[metric]


def connected() -> bool:
    """Whether this process has a Ray to tell."""
    import ray  # not at the top: the list is of use without it

    return bool(ray.is_initialized())


class Waiting:
    """Time in which a worker has no shard at hand; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards = 0
        self._since = time.monotonic()
        self._seconds = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._count()
            self._shards += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._shards -= 1
            self._since = time.monotonic()

    def _count(self) -> None:
        if not self._shards:
            now = time.monotonic()
            self._seconds += now - self._since
            self._since = now

    def taken(self) -> float:
        """Seconds since the last time this was asked."""
        with self._lock:
            self._count()
            seconds, self._seconds = self._seconds, 0.0
        return seconds


def _repeat(look: Callable[[], None]) -> None:
    while True:
        look()
        time.sleep(EVERY_S)
