from __future__ import annotations

import re

import pytest
from ray.util import metrics as of_ray

from tests.recorded import recorded
from workers import metrics
from workers.actor import Worker
from workers.metrics import IMAGES, METRICS, STAGE_SECONDS, Kind, Meter, Metric, Waiting
from workers.records import CommitRecord

__all__ = ["recorded"]


@pytest.fixture(autouse=True)
def no_thread(monkeypatch):
    monkeypatch.setattr(Meter, "watch", lambda _, look: look())


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions_of_prometheus(metric):
    assert re.fullmatch(r"spd_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.help.endswith(".") and len(metric.labels) <= 1
    for unit in ("seconds", "bytes"):
        assert (unit in metric.help.lower().split()[:1]) <= (f"_{unit}" in metric.name)


def test_the_list_has_every_metric_once():
    made = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert sorted(m.name for m in made) == sorted({m.name for m in METRICS}) and len(METRICS) == len(made)


def test_a_worker_counts_the_shard_that_it_commits(cspd, task, recorded):
    worker = Worker(cspd.model_copy(update={"name": "shoes"}))
    worker.ready()
    record = CommitRecord.model_validate(worker.run(task))
    assert recorded.datasets == {"shoes"}
    assert (recorded["spd_images_total"], recorded["spd_shards_made_total"]) == (6, 1)
    assert recorded["spd_written_bytes_total"] == sum(file.bytes for file in record.files)
    assert recorded["spd_drafts_tested_total"] == record.counts["drafted"] > 0
    assert recorded["spd_drafts_accepted_total"] == record.counts["accepted"]
    stages = {stage: recorded["spd_stage_seconds_total", stage] for stage in ("decode", "encode", "upload")}
    assert sum(stages.values()) == pytest.approx(sum(record.seconds.values()))
    assert stages["decode"] > stages["upload"] > 0
    assert recorded["spd_worker_memory_bytes"] > 1e7
    assert ("spd_gpu_memory_bytes",) not in recorded.values, "there is none"
    assert recorded["spd_stage_seconds_total", "waiting"] > 0
    before = recorded.records
    worker.run(task)  # finds it committed
    assert recorded.records == before


def test_a_shard_costs_the_same_few_records_whatever_its_size(cspd, task, recorded):
    records = []
    for shard, rows in ((1, 6), (2, 2)):
        before = recorded.records
        part = {name: getattr(task, name)[:rows] for name in ("request_ids", "labels", "seeds")}
        Worker(cspd).run(task.model_copy(update={"shard": shard, **part}))
        records.append(recorded.records - before)
    assert records[0] == records[1] <= 8


def test_operations_that_are_tried_again_are_counted_once(cspd, recorded):
    worker = Worker(cspd)
    worker._store.retries = 3
    worker._look()
    worker._store.retries = 4
    worker._look()
    assert recorded["spd_store_retries_total"] == 4


def test_without_a_ray_nothing_is_recorded(monkeypatch):
    monkeypatch.setattr(of_ray, "Counter", lambda *_: pytest.fail("made"))
    Meter("shoes").add(IMAGES)
    Meter("shoes").add(STAGE_SECONDS, 1.0, stage="decode")


def test_waiting_is_the_time_without_any_shard_at_hand(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    waiting = Waiting()
    now[0] = 2.0
    with waiting:
        now[0] = 5.0
        with waiting:  # another thread's shard
            now[0] = 6.0
        now[0] = 9.0
        assert waiting.taken() == 2.0
    now[0] = 12.0
    assert waiting.taken() == 3.0 and waiting.taken() == 0.0
