from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import fleet as fleet_module
from jobs.fleet import Fleet, JobError
from jobs.plan import Plan, make_plan
from jobs.spec import Spec, Workers
from spd_core.pairs.pair import PairError
from tests.jobs.tree import tree_spec, worker_settings
from workers.engine import Engine
from workers.records import ShardTask
from workers.shard import commit_shard, read_commit
from workers.store import Store


class RayError(Exception):
    preempted = False


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(f"Traceback ...\n{cause}")
        self.cause = cause


class ActorDied(RayError):
    """Any other RayError is a lost actor."""


class GetTimeoutError(RayError):
    pass


@dataclass(eq=False)
class Ref:
    outcome: Any  #: value, exception, or None for an answer that never comes


@dataclass
class FakeRay:
    """Actors that answer at once, as a script says; only what the fleet uses of Ray."""

    make: Callable[[ShardTask], dict[str, Any]]
    script: Callable[[int, str, int], Any]  #: (actor, call, calls of that actor before) -> "ok", exception or None
    started: int = 0
    killed: list[int] = field(default_factory=list)
    tasks: list[ShardTask] = field(default_factory=list)
    exceptions: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError
        )
    )

    def remote(self, _worker: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _settings: self._actor()))

    def _actor(self) -> Any:
        number, calls = self.started, itertools.count()
        self.started += 1

        def run(task: ShardTask) -> Ref:
            self.tasks.append(task)
            outcome = self.script(number, "run", next(calls))
            if outcome == "committed, then lost":
                self.make(task)
                return Ref(ActorDied("gone"))
            return Ref(self.make(task) if outcome == "ok" else outcome)

        def ready() -> Ref:
            outcome = self.script(number, "ready", 0)
            return Ref({} if outcome == "ok" else outcome)

        return SimpleNamespace(number=number, ready=SimpleNamespace(remote=ready), run=SimpleNamespace(remote=run))

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        return [ref for ref in refs if ref.outcome is not None][:num_returns], []

    def get(self, ref: Ref, timeout: float) -> Any:
        if isinstance(ref.outcome, Exception):
            raise ref.outcome
        return ref.outcome

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.killed.append(actor.number)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


@dataclass
class Job:
    spec: Spec
    plan: Plan
    store: Store
    make: Callable[[ShardTask], dict[str, Any]]

    def fleet(self, ray: FakeRay, count: int = 2, **workers: object) -> Fleet:
        settings = worker_settings(self.spec, self.plan)
        return Fleet(ray, self.store, self.plan, settings, Workers(**workers), count)

    def run(self, ray: FakeRay, count: int = 2, **workers: object) -> list[int]:
        made = self.fleet(ray, count, **workers).run(dict.fromkeys(range(self.plan.shards), 0))
        return sorted(record.shard for record in made if record is not None)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(fleet_module, "_TICK_S", 0.005)
    spec = tree_spec(tmp_path, method="null", requests={"count": 20})
    plan, store = make_plan(spec), Store(spec.output)
    settings = worker_settings(spec, plan)
    engine = Engine(settings)
    return Job(
        spec, plan, store, lambda task: commit_shard(store, settings, task, engine.make(task)).model_dump(mode="json")
    )


def test_every_shard_is_made_once(job):
    ray = FakeRay(job.make, lambda *_: "ok")
    assert job.run(ray) == list(range(5))
    assert sorted(task.shard for task in ray.tasks) == list(range(5))


def test_a_lost_actor_is_replaced_and_only_its_running_shard_counts_an_attempt(job):
    ray = FakeRay(job.make, lambda actor, call, n: ActorDied("gone") if (actor, call, n) == (0, "run", 0) else "ok")
    assert job.run(ray, count=1) == list(range(5))
    assert ray.killed == [0] and ray.started == 2
    attempts = {shard: read_commit(job.store, shard).attempt for shard in range(5)}
    assert attempts == {0: 1, 1: 0, 2: 0, 3: 0, 4: 0}


def test_a_commit_counts_although_its_actor_is_lost(job):
    ray = FakeRay(
        job.make, lambda actor, call, n: "committed, then lost" if (actor, call, n) == (0, "run", 0) else "ok"
    )
    assert job.run(ray) == list(range(5))
    assert [task.shard for task in ray.tasks].count(0) == 1


def test_a_failed_call_is_tried_again_on_the_same_actor(job):
    ray = FakeRay(job.make, lambda _, call, n: RayTaskError(OSError("disk")) if (call, n) == ("run", 0) else "ok")
    assert job.run(ray, count=1) == list(range(5))
    assert ray.started == 1 and [task.attempt for task in ray.tasks if task.shard == 0] == [0, 1]


def test_a_stuck_actor_is_killed_after_its_deadline(job):
    ray = FakeRay(job.make, lambda actor, call, _: None if (actor, call) == (0, "run") else "ok")
    assert job.run(ray, shard_timeout_s=1.5) == list(range(5))
    assert ray.killed == [0]


def test_a_shard_that_keeps_failing_ends_the_job(job):
    ray = FakeRay(job.make, lambda _, call, __: RayTaskError(OSError("no space")) if call == "run" else "ok")
    with pytest.raises(JobError, match=r"shard 0 failed 3 times.*no space"):
        job.run(ray, count=1, max_attempts=3)


def test_a_preempted_actor_blames_nobody(job):
    gone = ActorDied("gone")
    gone.preempted = True
    ray = FakeRay(job.make, lambda actor, call, _: gone if call == "run" and actor < 4 else "ok")
    assert job.run(ray, count=1, max_attempts=2) == list(range(5))


def test_wrong_input_ends_the_job_at_once(job):
    ray = FakeRay(job.make, lambda *_: RayTaskError(PairError("pair: corrupt")))
    with pytest.raises(PairError, match="pair: corrupt"):
        job.fleet(ray).wait_for_first()


def test_actors_that_never_start_end_the_job(job):
    ray = FakeRay(job.make, lambda *_: ActorDied("boom"))
    with pytest.raises(JobError, match="2 workers in a row failed: boom"):
        job.fleet(ray, max_attempts=2).wait_for_first()


def test_a_cluster_without_room_is_named(job):
    ray = FakeRay(job.make, lambda *_: None)
    with pytest.raises(JobError, match="each needs 8 CPUs and 0 GPUs, the cluster has 2 and 0"):
        job.fleet(ray, num_cpus=8, start_timeout_s=0.05).wait_for_first()


def test_one_late_actor_does_not_hold_up_the_others(job):
    ray = FakeRay(job.make, lambda actor, call, _: None if actor == 1 and call == "ready" else "ok")
    fleet = job.fleet(ray)
    fleet.wait_for_first()
    records = [record for record in fleet.run(dict.fromkeys(range(5), 0)) if record]
    assert len(records) == 5
    fleet.stop()
    assert sorted(ray.killed) == [0, 1]
