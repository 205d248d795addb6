"""How far a job is, from the store alone: no driver needs to be alive, and none is asked."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from jobs.dataset.commits import Committed, find_missing, read_committed
from jobs.dataset.manifest import check_manifest
from jobs.dataset.presence import BEAT_S, WATCH_S, Mark, read_mark
from jobs.dataset.totals import Totals
from jobs.job.plan import read_plan
from jobs.words.progress import duration, time_left
from spd_core.law import Settings
from workers import layout
from workers.redact import public_url
from workers.store import Store

#: What "lately" is: a minute.
RECENT_S = 60.0
ASK_AGAIN = "; ask again in a minute"
_NEWEST = 16  #: shards that tell how long one takes


class Status(Settings):
    """State of an output."""

    output: str
    shards: int = Field(description="planned")
    committed: int = Field(description="shards with a commit record")
    damaged: tuple[str, ...] = Field(description="records that cannot be read, files that are gone or of another size")
    rows: int = Field(description="images planned")
    committed_rows: int
    again: int = Field(0, description="shards that were closed and have to be made again")
    images_per_s: float = Field(description="over the time in which workers were at work; 0: nothing is committed")
    recent_per_s: float = Field(0.0, description="images committed per second over the last recent_s")
    recent_s: float = Field(RECENT_S, description=f"{RECENT_S:.0f} s, or longer where shards take longer")
    since_last_s: float | None = Field(description="since the last commit; None: nothing is committed")
    finished: bool = Field(description=f"{layout.SUCCESS} lists every shard as it stands now, and the documents")
    unfinished: str = Field("", description=f"what is wrong with a {layout.SUCCESS} that is there")
    driver: Mark | None = Field(description="the last driver that did not end in order, or the one at work; None: none")

    @property
    def state(self) -> str:
        """How far the store tells: finished, running, perhaps running, killed, never started or stopped.

        A driver shows itself every `BEAT_S`. One that is late may be held up by its store or be dead.
        """
        if self.finished:
            return "finished"
        if self.driver is not None:
            age = self.driver.age_s
            return "running" if age < BEAT_S else "perhaps running" if age < WATCH_S else "killed"
        return "stopped" if self.committed or self.damaged else "never started"

    @property
    def left_s(self) -> float | None:
        """Seconds until all is committed, at the recent rate if images came recently; None: nothing tells."""
        rate = self.recent_per_s or self.images_per_s
        return (self.rows - self.committed_rows) / rate if rate else None

    @property
    def next_step(self) -> str:
        """The state, how it is known, and what to do next, in a line."""
        if self.state == "finished":
            return f"finished; `spd validate {self.output}` re-reads everything"
        how = {"stopped": "no driver is at work", "never started": "there is a plan and no shard"}.get(self.state)
        if self.driver is not None:
            seen = f"{self.driver.driver} was at work {duration(self.driver.age_s)} ago"
            if self.state == "running":
                return f"running: {seen}{ASK_AGAIN}"
            if self.state == "perhaps running":
                return f"perhaps running: {seen}, which it shows every {BEAT_S:.0f} s{ASK_AGAIN}"
            how = f"{self.driver.driver} was last at work {duration(self.driver.age_s)} ago and did not end in order"
        whole = self.committed == self.shards and not self.damaged
        then = f"writes the report and {layout.SUCCESS}, all that is missing" if whole else "resumes"
        return f"{self.state}: {how}; `spd generate` with the same spec and output {then}"

    def lines(self) -> list[str]:
        """The status as text."""
        share = 100 * self.committed_rows / self.rows
        images = f"{self.committed_rows}/{self.rows} images"
        lines = [self.output, f"{self.committed}/{self.shards} shards, {images} committed ({share:.1f} %)"]
        if self.since_last_s is not None:
            left = self.rows - self.committed_rows
            rate = f"{self.images_per_s:.2f} images/s, last commit {duration(self.since_last_s)} ago"
            lines.append(f"{rate}, {time_left(left, self.images_per_s)} left at that rate" if left else rate)
        lines += [f"damaged: {problem}" for problem in self.damaged]
        lines += [f"not finished: {self.unfinished}"] if self.unfinished else []
        return [*lines, self.next_step]


class Watched:
    """An output that is looked at again and again; commit records that were read are not read once more.

    Raises:
        SpecError: there is no job.
        StoreError: the output cannot be read.
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None) -> None:
        self._store = Store(url, storage_options)
        self._plan = read_plan(self._store)
        self._totals, self._committed = Totals(), Committed()

    def look(self) -> Status:
        """The status now.

        Raises:
            SpecError: the output holds another job's records.
            StoreError: the output cannot be read.
        """
        store, plan = self._store, self._plan
        committed = self._read()
        find_missing(store, committed)
        totals = self._totals
        whole = len(committed.records) == plan.shards and not committed.damaged
        claimed = store.exists(layout.SUCCESS)
        problems = check_manifest(store, plan, committed.records.values()) if claimed else []
        when = totals.activity() if totals.shards else None
        now = datetime.datetime.now(datetime.UTC).timestamp()
        rate, over_s = recent(totals, now)
        return Status(
            output=public_url(store.url),
            shards=plan.shards,
            committed=totals.shards,
            damaged=tuple(problem for _, problem in sorted(committed.damaged.items())),
            rows=plan.rows,
            committed_rows=totals.images,
            again=len(committed.voided),
            images_per_s=totals.images / when.active_seconds if when and when.active_seconds else 0.0,
            recent_per_s=rate,
            recent_s=over_s,
            since_last_s=max(0.0, now - when.last) if when else None,
            finished=claimed and whole and not problems,
            unfinished=problems[0] if problems else "",
            driver=read_mark(store),
        )

    def _read(self) -> Committed:
        """The records by now, and their totals."""
        before = self._committed.records
        committed = read_committed(self._store, self._plan, self._totals.add, self._committed)
        if any(committed.records.get(shard) != kept for shard, kept in before.items()):
            # One that was counted is closed or gone, so all are counted anew.
            self._totals = Totals()
            committed = read_committed(self._store, self._plan, self._totals.add)
        # What find_missing finds missing now may be there at the next look.
        self._committed = replace(committed, damaged={})
        return committed


def recent(totals: Totals, now: float) -> tuple[float, float]:
    """Images committed per second lately, and over how many seconds.

    That is `RECENT_S`, or twice as long as the last shards took: over less than a shard nothing can be said.

    Args:
        totals: of the commit records.
        now: seconds since 1970.
    """
    starts, ends, rows = (np.array(column) for column in (totals.starts, totals.ends, totals.rows))
    if not len(ends):
        return 0.0, RECENT_S
    newest = np.argsort(ends)[-_NEWEST:]
    over_s = max(RECENT_S, 2.0 * float((ends - starts)[newest].max()))
    late = ends > now - over_s
    if not late.any():
        return 0.0, over_s
    began = max(now - over_s, float(starts[late].min()))
    return float(rows[late].sum()) / max(now - began, 1e-3), over_s


def status(url: str, storage_options: dict[str, Any] | None = None) -> Status:
    """Status of an output.

    Raises:
        SpecError: there is no job.
        StoreError: the output cannot be read.
    """
    return Watched(url, storage_options).look()
