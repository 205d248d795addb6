"""A worker that encodes and uploads beside its decoder: what it holds, what it makes, how its errors come out."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from spd_core.law import Null
from workers import actor, engine
from workers.actor import Worker
from workers.engine import Engine
from workers.staged import HostCopy
from workers.store import StoreError

WAIT_S = 10


@pytest.fixture
def overlapping(settings):
    return settings.model_copy(update={"encoders": 2, "method": Null(images_per_s=5000)})


@contextmanager
def calls(worker, tasks):
    """The worker's calls for some shards, as Ray makes them: each in a thread of its own."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        yield [pool.submit(worker.run, task) for task in tasks]


@pytest.fixture
def tasks(task):
    names = ("request_ids", "labels", "seeds")
    shards = [{name: tuple(getattr(task, name)[i] for i in order) for name in names} for order in ((0, 1, 2), (5, 4))]
    return [task.model_copy(update={"shard": shard, **shards[shard % 2]}) for shard in range(6)]


def test_overlapping_changes_no_byte(cspd, tasks, tmp_path):
    alone, beside = (Worker(cspd.model_copy(update={"output": str(tmp_path / str(n)), "encoders": n})) for n in (0, 3))
    one_by_one = [alone.run(task)["files"] for task in tasks]
    with calls(beside, tasks) as futures:
        assert [future.result(WAIT_S)["files"] for future in futures] == one_by_one


def test_the_next_shard_is_decoded_while_the_last_is_uploaded(overlapping, tasks, monkeypatch):
    """The upload of the first shard ends only when the second and the third are decoded."""
    decoded, commit, decode = threading.Semaphore(0), actor.commit_shard, Engine.decode

    def count(self, task):
        shard = decode(self, task)
        decoded.release()
        return shard

    def upload(store, settings, task, result):
        if task is tasks[0]:
            assert all(decoded.acquire(timeout=WAIT_S) for _ in range(3))
        return commit(store, settings, task, result)

    monkeypatch.setattr(Engine, "decode", count)
    monkeypatch.setattr(actor, "commit_shard", upload)
    with calls(Worker(overlapping), tasks[:3]) as futures:
        assert [future.result(WAIT_S)["shard"] for future in futures] == [0, 1, 2]


@pytest.mark.parametrize(("encoders", "most"), [(2, 3), (0, 1)])
def test_a_worker_holds_no_more_shards_than_it_says(overlapping, tasks, monkeypatch, encoders, most):
    settings = overlapping.model_copy(update={"encoders": encoders})
    lock, decode, commit = threading.Lock(), Engine.decode, actor.commit_shard
    held, highest, full = 0, 0, threading.Event()

    def begin(self, task):
        nonlocal held, highest
        with lock:
            held += 1
            highest = max(highest, held)
            if held == most:
                full.set()
        return decode(self, task)

    def end(*args):
        nonlocal held
        assert full.wait(WAIT_S), "nothing is uploaded before the worker holds as much as it may"
        record = commit(*args)
        with lock:
            held -= 1
        return record

    monkeypatch.setattr(Engine, "decode", begin)
    monkeypatch.setattr(actor, "commit_shard", end)
    with calls(Worker(settings), tasks) as futures:
        assert len([future.result(WAIT_S) for future in futures]) == 6
    assert highest == settings.in_flight == most


@pytest.mark.parametrize("stage", ["decode", "encode", "upload"])
def test_an_error_of_any_stage_is_the_calls_and_leaves_room_for_the_next(overlapping, tasks, monkeypatch, stage):
    failing = {"decode": (Engine, "decode"), "encode": (engine, "encode_image"), "upload": (actor, "commit_shard")}

    def fail(*_):
        raise StoreError(f"{stage} failed")

    worker = Worker(overlapping)
    with monkeypatch.context() as patch:
        patch.setattr(*failing[stage], fail)
        with calls(worker, tasks) as futures:
            for future in futures:
                with pytest.raises(StoreError, match=f"{stage} failed"):
                    future.result(WAIT_S)
    assert worker.run(tasks[0])["rows"] == 3


def test_encoding_counts_the_seconds_of_its_threads_and_the_worker_its_memory(overlapping, tasks):
    record = Worker(overlapping).run(tasks[0])
    assert record["seconds"]["encode"] > 0
    assert 50e6 < record["memory"]["host"] < 50e9


def test_a_tensor_of_the_cpu_is_its_own_copy():
    tensor = torch.arange(3)
    assert HostCopy(tensor).wait() is tensor
