"""The actors of a job: keeps each one busy, replaces lost and stuck ones, and trusts the store before any answer.

A call may have committed its shard although its answer is lost, so whoever fails is judged by the commit record. Every
wait has a deadline: a Ray actor that can find no node, or hangs, gives no sign at all. Actors come and go with the
nodes of the cluster, and near the end an idle one also makes the shard that another is slow with: the first commit
counts, and the loser finds it, compares, and says so if its own bytes differ.

An actor that overlaps the stages of its shards has begun several: which one took it down is not known then, so all of
them are made again alone.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.dataset.commits import read_record
from jobs.job.plan import Plan
from jobs.job.requests import Tasks
from jobs.job.spec import Workers
from jobs.run.cluster import cut_off, draining_nodes, no_room, reserved, worker_count
from jobs.run.gauges import Gauges
from jobs.words.errors import JobError, SpecError
from jobs.words.phrases import counted
from jobs.words.progress import Pulse, duration
from spd_core.pairs.pair import PairError
from spd_core.quality.files import QualityError
from workers import layout
from workers.actor import Worker
from workers.memory import OutOfMemory
from workers.metrics import SHARD_FAILURES, SHARD_RETRIES, WORKER_FAILURES, Meter
from workers.place import PlaceError, find_sign
from workers.records import CommitRecord, WorkerSettings
from workers.sealed import UnknownVersion
from workers.shard import DamagedCommit, UnequalCommit
from workers.store import Store, StoreError

logger = logging.getLogger(__name__)

_TICK_S = 1.0  #: longest wait before deadlines are looked at again
_LOOK_S = 2.0  #: between two looks at the nodes of the cluster
_FETCH_S = 60.0  #: longest wait for an answer that Ray says is there
_REST_S = 30.0  #: before new actors are asked for again, after several in a row failed and others work
_SLOW = 1.5  #: times the median after which a running shard is slow
_COPIES = 2  #: actors that make one shard at a time, at most
_OUTAGES = 2  #: attempts at one shard that may fail because of the store
_RECENT = 1000  #: shards whose time the median is over
_HOPELESS = (PairError, QualityError, SpecError, UnknownVersion)  #: no other worker could do better

_Pending = deque[tuple[int, int]]  #: shard and number of its next attempt


@dataclass(eq=False)
class _Job:
    ref: Any
    shard: int
    attempt: int


@dataclass(eq=False)
class _Slot:
    """One actor; the first shards of its queue are running, as many as it holds at once."""

    actor: Any
    starting: Any | None  #: reference of the ready() call, None once the actor is up
    since: float  #: when the actor was asked for, given its first shard, or last answered
    queue: deque[_Job] = field(default_factory=deque)
    node: str = ""
    platform: str = ""  #: what equal bytes need, see `workers.machine`
    draining: bool = False  #: its node is about to be taken away

    @property
    def up(self) -> bool:
        """Whether it may be given a shard."""
        return self.starting is None and not self.draining


def reason_of(error: BaseException) -> str:
    """Last line of an error, without Ray's traceback of the actor."""
    cause = getattr(error, "cause", None)
    lines = str(cause if isinstance(cause, BaseException) else error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def raise_if_hopeless(error: BaseException) -> None:
    """Raises the cause of a Ray error instead, if it is one that no other worker could do better with.

    Raises:
        PairError, QualityError, SpecError: wrong input.
        JobError: the batch of a plan does not fit; a smaller one is another plan.
    """
    cause = getattr(error, "cause", None)
    if isinstance(cause, OutOfMemory):
        raise JobError(f"{cause}; committed shards remain, but a smaller batch needs another output") from error
    if isinstance(cause, _HOPELESS):
        raise cause from error


class Fleet:
    """Actors that make the shards of one plan.

    Args:
        ray: the ray module, connected.
        store: the output.
        plan: whose shards are made.
        settings: what every worker is told.
        workers: how many actors, their resources and deadlines.
        todo: shards to make; more actors than that are never asked for.

    Raises:
        SpecError: as many actors as fit are asked for, and the cluster has room for none.
    """

    def __init__(
        self, ray: Any, store: Store, plan: Plan, settings: WorkerSettings, workers: Workers, todo: int
    ) -> None:
        self._ray, self._store, self._plan, self._settings, self._workers = ray, store, plan, settings, workers
        self._tasks = Tasks(store, plan)
        self._gauges = Gauges(Meter(settings.name), store, plan)
        self._failed_starts = 0
        self._failures: Counter[int] = Counter()  # of this run, by shard
        self._outages: Counter[int] = Counter()  # those of them in which the store failed
        self._platforms: Counter[str] = Counter()  # of the workers that came up
        self._made = False  # a shard of this run is committed
        self._took: deque[float] = deque(maxlen=_RECENT)  # seconds, of the last shards of this run
        self._todo = todo
        self._missing: set[int] = set()  # shards of this run that no record is known of
        self._held = settings.in_flight  # shards that an actor has begun at a time, at most
        self._alone: set[int] = set()  # shards that were begun with others on an actor that was lost
        self._slots: list[_Slot] = []
        self._room = worker_count(ray, workers)
        self._looked = self._any_up = time.monotonic()
        self._rest_until = 0.0
        self._grow()

    @property
    def size(self) -> int:
        """Actors that are wanted now."""
        return min(self._room, self._todo)

    @property
    def missing(self) -> int:
        """Shards of this run that are not committed yet."""
        return len(self._missing)

    @property
    def up(self) -> int:
        """Actors that may be given shards."""
        return sum(slot.up for slot in self._slots)

    @property
    def in_flight(self) -> int:
        """Shards that actors have begun."""
        return len({job.shard for slot in self._slots for job in self._begun(slot)})

    def in_words(self) -> str:
        """Actors that are up and shards that they have begun."""
        making = counted(self.in_flight, "shard", "shards")
        return f"{self.up} of {counted(self.size, 'worker', 'workers')} ready, {making} being made"

    @property
    def platforms(self) -> frozenset[str]:
        """Of the workers that have come up so far."""
        return frozenset(self._platforms)

    def wait_for_first(self) -> None:
        """Returns when one actor is up; the others may still be coming.

        Raises:
            PairError, StoreError: the workers refuse their input.
            JobError: no actor came up in time.
        """
        pending: _Pending = deque()
        pulse = Pulse()
        while not self.up:
            if pulse.due():
                logger.info("waiting for workers: none of %d is ready after %s", self.size, duration(pulse.seconds))
            self._gauges.set_workers(self.up, self.size)
            self._look_around(pending)
            self._wait_once(pending)
            self._drop_late(pending)

    def run(self, attempts: dict[int, int]) -> Iterator[CommitRecord | None]:
        """Makes shards and yields each commit record once; None when nothing was committed for a moment.

        Args:
            attempts: number of the next attempt, by shard.

        Raises:
            JobError: a shard failed too often, or no actor comes up.
        """
        pending: _Pending = deque(sorted(attempts.items()))
        self._missing = set(attempts)
        while self._missing:
            self._todo = len(self._missing)
            self._look_around(pending)
            self._hand_out(pending)
            self._gauges.set_workers(self.up, self.size)
            self._gauges.set_shards(self._missing, self.in_flight)
            records = self._wait_once(pending) + self._drop_late(pending)
            new = [record for record in records if record.shard in self._missing]
            self._missing.difference_update(record.shard for record in new)
            if new:
                self._made = True
                yield from new
            else:
                yield None

    def stop(self) -> None:
        """Ends every actor; a shard in the making leaves at most files that its next attempt replaces."""
        for slot in self._slots:
            self._ray.kill(slot.actor, no_restart=True)
        self._slots = []

    # Actors

    def _grow(self) -> None:
        """Asks for the actors that are wanted and not there."""
        if time.monotonic() < self._rest_until:
            return
        staying = sum(not slot.draining for slot in self._slots)
        for _ in range(self.size - staying):
            options = {**reserved(self._workers), "max_concurrency": self._held}
            actor = self._ray.remote(Worker).options(**options).remote(self._settings)
            self._slots.append(_Slot(actor, actor.ready.remote(), time.monotonic()))

    def _drop(self, slot: _Slot) -> None:
        self._ray.kill(slot.actor, no_restart=True)
        self._slots.remove(slot)

    def _look_around(self, pending: _Pending) -> None:
        """Takes in what became of the cluster: new room, nodes that are about to go, actors that went."""
        now = time.monotonic()
        if any(slot.up for slot in self._slots):
            self._any_up = now
        if now - self._looked >= _LOOK_S:
            self._looked = now
            if cut_off(self._ray):
                raise JobError("the Ray node that this driver runs on is gone; the same command resumes")
            try:
                self._room = worker_count(self._ray, self._workers)
            except SpecError:
                self._room = 1  # every node went; the one actor waits for the next
            self._leave(draining_nodes(self._ray), pending)
        for slot in [slot for slot in self._slots if slot.draining and not slot.queue]:
            self._drop(slot)
        self._grow()

    def _leave(self, nodes: frozenset[str], pending: _Pending) -> None:
        """Gives the actors of nodes that are about to go no new shard; the running ones they may finish."""
        for slot in self._slots:
            if slot.node not in nodes or slot.draining:
                continue
            logger.warning("a node is about to be taken away: its worker gets no more shards")
            slot.draining = True
            while len(slot.queue) > self._held:
                self._hand_back(slot.queue.pop(), pending)

    def _drop_late(self, pending: _Pending) -> list[CommitRecord]:
        """Drops every actor that is past its deadline; records of shards that prove to be committed."""
        now, limits = time.monotonic(), self._workers
        if now - self._any_up > limits.start_timeout_s and not any(slot.up for slot in self._slots):
            raise JobError(no_room(self._ray, limits))
        records: list[CommitRecord] = []
        late = 0
        for slot in list(self._slots):
            waited = now - slot.since
            if slot.starting is not None and waited > limits.start_timeout_s:
                late += 1
                self._gauges.count(WORKER_FAILURES, "start")
                self._drop(slot)
            elif slot.queue and waited > limits.shard_timeout_s:
                records += self._lose(slot, f"no answer for {waited:.0f} s (workers.shard_timeout_s)", pending)
        if late:
            waited_for = f"{limits.start_timeout_s:g} s (workers.start_timeout_s)"
            logger.warning("%d of %d workers are not ready after %s; asking again", late, self.size, waited_for)
        return records

    # Shards

    def _copies(self, shard: int) -> int:
        """Actors that have the shard."""
        return sum(job.shard == shard for slot in self._slots for job in slot.queue)

    def _give(self, slot: _Slot, shard: int, attempt: int) -> None:
        if not slot.queue:
            slot.since = time.monotonic()
        slot.queue.append(_Job(slot.actor.run.remote(self._tasks.task(shard, attempt)), shard, attempt))

    def _hand_out(self, pending: _Pending) -> None:
        # One shard more than an actor holds waits there so that none idles; near the end that would starve free actors.
        # An actor that overlaps still needs its next shard before the last one is committed.
        always = min(2, self._held)
        for depth in range(1, self._held + 2):
            for slot in self._slots:
                enough = depth <= always or len(pending) > len(self._slots)
                if pending and enough and slot.up and len(slot.queue) < depth and self._bears(slot, pending[0][0]):
                    self._give(slot, *pending.popleft())
        for slot in self._slots if not pending else ():
            if slot.up and not slot.queue:
                job = self._slowest(slot.platform)
                if job is None:
                    continue
                logger.info("shard %d takes long; an idle worker makes it too, and the first one counts", job.shard)
                self._gauges.count(SHARD_RETRIES, "slow")
                self._give(slot, job.shard, job.attempt + 1)

    def _bears(self, slot: _Slot, shard: int) -> bool:
        """Whether a shard may be with those of an actor: one that may have taken an actor down is made alone."""
        return not slot.queue or self._alone.isdisjoint([shard, *(job.shard for job in slot.queue)])

    def _slowest(self, platform: str) -> _Job | None:
        """The shard that an idle actor helps most with: one that waits behind another, or the longest running slow one.

        Slow is against the median of this run; on a node that is about to go, every shard is. Only an actor of the same
        platform helps: elsewhere the bytes may differ, and the loser's work would be for nothing.
        """
        now = time.monotonic()
        limit = _SLOW * statistics.median(self._took) + _TICK_S if self._took else math.inf
        found: list[tuple[float, int, _Job]] = []
        for slot in self._slots:
            for place, job in enumerate(slot.queue if slot.platform == platform else ()):
                late = math.inf if place or slot.draining else now - slot.since - limit
                if late > 0 and job.shard in self._missing and self._copies(job.shard) < _COPIES:
                    found.append((late, place, job))
        # Of those that wait the last in its queue: the others may have been begun.
        return max(found, key=lambda each: each[:2])[2] if found else None

    def _wait_once(self, pending: _Pending) -> list[CommitRecord]:
        """Takes in the first answer of a tick: an actor that is up, or a shard."""
        owners: dict[Any, tuple[_Slot, _Job | None]] = {}
        for slot in self._slots:
            owners |= {slot.starting: (slot, None)} if slot.starting is not None else {}
            owners |= {job.ref: (slot, job) for job in self._begun(slot)}
        if not owners:
            time.sleep(_TICK_S)
            return []
        ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=_TICK_S)
        records: list[CommitRecord] = []
        for ref in ready:
            slot, job = owners[ref]
            if job is None:
                self._finish_start(slot)
            else:
                records += self._finish_shard(slot, job, pending)
        return records

    def _begun(self, slot: _Slot) -> list[_Job]:
        """The shards that an actor is at."""
        return list(slot.queue)[: self._held]

    def _finish_start(self, slot: _Slot) -> None:
        try:
            facts = self._ray.get(slot.starting, timeout=_FETCH_S)
            self._see(facts["name"])
        except PlaceError as error:
            self._fail_start(slot, error)
            return
        except self._ray.exceptions.RayError as error:
            raise_if_hopeless(error)
            self._fail_start(slot, error)
            return
        self._failed_starts = 0
        slot.node, slot.platform, slot.starting = facts["node"], facts["platform"], None
        self._platforms[slot.platform] += 1

    def _see(self, name: str) -> None:
        """Looks for what a worker left in the output to be seen."""
        run = self._settings.run
        if run:
            find_sign(self._store, run, name, "the driver")
            self._store.withdraw(layout.sign(run, name), ())

    def _fail_start(self, slot: _Slot, error: Exception) -> None:
        cause = getattr(error, "cause", error)
        if isinstance(cause, PlaceError) and not self._made:
            raise cause  # later it is a node that is not like the others
        self._failed_starts += 1
        self._gauges.count(WORKER_FAILURES, "start")
        if self._failed_starts >= self._workers.max_attempts:
            if not any(slot.up for slot in self._slots):
                raise JobError(f"{self._failed_starts} workers in a row failed: {reason_of(error)}") from error
            self._rest_until = time.monotonic() + _REST_S
        logger.warning("a worker did not start and is replaced: %s", reason_of(error))
        self._drop(slot)

    def _finish_shard(self, slot: _Slot, job: _Job, pending: _Pending) -> list[CommitRecord]:
        try:
            record = CommitRecord.model_validate(self._ray.get(job.ref, timeout=_FETCH_S))
        except self._ray.exceptions.RayTaskError as error:
            raise_if_hopeless(error)
            self._next(slot, job)
            cause = getattr(error, "cause", None)
            if isinstance(cause, UnequalCommit):
                logger.warning("%s", reason_of(error))
            if type(cause) is StoreError:
                self._count_outage(job.shard, cause)
            return self._judge(job, reason_of(error), pending, "error")
        except self._ray.exceptions.RayError as error:
            # A node that the cloud took back says nothing about the shard.
            blame = not (getattr(error, "preempted", False) or slot.draining)
            return self._lose(slot, f"its worker is lost: {reason_of(error)}", pending, blame)
        self._took.append(record.wall_seconds)
        self._next(slot, job)
        return [record]

    def _count_outage(self, shard: int, error: StoreError) -> None:
        """Each was waited for with patience before it became an error: a third wait would be like the first two."""
        self._outages[shard] += 1
        if self._outages[shard] >= _OUTAGES and self._committed(shard) is None:
            raise JobError(
                f"shard {shard} could not be stored, {_OUTAGES} times after every retry: {error}; "
                "once that is mended, the same command resumes"
            )

    def _next(self, slot: _Slot, job: _Job) -> None:
        slot.queue.remove(job)
        slot.since = time.monotonic()

    def _committed(self, shard: int) -> CommitRecord | None:
        try:
            return read_record(self._store, self._plan, shard)
        except DamagedCommit:
            return None

    def _judge(self, job: _Job, reason: str, pending: _Pending, kind: str, blame: bool = True) -> list[CommitRecord]:
        """A failed attempt whose shard is committed all the same has succeeded; any other is tried again.

        Args:
            job: the attempt.
            reason: of the failure, in words.
            pending: shards to hand out.
            kind: of the failure, ``error`` or ``lost``.
            blame: it counts against the shard.
        """
        record = self._committed(job.shard)
        if record is not None:
            return [record]
        self._gauges.count(SHARD_FAILURES)
        self._failures[job.shard] += blame
        if self._failures[job.shard] >= self._workers.max_attempts:
            raise JobError(f"shard {job.shard} failed {self._workers.max_attempts} times, the most allowed: {reason}")
        times = f" ({self._failures[job.shard]} of at most {self._workers.max_attempts} times)" if blame else ""
        logger.warning("shard %d failed%s: %s; it is made again", job.shard, times, reason)
        self._gauges.count(SHARD_RETRIES, kind)
        if not self._copies(job.shard):
            pending.appendleft((job.shard, job.attempt + 1))
        return []

    def _lose(self, slot: _Slot, reason: str, pending: _Pending, blame: bool = True) -> list[CommitRecord]:
        """Drops an actor. A shard that was the only one begun there has failed; of several nobody knows which did."""
        begun, waiting = self._begun(slot), list(slot.queue)[self._held :]
        self._gauges.count(WORKER_FAILURES, "lost")
        self._drop(slot)
        if len(begun) == 1:
            records = self._judge(begun[0], reason, pending, "lost", blame)
        else:
            logger.warning("%d shards are made again, each alone, to find out which failed: %s", len(begun), reason)
            self._alone.update(job.shard for job in begun)
            self._gauges.count(SHARD_RETRIES, "lost", len(begun))
            again = (_Job(None, job.shard, job.attempt + 1) for job in reversed(begun))
            records = [record for job in again for record in self._return(job, pending, first=True)]
        return records + [record for job in waiting for record in self._return(job, pending)]

    def _return(self, job: _Job, pending: _Pending, first: bool = False) -> list[CommitRecord]:
        """The record of a shard whose actor is lost, or none, and the shard waits for another actor."""
        record = self._committed(job.shard)
        if record is None:
            self._hand_back(job, pending, first)
        return [] if record is None else [record]

    def _hand_back(self, job: _Job, pending: _Pending, first: bool = False) -> None:
        """A shard that its actor will not make waits for another, unless one has it already."""
        if job.shard in self._missing and not self._copies(job.shard):
            (pending.appendleft if first else pending.append)((job.shard, job.attempt))
