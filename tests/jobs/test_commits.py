from __future__ import annotations

import tracemalloc

import pytest

from jobs.dataset import commits
from jobs.dataset.commits import find_damage, find_missing, read_committed, read_record, void_damaged
from jobs.dataset.totals import Totals
from jobs.job.plan import Plan, make_plan, parse_plan
from jobs.job.spec import make_spec
from jobs.words.errors import SpecError
from tests.tiny_pair import make_tiny_pair
from workers import layout
from workers.records import CommitRecord
from workers.sealed import canonical_json, seal
from workers.shard import DamagedCommit, read_commit
from workers.store import Store


def plan_of(store: Store) -> Plan:
    plan = parse_plan(store.read(layout.PLAN))
    assert plan is not None
    return plan


def record_of(store: Store, shard: int) -> CommitRecord:
    record = read_commit(store, shard)
    assert record is not None
    return record


def put(store: Store, shard: int, **fields: object) -> None:
    record = CommitRecord.model_validate(seal({**record_of(store, shard).model_dump(mode="json"), **fields}))
    store.replace(layout.commit(shard), canonical_json(record.model_dump(mode="json")))


@pytest.mark.parametrize("at_a_time", [1, 2, 512])
def test_what_is_kept_says_what_the_records_say(store, at_a_time, monkeypatch):
    monkeypatch.setattr(commits, "_RECORDS", at_a_time)
    seen: list[CommitRecord] = []
    committed = read_committed(store, plan_of(store), seen.append)
    assert seen == [record_of(store, shard) for shard in range(3)]
    assert list(committed.records) == [0, 1, 2] and committed.damaged == {}
    for record in seen:
        kept = committed.records[record.shard]
        assert (kept.files, kept.rows, kept.attempt) == (record.files, record.rows, record.attempt)


def test_totals_are_those_of_the_records(store):
    totals, records = Totals(), [record_of(store, shard) for shard in range(3)]
    read_committed(store, plan_of(store), totals.add)
    assert (totals.shards, totals.images) == (3, 10)
    assert totals.bytes == sum(file.bytes for record in records for file in record.files)
    assert totals.counts["rounds"] == sum(record.counts["rounds"] for record in records)
    assert totals.images_by_label == [4, 3, 3]


def test_a_record_that_cannot_be_believed_is_damaged(store):
    plan = plan_of(store)
    store.replace(layout.commit(0), store.read(layout.commit(0))[:-9])
    put(store, 1, rows=3)
    files = [{**file.model_dump(), "path": "data/../../elsewhere"} for file in record_of(store, 2).files]
    put(store, 2, files=files)
    committed = read_committed(store, plan)
    assert committed.records == {}
    assert {shard: text.split(":")[0] for shard, text in committed.damaged.items()} == {
        shard: layout.commit(shard) for shard in range(3)
    }
    for shard in range(3):
        with pytest.raises(DamagedCommit):
            read_record(store, plan, shard)


@pytest.mark.parametrize("name", ["00003.json", "0.json", "x.json", "00001.json.bak"])
def test_another_jobs_record_is_refused(store, name):
    store.create(f"{layout.COMMITS}/{name}", b"stray")
    with pytest.raises(SpecError, match="is no shard of this job"):
        read_committed(store, plan_of(store))


def test_another_plans_record_is_refused(store):
    put(store, 1, fingerprint="0" * 64)
    with pytest.raises(SpecError, match="belongs to a job with fingerprint 000000000000"):
        read_committed(store, plan_of(store))


def test_a_record_that_vanishes_meanwhile_is_not_there(store, monkeypatch):
    listed = store.list(layout.COMMITS)
    store.delete(layout.commit(1))
    monkeypatch.setattr(Store, "list", lambda _self, _prefix: listed)
    assert list(read_committed(store, plan_of(store)).records) == [0, 2]


@pytest.mark.parametrize("find", [find_missing, find_damage])
@pytest.mark.parametrize("what", ["delete", "shorten"])
@pytest.mark.parametrize("file", [0, 1])
def test_files_that_are_gone_or_short_are_found(store, find, what, file):
    committed = read_committed(store, plan_of(store))
    path = layout.parts(1, 3)[file]
    if what == "delete":
        store.delete(path)
    else:
        store.replace(path, store.read(path)[:-1])
    find(store, committed)
    assert list(committed.damaged) == [1] and committed.damaged[1].startswith(f"{path}: ")
    assert void_damaged(store, plan_of(store), committed) == {1: 1}
    assert list(committed.records) == [0, 2]


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_other_bytes_are_found_by_reading(store, budget, monkeypatch):
    monkeypatch.setattr(commits, "_BYTES", budget)
    committed = read_committed(store, plan_of(store))
    path = layout.data(2, 3)
    whole = store.read(path)
    store.replace(path, whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    find_missing(store, committed)
    assert committed.damaged == {}
    find_damage(store, committed)
    assert list(committed.damaged) == [2]


def test_only_a_few_files_are_held_at_a_time(store, monkeypatch):
    begun: list[int] = []

    def items():
        for item in range(50):
            begun.append(item)
            yield item

    results = commits._in_threads(lambda item: item * 2, items(), 3)
    for expected in range(50):
        assert next(results) == 2 * expected
        assert len(begun) <= expected + 5


def test_little_stays_of_a_record(tmp_path):
    """O(shards) small state: a few hundred bytes a shard, whatever its record holds."""
    pair = str(make_tiny_pair(tmp_path / "pair"))
    plan = make_plan(make_spec({"pair": pair, "requests": {"count": 4000}, "shard_size": 4, "method": "null"}))
    files = [{"path": path, "bytes": 9, "sha256": "a" * 64, "rows": 4} for path in layout.parts(0, 1000)[:2]]
    content = {
        **{"attempt": 0, "worker": "w", "fingerprint": plan.fingerprint, "rows": 4, "first_id": "", "last_id": ""},
        **{"started": "2026-01-01T00:00:00+00:00", "wall_seconds": 1.0, "seconds": {}, "counts": {"rounds": 4}},
        **{"tested_by_index": (), "accepted_by_index": (), "certificate_sum": None, "agreeing_by_label": None},
        **{
            "tested_by_token": (0,) * 256,
            "accepted_by_token": (0,) * 256,
            "images_by_label": (2, 1, 1),
            "files": files,
        },
    }
    store = Store(str(tmp_path / "out"))
    for shard in range(1000):
        for file, path in zip(files, layout.parts(shard, 1000), strict=False):
            file["path"] = path
        record = CommitRecord.model_validate({**content, "shard": shard})
        sealed = canonical_json(seal(record.model_dump(mode="json")))
        path = tmp_path / "out" / layout.commit(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sealed)
    tracemalloc.start()
    totals = Totals()
    committed = read_committed(store, plan, totals.add)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(committed.records) == totals.shards == 1000
    assert kept < 1000 * 1000
