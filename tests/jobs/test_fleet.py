from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.job.plan import Plan, make_plan
from jobs.job.spec import Spec, Workers
from jobs.run import fleet as fleet_module
from jobs.run import gauges as gauges_module
from jobs.run.cluster import _fits, _start
from jobs.run.fleet import Fleet
from jobs.words.errors import JobError, SpecError
from spd_core.pairs.pair import PairError
from tests.jobs.tree import tree_spec, worker_settings
from tests.recorded import recorded
from workers.engine import Engine
from workers.memory import OutOfMemory
from workers.place import PlaceError
from workers.records import ShardTask
from workers.shard import UnequalCommit, commit_shard, read_commit
from workers.store import Store, StoreError

__all__ = ["recorded"]


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
    outcome: Any  #: value, exception, or None for an answer that never comes; called if it can be
    at: float = 0.0  #: when it is there


@dataclass
class FakeRay:
    """Actors that answer as a script says, one call after the other; only what the fleet uses of Ray.

    The script gets (actor, call, calls of that actor before) and says "ok", an exception, None for no answer at all, or
    the seconds that making the shard takes, which is made when they are over.
    """

    make: Callable[[ShardTask], dict[str, Any]]
    script: Callable[[int, str, int], Any]
    started: int = 0
    killed: list[int] = field(default_factory=list)
    tasks: list[ShardTask] = field(default_factory=list)
    room: int = 2
    platforms: dict[int, str] = field(default_factory=dict)  #: by actor
    draining: set[str] = field(default_factory=set)
    cut_off: bool = False  #: the driver's own node died
    exceptions: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError
        )
    )

    def remote(self, _worker: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _settings: self._actor()))

    def _actor(self) -> Any:
        number, calls, busy_until = self.started, itertools.count(), 0.0
        self.started += 1

        def run(task: ShardTask) -> Ref:
            nonlocal busy_until
            self.tasks.append(task)
            outcome = self.script(number, "run", next(calls))
            if isinstance(outcome, float):
                busy_until = max(busy_until, time.monotonic()) + outcome
                return Ref(lambda: self.make(task), busy_until)
            if outcome == "committed, then lost":
                self.make(task)
                return Ref(ActorDied("gone"))
            return Ref(self.make(task) if outcome == "ok" else outcome)

        def ready() -> Ref:
            outcome = self.script(number, "ready", 0)
            facts = {"node": f"node{number}", "name": f"worker{number}", "platform": self.platforms.get(number, "one")}
            return Ref(facts if outcome == "ok" else outcome)

        return SimpleNamespace(number=number, ready=SimpleNamespace(remote=ready), run=SimpleNamespace(remote=run))

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        ready = [ref for ref in refs if ref.outcome is not None and ref.at <= time.monotonic()]
        if not ready:
            time.sleep(0.001)
        return ready[:num_returns], []

    def get(self, ref: Ref, timeout: float) -> Any:
        if isinstance(ref.outcome, Exception):
            raise ref.outcome
        return ref.outcome() if callable(ref.outcome) else ref.outcome

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.killed.append(actor.number)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def nodes(self) -> list[dict[str, Any]]:
        up = [{"NodeID": f"node{n}", "Alive": True, "Resources": {"CPU": 1.0}} for n in range(self.room)]
        return [*up, {"NodeID": "head", "Alive": not self.cut_off, "Resources": {}}]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "head")

    @property
    def _private(self) -> Any:
        state = SimpleNamespace(get_draining_nodes=lambda: dict.fromkeys(self.draining, 0))
        return SimpleNamespace(state=SimpleNamespace(state=state))


@dataclass
class Job:
    spec: Spec
    plan: Plan
    store: Store
    make: Callable[[ShardTask], dict[str, Any]]

    def fleet(self, ray: FakeRay, count: int = 2, **workers: object) -> Fleet:
        encoders = workers.get("encoders", 0)
        settings = worker_settings(self.spec, self.plan).model_copy(update={"encoders": encoders})
        return Fleet(ray, self.store, self.plan, settings, Workers(count=count, **workers), self.plan.shards)

    def run(self, ray: FakeRay, count: int = 2, **workers: object) -> list[int]:
        made = self.fleet(ray, count, **workers).run(dict.fromkeys(range(self.plan.shards), 0))
        return sorted(record.shard for record in made if record is not None)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(fleet_module, "_TICK_S", 0.005)
    monkeypatch.setattr(fleet_module, "_LOOK_S", 0.0)
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


def test_an_actor_that_overlaps_is_given_its_next_shards_before_the_last_is_committed(job):
    ray = FakeRay(job.make, lambda _, call, __: "ok" if call == "ready" else 0.02)
    fleet = job.fleet(ray, 1, encoders=1)
    outstanding = [sum(len(slot.queue) for slot in fleet._slots) for _ in fleet.run(dict.fromkeys(range(5), 0))]
    assert max(outstanding) == 4, "three that it holds and one that waits"
    assert sorted(task.shard for task in ray.tasks) == list(range(5))


def test_of_several_shards_on_a_lost_actor_none_is_blamed_and_each_is_made_alone(job):
    def make(task: ShardTask) -> dict[str, Any]:
        if task.shard == 1 and task.attempt == 0:
            raise ActorDied("gone")
        return job.make(task)

    ray = FakeRay(make, lambda actor, call, n: "ok" if call == "ready" else 0.02)
    fleet, alone = job.fleet(ray, 1, encoders=1, max_attempts=1), []
    for _ in fleet.run(dict.fromkeys(range(5), 0)):
        queue = [each.shard for each in fleet._slots[0].queue] if fleet._slots else []
        alone += [len(queue) for shard in (1, 2) if shard in queue and ray.started == 2]
    assert {shard: read_commit(job.store, shard).attempt for shard in range(5)} == {0: 0, 1: 1, 2: 1, 3: 1, 4: 0}
    assert set(alone) == {1}


def test_the_shard_that_takes_its_actors_down_is_the_one_that_is_named(job):
    def make(task: ShardTask) -> dict[str, Any]:
        if task.shard == 3:
            raise ActorDied("killed by it")
        return job.make(task)

    ray = FakeRay(make, lambda _, call, __: "ok" if call == "ready" else 0.01)
    with pytest.raises(JobError, match=r"shard 3 failed 3 times.*killed by it"):
        job.run(ray, count=1, encoders=1, max_attempts=3)
    assert ray.started == 4, "once in company, then three times alone"


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
    assert job.run(ray, count=1, shard_timeout_s=0.3) == list(range(5))
    assert ray.killed == [0]


def test_a_shard_that_keeps_failing_ends_the_job(job):
    ray = FakeRay(job.make, lambda _, call, __: RayTaskError(OSError("no space")) if call == "run" else "ok")
    with pytest.raises(JobError, match=r"shard 0 failed 3 times.*no space"):
        job.run(ray, count=1, max_attempts=3)


def test_a_store_that_fails_after_every_retry_ends_the_job_at_the_second_attempt(job):
    ray = FakeRay(job.make, lambda _, call, __: RayTaskError(StoreError("output: 500")) if call == "run" else "ok")
    with pytest.raises(JobError, match=r"shard \d could not be stored, 2 times after every retry: output: 500"):
        job.run(ray, count=1, max_attempts=5)


def test_a_preempted_actor_blames_nobody(job):
    gone = ActorDied("gone")
    gone.preempted = True
    ray = FakeRay(job.make, lambda actor, call, _: gone if call == "run" and actor < 4 else "ok")
    assert job.run(ray, count=1, max_attempts=2) == list(range(5))


def test_a_stuck_actor_does_not_hold_up_the_end(job):
    ray = FakeRay(job.make, lambda actor, call, _: None if (actor, call) == (0, "run") else "ok")
    assert job.run(ray) == list(range(5))
    assert ray.killed == []
    again = [task.shard for task in ray.tasks if task.attempt == 1]
    assert again and len(again) == len(set(again)), "each shard of the stuck actor is made once more, no oftener"


def slow_first_actor(actor: int, call: str, _: int) -> float | str:
    return "ok" if call == "ready" else 1.0 if actor == 0 else 0.02


@pytest.mark.parametrize("reissue", [True, False])
def test_a_slow_shard_is_made_by_an_idle_actor_too(job, reissue, monkeypatch):
    if not reissue:
        monkeypatch.setattr(Fleet, "_slowest", lambda *_: None)
    ray = FakeRay(job.make, slow_first_actor)
    began = time.monotonic()
    assert job.run(ray) == list(range(5))
    took = time.monotonic() - began
    assert took < 0.7 if reissue else took > 0.95
    assert read_commit(job.store, 0).attempt == int(reissue)


def test_an_idle_actor_of_another_platform_makes_no_copy(job):
    """Its bytes may differ, and then its work would be for nothing."""
    ray = FakeRay(job.make, slow_first_actor, platforms={1: "another"})
    began = time.monotonic()
    assert job.run(ray) == list(range(5))
    assert time.monotonic() - began > 0.95
    assert {task.attempt for task in ray.tasks} == {0}


def test_a_node_that_sees_another_place_ends_a_job_only_before_the_first_shard(job, caplog):
    elsewhere = PlaceError("output: the worker b-2 does not see what the driver wrote")

    def script(actor: int, call: str, _: int) -> Any:
        return RayTaskError(elsewhere) if call == "ready" and actor == 0 else "ok"

    with pytest.raises(PlaceError, match="the worker b-2 does not see"):
        job.run(FakeRay(job.make, lambda *_: RayTaskError(elsewhere)))
    fleet = job.fleet(FakeRay(job.make, script), 2)
    fleet._made = True  # a shard of this run is committed
    assert sorted(record.shard for record in fleet.run(dict.fromkeys(range(5), 0)) if record) == list(range(5))
    assert "a worker did not start and is replaced: output: the worker b-2 does not see" in caplog.text


def test_the_loser_of_two_copies_compares_what_it_made(job, caplog):
    """Three actors, one slow with shard 0 and one with shard 2, so that the first loser answers before the job ends."""
    seconds = {(0, 0): 0.3, (1, 0): 0.8}

    def make_other(task: ShardTask) -> dict[str, Any]:
        try:
            return job.make(task if task.attempt else task.model_copy(update={"seeds": tuple(range(4))}))
        except UnequalCommit as error:
            raise RayTaskError(error) from error

    def script(actor: int, call: str, n: int) -> float | str:
        return "ok" if call == "ready" else seconds.get((actor, n), 0.05)

    for make, told in ((job.make, False), (make_other, True)):
        caplog.clear()
        for path in job.store.list():
            job.store.delete(path)
        ray = FakeRay(make, script)
        fleet = job.fleet(ray, 3)
        records = [record for record in fleet.run(dict.fromkeys(range(5), 0)) if record]
        assert sorted(record.shard for record in records) == list(range(5))
        # The job ends with the last commit; what the loser is still at is asked for here.
        for slot in fleet._slots:
            while slot.queue:
                time.sleep(max(0.0, slot.queue[0].ref.at - time.monotonic()))
                fleet._finish_shard(slot, slot.queue[0], deque())
        assert ("with other bytes" in caplog.text) is told


def test_a_node_about_to_go_gets_no_more_shards(job):
    def script(actor: int, call: str, n: int) -> float | str:
        if call == "run" and actor == 0:
            ray.draining.add("node0")
        return "ok" if call == "ready" else 0.05

    ray = FakeRay(job.make, script)
    assert job.run(ray) == list(range(5))
    assert 0 in ray.killed and ray.started == 3, "an actor elsewhere takes its place"
    assert sum(read_commit(job.store, shard).attempt == 0 for shard in range(5)) >= 4, "what ran there was finished"


def test_a_shard_lost_with_a_node_about_to_go_is_not_blamed(job):
    def make(task: ShardTask) -> dict[str, Any]:
        if task.shard == 0 and task.attempt < 4:
            raise ActorDied("the node is gone")
        return job.make(task)

    def script(actor: int, call: str, n: int) -> float | str:
        if call == "run":
            ray.draining.add(f"node{actor}")
        return "ok" if call == "ready" else 0.02

    ray = FakeRay(make, script)
    assert job.run(ray, count=1, max_attempts=2) == list(range(5))
    assert read_commit(job.store, 0).attempt == 4


def test_the_fleet_grows_with_the_cluster(job):
    def script(actor: int, call: str, n: int) -> float | str:
        ray.room = 3
        return "ok" if call == "ready" else 0.05

    ray = FakeRay(job.make, script, room=1)
    assert job.run(ray, count=0) == list(range(5))
    assert ray.started == 3


def test_the_fleet_shrinks_with_the_cluster(job):
    def script(actor: int, call: str, n: int) -> Any:
        if call == "ready":
            return "ok"
        ray.room = 1
        return ActorDied("gone") if actor == 0 else 0.02

    ray = FakeRay(job.make, script, room=2)
    assert job.run(ray, count=0) == list(range(5))
    assert ray.started == 2, "the lost actor has no place to come back to"


def test_a_cluster_without_room_for_one_is_refused(job):
    with pytest.raises(SpecError, match=r"workers.count: got 0 .* a node of 8 CPUs and 0 GPUs \(the cluster has 2"):
        job.fleet(FakeRay(job.make, lambda *_: "ok"), count=0, num_cpus=8)


@pytest.mark.parametrize(
    ("node", "workers", "count"),
    [
        ({"CPU": 4.0}, {}, 4),
        ({"CPU": 4.0}, {"threads": 3}, 1),
        ({"CPU": 0.9}, {"num_cpus": 0.3, "threads": 1}, 0),
        ({"CPU": 4.0}, {"num_gpus": 1}, 0),
        ({"CPU": 4.0, "GPU": 8.0}, {"num_gpus": 1}, 4),
        ({"CPU": 4.0, "GPU": 1.0}, {"num_gpus": 0.25, "num_cpus": 0.5}, 4),
        ({"CPU": 0.9, "GPU": 9.0}, {"num_gpus": 1, "num_cpus": 0.3}, 3),
        ({"CPU": 4.0, "GPU": 1.0}, {"num_gpus": 1, "accelerator_type": "A100"}, 0),
        ({"CPU": 4.0, "GPU": 1.0, "accelerator_type:A100": 1.0}, {"num_gpus": 1, "accelerator_type": "A100"}, 1),
        ({}, {}, 0),
    ],
)
def test_actors_that_fit_on_a_node(node, workers, count):
    assert _fits(node, Workers(**workers)) == count


def test_a_node_that_fails_every_actor_does_not_end_a_job_that_goes_on_elsewhere(job):
    def script(actor: int, call: str, n: int) -> Any:
        if call == "ready":
            return "ok" if actor == 0 else ActorDied("no driver")
        return 0.02

    ray = FakeRay(job.make, script)
    assert job.run(ray, max_attempts=2) == list(range(5))
    assert ray.started <= 1 + 3, "after some failures in a row it asks less often"


def test_wrong_input_ends_the_job_at_once(job):
    ray = FakeRay(job.make, lambda *_: RayTaskError(PairError("pair: corrupt")))
    with pytest.raises(PairError, match="pair: corrupt"):
        job.fleet(ray).wait_for_first()


def test_running_out_of_memory_ends_the_job_at_the_first_attempt(job):
    full = OutOfMemory("batch: got 32, which does not fit into the memory of X, allowed: a smaller one (CUDA)")
    ray = FakeRay(job.make, lambda _, call, __: RayTaskError(full) if call == "run" else "ok")
    with pytest.raises(JobError, match=r"^batch: got 32, which does not fit .*; committed shards remain"):
        job.run(ray, count=1)
    assert ray.started == 1


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


def test_a_driver_whose_own_node_is_gone_says_so_at_once(job):
    ray = FakeRay(job.make, lambda *_: "ok", cut_off=True)
    with pytest.raises(JobError, match="Ray node that this driver runs on is gone; the same command resumes"):
        job.run(ray)


def test_a_fleet_says_what_is_in_progress(job):
    ray = FakeRay(job.make, lambda _, call, __: None if call == "run" else "ok")
    fleet = job.fleet(ray)
    assert fleet.in_words() == "0 of 2 workers ready, 0 shards being made"
    fleet.wait_for_first()
    made = fleet.run(dict.fromkeys(range(5), 0))
    said = {fleet.in_words() for _ in itertools.islice(made, 5)}
    assert "2 of 2 workers ready, 2 shards being made" in said


def test_what_goes_wrong_and_how_far_the_dataset_is_is_recorded(job, recorded, monkeypatch):
    monkeypatch.setattr(gauges_module, "_EVERY_S", 0.0)

    def script(actor: int, call: str, n: int) -> Any:
        failed = {(0, "run", 0): RayTaskError(OSError("disk")), (0, "run", 1): ActorDied("gone")}
        return failed.get((actor, call, n), "ok")

    assert job.run(FakeRay(job.make, script), count=1) == list(range(5))
    assert recorded.datasets == {"fashion"}
    assert recorded["spd_shard_failures_total"] == 2
    assert (recorded["spd_shard_retries_total", "error"], recorded["spd_shard_retries_total", "lost"]) == (1, 1)
    assert recorded["spd_worker_failures_total", "lost"] == 1
    shards = [recorded["spd_shards", state] for state in ("committed", "in_flight", "waiting")]
    assert sum(shards) == 5 and shards[0] == 4, "as of the last look, before the last shard came"
    assert recorded["spd_dataset_images", "committed"] + recorded["spd_dataset_images", "left"] == 20
    assert (recorded["spd_workers", "up"], recorded["spd_workers", "missing"]) == (1, 0)


def test_a_ray_that_does_not_start_is_one_line():
    """On an overloaded machine its processes do not answer in time."""

    def init(**_):
        raise Exception("The current node timed out during startup.")

    with pytest.raises(JobError, match=r"^Ray does not start on this machine: The current node timed out"):
        _start(SimpleNamespace(init=init), Workers(), "folder", {})
