"""The commit records of a job added up, one at a time: what figures need of them, a few numbers a shard."""

from __future__ import annotations

import datetime
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workers.records import CommitRecord

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Activity:
    """When the workers of a job worked; times without any worker, as between two runs, are left out."""

    first: float  #: start of the first shard, seconds since 1970
    last: float  #: end of the last one
    active_seconds: float  #: with at least one worker at work
    worker_seconds: float  #: at work, summed over the workers
    by_worker: dict[str, float]  #: the same by worker; shards that overlap in one count once
    reach: dict[str, tuple[float, float]]  #: by worker: start of its first shard, end of its last one
    slowest_shard: dict[str, float]  #: by worker: seconds
    workers: int  #: most at work at one moment


def _floats() -> array[float]:
    return array("d")


@dataclass
class Totals:
    """Sums over commit records; the same records in the same order give the same sums to the last bit."""

    shards: int = 0
    images: int = 0
    bytes: int = 0
    attempts: int = 0
    platforms: Counter[str] = field(default_factory=Counter)  #: images by platform; "": not recorded
    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    workers: dict[str, dict[str, int]] = field(default_factory=dict)  #: shards and images by worker
    memory: dict[str, int] = field(default_factory=dict)  #: most bytes that a worker's process held: host, device
    tested_by_index: list[int] = field(default_factory=list)
    accepted_by_index: list[int] = field(default_factory=list)
    tested_by_token: list[int] = field(default_factory=list)
    accepted_by_token: list[int] = field(default_factory=list)
    images_by_label: list[int] = field(default_factory=list)
    agreeing_by_label: list[int] | None = field(default_factory=list)  #: None: not every shard says
    starts: array[float] = field(default_factory=_floats)  #: of each shard, seconds since 1970
    ends: array[float] = field(default_factory=_floats)
    makers: array[int] = field(default_factory=lambda: array("q"))  #: of each shard, place of its worker
    places: dict[str, int] = field(default_factory=dict)  #: of each worker, in the order of `workers`
    rows: array[float] = field(default_factory=_floats)  #: of each shard
    certificate_sum: float = 0.0  #: of the images; NaN where no bound exists
    certificate_square_sum: float = 0.0
    excess_sum: float = 0.0

    @staticmethod
    def of(records: Iterable[CommitRecord]) -> Totals:
        """Totals of some records."""
        totals = Totals()
        for record in records:
            totals.add(record)
        return totals

    def add(self, record: CommitRecord) -> None:
        """Takes in one record."""
        self.shards += 1
        self.images += record.rows
        self.bytes += sum(file.bytes for file in record.files)
        self.attempts += record.attempt + 1
        self.platforms[record.platform] += record.rows
        self.counts.update(record.counts)
        for name, seconds in record.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        worker = self.workers.setdefault(record.worker, {"shards": 0, "images": 0})
        worker["shards"] += 1
        worker["images"] += record.rows
        for name, held in record.memory.items():
            self.memory[name] = max(self.memory.get(name, 0), held)
        for name in ("tested_by_index", "accepted_by_index", "tested_by_token", "accepted_by_token", "images_by_label"):
            _add_columns(getattr(self, name), getattr(record, name))
        if record.agreeing_by_label is None or self.agreeing_by_label is None:
            self.agreeing_by_label = None
        else:
            _add_columns(self.agreeing_by_label, record.agreeing_by_label)
        start = datetime.datetime.fromisoformat(record.started).timestamp()
        self.starts.append(start)
        self.ends.append(start + record.wall_seconds)
        self.makers.append(self.places.setdefault(record.worker, len(self.places)))
        self.rows.append(record.rows)
        if record.certificate_sum is None or record.certificate_square_sum is None or record.excess_sum is None:
            self.certificate_sum = math.nan
        else:
            self.certificate_sum += record.certificate_sum
            self.certificate_square_sum += record.certificate_square_sum
            self.excess_sum += record.excess_sum

    def activity(self) -> Activity:
        """Of at least one shard, from start times and wall seconds alone."""
        starts, ends, makers = np.array(self.starts), np.array(self.ends), np.array(self.makers)
        spans = [_merged(starts[makers == place], ends[makers == place]) for place in range(len(self.workers))]
        slowest = [float((ends - starts)[makers == place].max()) for place in range(len(self.workers))]
        starts, ends = (np.concatenate(side) for side in zip(*spans, strict=True))
        at = np.concatenate([starts, ends])
        change = np.repeat([1, -1], len(starts))
        # At equal times an end comes before a start: one worker's next shard is no second worker.
        order = np.lexsort((change, at))
        at, running = at[order], np.cumsum(change[order])
        active = np.diff(at)[running[:-1] > 0].sum()
        seconds = [float((end - start).sum()) for start, end in spans]
        return Activity(
            float(at[0]),
            float(at[-1]),
            float(active),
            math.fsum(seconds),
            dict(zip(self.workers, seconds, strict=True)),
            {name: (float(start[0]), float(end[-1])) for name, (start, end) in zip(self.workers, spans, strict=True)},
            dict(zip(self.workers, slowest, strict=True)),
            int(running.max(initial=1)),
        )


def _merged(starts: Floats, ends: Floats) -> tuple[Floats, Floats]:
    """Starts and ends of the union of intervals, ascending."""
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(ends[order])
    apart = starts[1:] > reach[:-1]
    return starts[np.concatenate([[True], apart])], reach[np.concatenate([apart, [True]])]


def _add_columns(sums: list[int], row: Sequence[int]) -> None:
    """Adds a row to sums that grow to its length."""
    sums.extend([0] * (len(row) - len(sums)))
    for index, value in enumerate(row):
        sums[index] += value
