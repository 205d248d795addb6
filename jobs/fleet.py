"""The actors of a job: keeps each one busy, replaces lost and stuck ones, and trusts the store before any answer.

A call may have committed its shard although its answer is lost, so whoever fails is judged by the commit record. Every
wait has a deadline: a Ray actor that can find no node, or hangs, gives no sign at all.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.cluster import no_room, reserved
from jobs.commits import read_record
from jobs.plan import Plan, task_of
from jobs.spec import SpecError, Workers
from spd_core.pairs.pair import PairError
from spd_core.quality.files import QualityError
from workers.actor import Worker
from workers.records import CommitRecord, WorkerSettings
from workers.shard import DamagedCommit
from workers.store import Store

logger = logging.getLogger(__name__)

_TICK_S = 1.0  #: longest wait before deadlines are looked at again
_FETCH_S = 60.0  #: longest wait for an answer that Ray says is there
_HOPELESS = (PairError, QualityError, SpecError)  #: no other worker could do better


class JobError(RuntimeError):
    """The job cannot go on; what is committed stays, and the same command resumes. Exit code 1."""


@dataclass
class _Job:
    ref: Any
    shard: int
    attempt: int


@dataclass
class _Slot:
    """One place for an actor; the actor in it may be replaced."""

    actor: Any
    starting: Any | None  #: reference of the ready() call, None once the actor is up
    since: float  #: when the actor was asked for, or its oldest shard became the running one
    queue: deque[_Job] = field(default_factory=deque)


def reason_of(error: BaseException) -> str:
    """Last line of an error, without Ray's traceback of the actor."""
    cause = getattr(error, "cause", None)
    lines = str(cause if isinstance(cause, BaseException) else error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def raise_if_hopeless(error: BaseException) -> None:
    """Raises the cause of a Ray error instead, if it is one that no other worker could do better with."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, _HOPELESS):
        raise cause from error


class Fleet:
    """Actors that make the shards of one plan.

    Args:
        ray: the ray module, connected.
        store: the output.
        plan: whose shards are made.
        settings: what every worker is told.
        workers: resources and deadlines.
        count: actors.
    """

    def __init__(
        self, ray: Any, store: Store, plan: Plan, settings: WorkerSettings, workers: Workers, count: int
    ) -> None:
        self._ray, self._store, self._plan, self._settings, self._workers = ray, store, plan, settings, workers
        self._failed_starts = 0
        self._failures: Counter[int] = Counter()  # of this run, by shard
        self._slots = [self._new_slot() for _ in range(count)]

    def _new_slot(self) -> _Slot:
        actor = self._ray.remote(Worker).options(**reserved(self._workers)).remote(self._settings)
        return _Slot(actor, actor.ready.remote(), time.monotonic())

    def wait_for_first(self) -> None:
        """Returns when one actor is up; the others may still be coming.

        Raises:
            PairError, StoreError: the workers refuse their input.
            JobError: no actor came up in time.
        """
        while all(slot.starting is not None for slot in self._slots):
            self._wait_once()
            self._replace_late()

    def run(self, attempts: dict[int, int]) -> Iterator[CommitRecord | None]:
        """Makes shards and yields each commit record; None when nothing was committed for a moment.

        Args:
            attempts: number of the next attempt, by shard.

        Raises:
            JobError: a shard failed too often, or no actor comes up.
        """
        pending = deque(sorted(attempts.items()))
        while pending or any(slot.queue for slot in self._slots):
            self._hand_out(pending)
            records = self._wait_once(pending)
            records += self._replace_late(pending)
            if records:
                yield from records
            else:
                yield None

    def stop(self) -> None:
        """Ends every actor; a shard in the making leaves at most files that its next attempt replaces."""
        for slot in self._slots:
            self._ray.kill(slot.actor, no_restart=True)
        self._slots = []

    def _hand_out(self, pending: deque[tuple[int, int]]) -> None:
        # A second shard waits at each actor so that none idles; near the end that would starve free actors.
        for depth in (1, 2):
            for slot in self._slots:
                enough = depth == 1 or len(pending) > len(self._slots)
                if pending and enough and slot.starting is None and len(slot.queue) < depth:
                    shard, attempt = pending.popleft()
                    if not slot.queue:
                        slot.since = time.monotonic()
                    ref = slot.actor.run.remote(task_of(self._plan, shard, attempt))
                    slot.queue.append(_Job(ref, shard, attempt))

    def _wait_once(self, pending: deque[tuple[int, int]] | None = None) -> list[CommitRecord]:
        """Takes in the first answer of a tick: an actor that is up, or a shard."""
        owners = {(slot.starting or slot.queue[0].ref): slot for slot in self._slots if slot.starting or slot.queue}
        if not owners:
            time.sleep(_TICK_S)
            return []
        ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=_TICK_S)
        records: list[CommitRecord] = []
        for ref in ready:
            slot = owners[ref]
            if slot.starting is not None:
                self._finish_start(slot)
            elif pending is not None:
                records += self._finish_shard(slot, pending)
        return records

    def _finish_start(self, slot: _Slot) -> None:
        try:
            self._ray.get(slot.starting, timeout=_FETCH_S)
        except self._ray.exceptions.RayError as error:
            raise_if_hopeless(error)
            self._failed_starts += 1
            if self._failed_starts >= self._workers.max_attempts:
                raise JobError(f"{self._failed_starts} workers in a row failed: {reason_of(error)}") from error
            logger.warning("a worker did not come up and is replaced: %s", reason_of(error))
            self._replace(slot)
            return
        self._failed_starts = 0
        slot.starting = None

    def _finish_shard(self, slot: _Slot, pending: deque[tuple[int, int]]) -> list[CommitRecord]:
        job = slot.queue[0]
        try:
            record = CommitRecord.model_validate(self._ray.get(job.ref, timeout=_FETCH_S))
        except self._ray.exceptions.RayTaskError as error:
            raise_if_hopeless(error)
            slot.queue.popleft()
            slot.since = time.monotonic()
            return self._judge(job, reason_of(error), pending)
        except self._ray.exceptions.RayError as error:
            # A node that the cloud took back says nothing about the shard.
            blame = not getattr(error, "preempted", False)
            return self._lose(slot, f"its worker is lost: {reason_of(error)}", pending, blame)
        slot.queue.popleft()
        slot.since = time.monotonic()
        return [record]

    def _committed(self, shard: int) -> CommitRecord | None:
        try:
            return read_record(self._store, self._plan, shard)
        except DamagedCommit:
            return None

    def _judge(self, job: _Job, reason: str, pending: deque[tuple[int, int]], blame: bool = True) -> list[CommitRecord]:
        """A failed attempt whose shard is committed all the same has succeeded; any other is tried again."""
        record = self._committed(job.shard)
        if record is not None:
            return [record]
        self._failures[job.shard] += blame
        if self._failures[job.shard] >= self._workers.max_attempts:
            raise JobError(f"shard {job.shard} failed {self._workers.max_attempts} times, the most allowed: {reason}")
        logger.warning("shard %d, attempt %d: %s; trying again", job.shard, job.attempt, reason)
        pending.appendleft((job.shard, job.attempt + 1))
        return []

    def _lose(
        self, slot: _Slot, reason: str, pending: deque[tuple[int, int]], blame: bool = True
    ) -> list[CommitRecord]:
        """Replaces an actor; of its shards only the oldest was running."""
        running, *waiting = slot.queue
        self._replace(slot)
        records = self._judge(running, reason, pending, blame)
        for job in waiting:
            record = self._committed(job.shard)
            if record is None:
                pending.append((job.shard, job.attempt))
            else:
                records.append(record)
        return records

    def _replace(self, slot: _Slot) -> None:
        self._ray.kill(slot.actor, no_restart=True)
        self._slots[self._slots.index(slot)] = self._new_slot()

    def _replace_late(self, pending: deque[tuple[int, int]] | None = None) -> list[CommitRecord]:
        """Replaces every actor that is past its deadline."""
        records: list[CommitRecord] = []
        for slot in list(self._slots):
            waited = time.monotonic() - slot.since
            if slot.starting is not None and waited > self._workers.start_timeout_s:
                if all(other.starting is not None for other in self._slots):
                    raise JobError(no_room(self._ray, self._workers))
                logger.warning("a worker did not come up in %.0f s; asking again", waited)
                self._replace(slot)
            elif slot.queue and pending is not None and waited > self._workers.shard_timeout_s:
                records += self._lose(slot, f"no answer for {waited:.0f} s (workers.shard_timeout_s)", pending)
        return records
