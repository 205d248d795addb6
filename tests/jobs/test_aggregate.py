from __future__ import annotations

import datetime
from dataclasses import asdict

import pytest

from jobs.dataset.aggregate import acceptance, aggregate, certificate, classes, cost, counts, quality, throughput
from jobs.dataset.commits import DamagedPart, read_committed
from jobs.dataset.totals import Totals
from jobs.job.plan import make_plan
from jobs.job.spec import make_spec
from spd_core.accept.certificate import bounds
from tests.jobs.tree import make_shards, tree_spec
from tests.tiny_pair import make_tiny_pair
from workers.records import CommitRecord
from workers.store import Store

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def record(shard: int, start: float, wall: float, worker: str = "a", **fields: object) -> CommitRecord:
    return CommitRecord(
        **{
            "shard": shard,
            "attempt": 0,
            "worker": worker,
            "fingerprint": "f",
            "rows": 10,
            "first_id": "",
            "last_id": "",
            "files": (),
            "started": (EPOCH + datetime.timedelta(seconds=start)).isoformat(),
            "wall_seconds": wall,
            "seconds": {"head": wall / 2},
            "counts": {"rounds": 20, "accepted": 3, "drafted": 4},
            "tested_by_index": (2, 2),
            "accepted_by_index": (2, 1),
            "tested_by_token": (4, 0, 0, 0),
            "accepted_by_token": (3, 0, 0, 0),
            "certificate_sum": None,
            "images_by_label": (5, 5, 0),
            "agreeing_by_label": None,
            **fields,
        }
    )


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    pair = str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))
    raw = {"pair": pair, "method": "cspd", "requests": {"count": 30}, "workers": {"price_per_hour": 36.0}}
    spec = make_spec({**raw, "shard_size": 10})
    return make_plan(spec).model_copy(update={"created": (EPOCH - datetime.timedelta(seconds=5)).isoformat()})


def test_activity_leaves_out_the_pause_between_two_runs():
    when = Totals.of([record(0, 0, 10), record(1, 4, 10, "b"), record(2, 1000, 6)]).activity()
    assert when.active_seconds == pytest.approx(14 + 6)
    assert when.worker_seconds == pytest.approx(26)
    assert when.workers == 2


def test_one_worker_after_another_is_one_worker():
    assert Totals.of([record(0, 0, 10), record(1, 10, 10)]).activity().workers == 1


def test_shards_that_overlap_in_one_worker_count_once():
    when = Totals.of([record(0, 0, 10), record(1, 4, 10), record(2, 30, 5), record(3, 12, 4, "b")]).activity()
    assert when.by_worker == pytest.approx({"a": 14 + 5, "b": 4})
    assert when.workers == 2
    assert when.active_seconds == pytest.approx(16 + 5)


def test_stages_at_work_come_to_more_than_one_where_they_overlap(plan):
    spans = {"head": 8.0, "codec": 1.0, "encode": 15.0, "upload": 2.0}
    held = [{"host": 5, "device": 9}, {"host": 7, "device": 8}]
    records = [record(0, 0, 10, seconds=spans, memory=held[0]), record(1, 5, 15, seconds=spans, memory=held[1])]
    speed = throughput(plan, Totals.of(records))
    assert speed["worker_seconds"] == pytest.approx(20)
    assert speed["at_work"] == pytest.approx({"decoder": 18 / 20, "encode": 30 / 20, "upload": 4 / 20})
    assert speed["seconds"]["other"] == 0
    assert speed["peak_memory"] == {"host": 7, "device": 9}


def test_throughput_adds_up(plan):
    speed = throughput(plan, Totals.of([record(0, 0, 10), record(1, 0, 6, "b"), record(2, 10, 4)]))
    assert speed["images_per_s"] == pytest.approx(30 / 14)
    assert speed["images_per_s_per_worker"] == pytest.approx(30 / 20)
    assert speed["images_per_s_per_gpu"] is None
    assert speed["warm_up_seconds"] == pytest.approx(5)
    assert speed["idle_seconds"] == pytest.approx(2 * 14 - 20)
    assert speed["seconds"] == pytest.approx({"head": 10, "other": 10})
    assert {row["worker"]: row["images"] for row in speed["by_worker"]} == {"a": 20, "b": 10}
    price = cost(plan, speed, 30)
    assert price is not None
    assert price["per_1000_images"] == pytest.approx(36 * 2 * (14 + 5) / 3600 / 30 * 1000)


def test_acceptance_and_counts():
    records = [record(0, 0, 1), record(1, 1, 1, tested_by_index=(1,), accepted_by_index=(0,))]
    found = acceptance(Totals.of(records))
    assert found is not None
    assert found["by_index"] == [pytest.approx(2 / 3), 0.5]
    assert found["rate"] == pytest.approx(3 / 5)
    assert found["by_token"] == [0.75, None, None, None]
    assert acceptance(Totals.of([record(0, 0, 1, tested_by_index=(), accepted_by_index=())])) is None
    totals = counts(Totals.of(records))
    assert totals["per_image"]["rounds"] == 2
    assert totals["tokens_per_round"] == pytest.approx(20 * 4 / 40)


def test_certificate_is_a_mean_over_images():
    billed = [
        record(i, i, 1, certificate_sum=v, certificate_square_sum=v / 4, excess_sum=2 * v) for i, v in enumerate((1, 2))
    ]
    found = certificate(Totals.of(billed), "tv")
    assert found is not None
    assert found == {**asdict(bounds(20, 3.0, 0.75)), "images": 20, "excess_per_token": 6 / (20 * 4)}
    assert certificate(Totals.of(billed), "exact") is None
    assert certificate(Totals.of([*billed, record(2, 2, 1)]), "tv") is None
    older = record(2, 2, 1, certificate_sum=1.0)
    assert certificate(Totals.of([*billed, older]), "tv") is None, "a sum of excess is no sum of certificates"


def test_classes_count_agreement(plan):
    seen = [record(0, 0, 1, agreeing_by_label=(4, 5, 0)), record(1, 0, 1, agreeing_by_label=(1, 0, 0))]
    rows = classes(plan, Totals.of(seen))
    assert [(row["images"], row["agreeing"]) for row in rows] == [(10, 5), (10, 5), (0, 0)]
    assert {row["agreeing"] for row in classes(plan, Totals.of([seen[0], record(1, 0, 1)]))} == {None}


def test_nothing_committed_is_a_partial_report(plan):
    report = aggregate(Store("memory://nothing"), plan, [], Totals())
    assert report["partial"] and report["images"]["committed"] == 0
    assert "throughput" not in report


def test_quality_reads_the_features_that_were_written(tmp_path):
    spec = tree_spec(tmp_path, method="null", requests={"count": 60}, shard_size=25, features=True)
    plan, store = make_plan(spec), Store(spec.output)
    make_shards(store, spec, plan)
    shards = list(read_committed(store, plan).records.values())
    compared = plan.model_copy(update={"pair": plan.pair.model_copy(update={"reference": "fashion-mnist"})})
    found = quality(store, compared, shards, 60)
    assert found["n"] == 60 and found["frechet"] > found["floor"] > 0
    assert found["label_agreement"] is None, "the tiny pair names no classifier"
    assert [row["images"] for row in found["classes"]] == [20] * 3 + [0] * 7


def test_a_flipped_bit_of_a_feature_is_no_distance(tmp_path):
    """It moved one from 3,940 to 28,138."""
    spec = tree_spec(tmp_path, method="null", requests={"count": 60}, shard_size=25, features=True)
    plan, store = make_plan(spec), Store(spec.output)
    make_shards(store, spec, plan)
    shards = list(read_committed(store, plan).records.values())
    path = shards[1].paths[2]
    raw = store.read(path)
    store.replace(path, raw[:999] + bytes([raw[999] ^ 64]) + raw[1000:])
    compared = plan.model_copy(update={"pair": plan.pair.model_copy(update={"reference": "fashion-mnist"})})
    with pytest.raises(DamagedPart, match=r"_features/part-00001-of-00003\.parquet: sha256"):
        quality(store, compared, shards, 60)


def test_quality_is_of_the_first_images(tmp_path, monkeypatch):
    spec = tree_spec(tmp_path, method="null", requests={"count": 80}, shard_size=25, features=True)
    plan, store = make_plan(spec), Store(spec.output)
    make_shards(store, spec, plan)
    shards = list(read_committed(store, plan).records.values())
    compared = plan.model_copy(update={"pair": plan.pair.model_copy(update={"reference": "fashion-mnist"})})
    monkeypatch.setattr("jobs.dataset.aggregate.QUALITY_IMAGES", 60)
    some = quality(store, compared, shards, 80)
    monkeypatch.setattr("jobs.dataset.aggregate.QUALITY_IMAGES", 50_000)
    assert some["n"] == 60 and some == quality(store, compared, shards, 60)
    assert quality(store, compared, shards, 80)["n"] == 80


def test_quality_says_why_it_is_skipped(plan):
    store = Store("memory://nothing")
    assert "no reference" in quality(store, plan, [], 10)["skipped"]
    compared = plan.model_copy(update={"pair": plan.pair.model_copy(update={"reference": "fashion-mnist"})})
    assert "10 images are too few" in quality(store, compared, [], 10)["skipped"]
