"""How far a job is, from the store alone: no driver needs to be alive, and none is asked."""

from __future__ import annotations

import datetime
from typing import Any

from pydantic import Field

from jobs.dataset.commits import find_missing, read_committed
from jobs.dataset.manifest import check_manifest
from jobs.dataset.presence import BEAT_S, WATCH_S, Mark, read_mark
from jobs.dataset.totals import Totals
from jobs.job.plan import read_plan
from jobs.words.progress import duration, time_left
from spd_core.law import Settings
from workers import layout
from workers.redact import public_url
from workers.store import Store


class Status(Settings):
    """State of an output."""

    output: str
    shards: int = Field(description="planned")
    committed: int = Field(description="shards with a commit record")
    damaged: tuple[str, ...] = Field(description="records that cannot be read, files that are gone or of another size")
    rows: int = Field(description="images planned")
    committed_rows: int
    images_per_s: float = Field(description="over the time in which workers were at work; 0: nothing is committed")
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
    def next_step(self) -> str:
        """The state, how it is known, and what to do next, in a line."""
        if self.state == "finished":
            return f"finished; `spd validate {self.output}` re-reads everything"
        how = {"stopped": "no driver is at work", "never started": "there is a plan and no shard"}.get(self.state)
        if self.driver is not None:
            seen = f"{self.driver.driver} was at work {duration(self.driver.age_s)} ago"
            if self.state == "running":
                return f"running: {seen}; ask again in a minute"
            if self.state == "perhaps running":
                return f"perhaps running: {seen}, which it shows every {BEAT_S:.0f} s; ask again in a minute"
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


def status(url: str, storage_options: dict[str, Any] | None = None) -> Status:
    """Status of an output.

    Raises:
        SpecError: there is no job.
        StoreError: the output cannot be read.
    """
    store = Store(url, storage_options)
    plan = read_plan(store)
    totals = Totals()
    committed = read_committed(store, plan, totals.add)
    find_missing(store, committed)
    whole = len(committed.records) == plan.shards and not committed.damaged
    claimed = store.exists(layout.SUCCESS)
    problems = check_manifest(store, plan, committed.records.values()) if claimed else []
    when = totals.activity() if totals.shards else None
    now = datetime.datetime.now(datetime.UTC).timestamp()
    return Status(
        output=public_url(store.url),
        shards=plan.shards,
        committed=totals.shards,
        damaged=tuple(problem for _, problem in sorted(committed.damaged.items())),
        rows=plan.rows,
        committed_rows=totals.images,
        images_per_s=totals.images / when.active_seconds if when and when.active_seconds else 0.0,
        since_last_s=max(0.0, now - when.last) if when else None,
        finished=claimed and whole and not problems,
        unfinished=problems[0] if problems else "",
        driver=read_mark(store),
    )
