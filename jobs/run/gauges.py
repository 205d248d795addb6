"""What the driver records for Prometheus: how far the dataset is, the workers, and what went wrong."""

from __future__ import annotations

import time
from collections.abc import Collection

from jobs.job.plan import Plan
from workers.metrics import DATASET_IMAGES, SHARDS, STORE_RETRIES, WORKERS, Meter, Metric
from workers.store import Store

_EVERY_S = 1.0  #: between two records; the driver may take in a thousand shards in that time


class Gauges:
    """The driver's metrics.

    Args:
        meter: of this process.
        store: the output.
        plan: of the job.
    """

    def __init__(self, meter: Meter, store: Store, plan: Plan) -> None:
        self._meter, self._store, self._plan = meter, store, plan
        self._workers_set = self._shards_set = -_EVERY_S
        self._retries = store.retries  # that are counted

    def set_workers(self, up: int, wanted: int) -> None:
        """Workers that are up, and those that are wanted in all."""
        if (now := time.monotonic()) - self._workers_set < _EVERY_S:
            return
        self._workers_set = now
        self._meter.set(WORKERS, up, state="up")
        self._meter.set(WORKERS, max(0, wanted - up), state="missing")
        retries = self._store.retries
        self._meter.add(STORE_RETRIES, retries - self._retries)
        self._retries = retries

    def set_shards(self, missing: Collection[int], in_flight: int) -> None:
        """Shards without a commit, and how many of them are being made."""
        if (now := time.monotonic()) - self._shards_set < _EVERY_S:
            return
        self._shards_set = now
        size, last = self._plan.spec.shard_size, self._plan.shards - 1
        left = size * len(missing) - (size - len(self._plan.rows_of(last))) * (last in missing)
        self._meter.set(SHARDS, self._plan.shards - len(missing), state="committed")
        self._meter.set(SHARDS, min(in_flight, len(missing)), state="in_flight")
        self._meter.set(SHARDS, max(0, len(missing) - in_flight), state="waiting")
        self._meter.set(DATASET_IMAGES, self._plan.rows - left, state="committed")
        self._meter.set(DATASET_IMAGES, left, state="left")

    def count(self, metric: Metric, reason: str = "", amount: int = 1) -> None:
        """Something went wrong, or is done once more."""
        self._meter.add(metric, amount, **({"reason": reason} if reason else {}))
