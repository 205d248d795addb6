"""One of two real actors is slow: the other makes its shard too, and the loser compares."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.job.plan import make_plan
from jobs.job.spec import Workers
from jobs.run import fleet as fleet_module
from jobs.run.cluster import running_ray
from jobs.run.fleet import Fleet
from tests.jobs.tree import tree_spec, worker_settings
from workers.actor import Worker
from workers.records import ShardTask
from workers.shard import commit_shard, read_commit
from workers.store import Store

pytestmark = pytest.mark.slow
SLOW_S = 20.0


class Straggler(Worker):
    """The first of the workers that is asked is slow from then on; on request it also makes other images."""

    wrong = False
    slow: bool | None = None

    def run(self, task: ShardTask) -> dict[str, Any]:
        if self.slow is None:
            try:
                Path(self._settings.output).with_name("slow").touch(exist_ok=False)
                self.slow = True
            except FileExistsError:
                self.slow = False
        if not self.slow:
            return super().run(task)
        seeds = tuple(range(len(task.seeds))) if self.wrong else task.seeds
        result = self._loaded().make(task.model_copy(update={"seeds": seeds}))
        time.sleep(SLOW_S)
        return commit_shard(self._store, self._settings, task, result).model_dump(mode="json")


class WrongStraggler(Straggler):
    wrong = True


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own, 15, starves them on a busy machine
    with running_ray(Workers(count=2)) as module:
        yield module


def make(ray: Any, folder: Path, worker: type[Worker], monkeypatch: pytest.MonkeyPatch) -> tuple[float, Fleet, Store]:
    """Seconds that the shards of a small job take, by two actors; the fleet, not stopped yet; the output."""
    monkeypatch.setattr(fleet_module, "Worker", worker)
    spec = tree_spec(folder, method="null", requests={"count": 12})
    plan, store = make_plan(spec), Store(spec.output)
    fleet = Fleet(ray, store, plan, worker_settings(spec, plan), Workers(count=2, num_cpus=0.5), plan.shards)
    while not all(slot.up for slot in fleet._slots):
        fleet._wait_once(deque())
    began = time.monotonic()
    made = [record.shard for record in fleet.run(dict.fromkeys(range(plan.shards), 0)) if record]
    assert sorted(made) == [0, 1, 2]
    took = time.monotonic() - began
    print(f"{took:.1f} s")
    return took, fleet, store


def wait_for_losers(fleet: Fleet) -> None:
    """Takes in what the slow actor is still at; a job that has ended does not wait for it."""
    for slot in fleet._slots:
        while slot.queue:
            fleet._finish_shard(slot, slot.queue[0], deque())


def test_a_second_copy_shortens_the_job(ray, tmp_path, monkeypatch, caplog):
    took, fleet, store = make(ray, tmp_path / "with", Straggler, monkeypatch)
    assert took < SLOW_S
    assert any(read_commit(store, shard).attempt == 1 for shard in range(3))
    wait_for_losers(fleet)
    assert "other bytes" not in caplog.text, "the loser made the same"
    fleet.stop()

    monkeypatch.setattr(Fleet, "_slowest", lambda *_: None)
    took, fleet, _ = make(ray, tmp_path / "without", Straggler, monkeypatch)
    assert took > SLOW_S
    fleet.stop()


def test_a_loser_with_other_bytes_says_so(ray, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    took, fleet, _ = make(ray, tmp_path, WrongStraggler, monkeypatch)
    assert took < SLOW_S
    wait_for_losers(fleet)
    fleet.stop()
    assert "with other bytes than those that" in caplog.text and "the first commit stays" in caplog.text
