from __future__ import annotations

import os
import pickle

import pytest

from spd_core.pairs.pair import PairError
from workers.actor import Worker
from workers.engine import Engine
from workers.records import CommitRecord
from workers.shard import read_commit, verify_shard
from workers.store import Store


def test_a_worker_makes_a_shard_once(cspd, task, monkeypatch):
    worker = Worker(pickle.loads(pickle.dumps(cspd)))
    facts = worker.ready()
    assert facts["pid"] == os.getpid()
    assert facts["device"] == "cpu"
    assert facts["load_seconds"] > 0
    record = CommitRecord.model_validate(worker.run(task))
    store = Store(cspd.output)
    assert read_commit(store, 1) == record
    assert verify_shard(store, record) == []
    assert record.counts["drafted"] == sum(record.tested_by_index) > 0
    assert record.wall_seconds >= record.seconds["encode"]
    # A repeated call, here or on another worker, finds the work done and does not even load the models.
    monkeypatch.setattr(Engine, "__init__", lambda *_: pytest.fail("loaded"))
    assert (
        worker.run(task) == Worker(cspd).run(task.model_copy(update={"attempt": 1})) == record.model_dump(mode="json")
    )


def test_two_workers_write_the_same_bytes(cspd, task, tmp_path):
    outputs = [str(tmp_path / name) for name in ("one", "two")]
    records = [Worker(cspd.model_copy(update={"output": output})).run(task) for output in outputs]
    assert records[0]["files"] == records[1]["files"]


def test_a_worker_with_the_wrong_pair_says_so(cspd):
    with pytest.raises(PairError, match="pair: got 'nowhere'"):
        Worker(cspd.model_copy(update={"pair": "nowhere"})).ready()


def test_settings_do_not_show_storage_options(settings):
    assert "hunter2" not in repr(settings.model_copy(update={"storage_options": {"secret": "hunter2"}}))
