from __future__ import annotations

import json
import uuid
from itertools import islice
from pathlib import Path

import pytest

from jobs.job.plan import (
    check_weights,
    differences,
    make_plan,
    parse_plan,
    read_plan,
    store_plan,
    stored_plan,
    task_of,
)
from jobs.job.spec import fingerprint_of, make_spec
from jobs.words.errors import SpecError
from spd_core.draws import image_seed
from spd_core.pairs.pair import PairError
from tests.tiny_causal import make_tiny_causal_pair
from tests.tiny_codes import make_tiny_code_pair
from tests.tiny_pair import CLASSES, make_tiny_pair
from workers import layout
from workers.redact import public_url
from workers.sealed import canonical_json, seal
from workers.store import Store


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


@pytest.fixture
def store() -> Store:
    return Store(f"memory://{uuid.uuid4().hex}/out")


def plan_of(pair: str, **fields: object):
    return make_plan(make_spec({"pair": pair, "method": "null", **fields}))


def test_tasks_cover_every_request_once_in_order(pair):
    plan = plan_of(pair, requests={"count": 11}, shard_size=4, seed=7)
    tasks = [task_of(plan, shard, 2) for shard in range(plan.shards)]
    ids = [name for task in tasks for name in task.request_ids]
    assert ids == [f"{i:08d}" for i in range(11)]
    assert [label for task in tasks for label in task.labels] == [i % len(CLASSES) for i in range(11)]
    assert [seed for task in tasks for seed in task.seeds] == [image_seed(7, name) for name in ids]
    assert {task.attempt for task in tasks} == {2}


def test_given_labels_repeat(pair):
    plan = plan_of(pair, requests={"count": 5, "labels": [2, 0]}, shard_size=2)
    assert [label for shard in range(3) for label in task_of(plan, shard, 0).labels] == [2, 0, 2, 0, 2]


def test_images_keep_their_draws_at_another_shard_size(pair):
    one, other = (plan_of(pair, requests={"count": 12}, shard_size=size) for size in (3, 5))
    seeds = [[s for k in range(p.shards) for s in task_of(p, k, 0).seeds] for p in (one, other)]
    assert seeds[0] == seeds[1]


def test_a_plan_of_a_billion_images_is_small_and_streams(pair):
    plan = plan_of(pair, requests={"count": 10**9}, shard_size=1000)
    assert len(plan.to_bytes()) < 10_000
    tasks = islice((task_of(plan, shard, 0) for shard in range(plan.shards)), 2)
    assert [task.request_ids[0] for task in tasks] == ["00000000", "00001000"]
    assert task_of(plan, plan.shards - 1, 0).request_ids[-1] == "999999999"


def test_stored_plan_round_trips_and_holds_no_secret(pair, store):
    secret = {"output": "s3://me:hunter2@bucket/x", "storage_options": {"secret": "s3cr3t"}}
    spec = make_spec({"pair": pair, "method": "plain", **secret})
    plan = store_plan(store, make_plan(spec))
    raw = store.read(layout.PLAN)
    assert read_plan(store).model_copy(update={"sha256": ""}) == plan
    assert b"s3cr3t" not in raw and b"hunter2" not in raw and b"storage_options" not in raw
    assert plan.to_bytes() == raw


@pytest.mark.parametrize(
    ("url", "shown"),
    [("s3://a:b@host/x", "s3://host/x"), ("/tmp/a@b", "/tmp/a@b"), ("file:///tmp/x", "file:///tmp/x")],
)
def test_public_url(url, shown):
    assert public_url(url) == shown


@pytest.mark.parametrize("change", [{"rows": 3}, {"fingerprint": "0" * 64}, {"shards": 9}])
def test_a_plan_that_contradicts_itself_is_no_plan(pair, change):
    raw = json.loads(plan_of(pair).to_bytes())
    assert parse_plan(canonical_json(raw)) is not None
    assert parse_plan(canonical_json(seal({**raw, **change}))) is None


def test_a_plan_of_before_head_steps_could_fall_is_resumed(pair, store):
    raw = json.loads(plan_of(pair).to_bytes())
    del raw["spec"]["law"]["head_schedule"], raw["spec"]["law"]["head_steps_end"]
    store.create(layout.PLAN, canonical_json(seal({**raw, "sha256": ""})))
    assert store_plan(store, plan_of(pair)).created == raw["created"]
    with pytest.raises(SpecError, match=r"law.head_schedule: got 'linear', stored 'nothing'"):
        store_plan(store, plan_of(pair, law={"head_schedule": "linear", "head_steps": 4, "head_steps_end": 2}))


def test_a_plan_that_knew_fewer_fields_is_read_and_keeps_its_fingerprint(pair, store):
    """As a version wrote it that had no top-k and no request files; what it lacks is at today's default."""
    raw = json.loads(plan_of(pair).to_bytes())
    del raw["spec"]["law"]["top_k"], raw["spec"]["requests"]["sha256"], raw["spec"]["requests"]["file"]
    raw["fingerprint"] = fingerprint_of(raw["spec"], raw["pair_sha256"], raw["results"])
    store.create(layout.PLAN, canonical_json(seal(raw)))
    stored = read_plan(store)
    assert (stored.fingerprint, stored.stored_spec) == (raw["fingerprint"], raw["spec"])
    assert (stored.spec.law.top_k, stored.spec.requests.file) == (plan_of(pair).spec.law.top_k, None)
    with pytest.raises(SpecError, match=r"law\.top_k: got 0, stored 'nothing'"):
        store_plan(store, plan_of(pair))


def test_resume_keeps_the_stored_plan_when_only_workers_and_output_change(pair, store):
    first = store_plan(store, plan_of(pair))
    again = store_plan(store, plan_of(pair, workers={"count": 3}, output="elsewhere"))
    assert again.created == first.created
    assert again.spec.workers.count == 0


def test_resume_with_another_spec_names_field_and_both_values(pair, store):
    store_plan(store, plan_of(pair, law={"num_iter": 8}))
    with pytest.raises(SpecError, match=r"law\.num_iter: got 4, stored 8; allowed: the stored value, or another out"):
        store_plan(store, plan_of(pair, law={"num_iter": 4}))


RELAXED = {"name": "speculative", "acceptance": {"rule": "annealed", "delta": 2.0}}


@pytest.mark.parametrize(("make", "method"), [(make_tiny_code_pair, "plain"), (make_tiny_causal_pair, RELAXED)])
def test_an_output_that_an_older_program_began_is_refused_by_name(store, tmp_path, make, method):
    """Codes were drawn by other numbers, and certificates were others; what neither changes is resumed, see below."""
    new = plan_of(str(make(tmp_path / "pair")), method=method)
    assert new.results == 2
    old = new.model_copy(update={"results": 1, "fingerprint": fingerprint_of(new.stored_spec, new.pair_sha256, 1)})
    raw = {key: value for key, value in old.model_dump(mode="json").items() if key != "results"}
    store.create(layout.PLAN, canonical_json(seal(raw)))
    assert read_plan(store).fingerprint == old.fingerprint != new.fingerprint
    with pytest.raises(SpecError, match=r"begun by an earlier version of spd \(results of version 1\), allowed"):
        store_plan(store, new)


def test_an_exact_output_of_paths_that_an_older_program_began_is_resumed(pair, store):
    new = plan_of(pair)
    raw = {key: value for key, value in new.model_dump(mode="json").items() if key != "results"}
    store.create(layout.PLAN, canonical_json(seal(raw)))
    assert store_plan(store, new).fingerprint == new.fingerprint


def test_other_weights_are_a_difference(pair, store, tmp_path):
    other = str(make_tiny_pair(tmp_path / "other", seed=5))
    found = differences(plan_of(pair), plan_of(other))
    assert sorted(line.split(":")[0] for line in found) == ["pair_sha256.draft", "pair_sha256.target"]


def test_a_damaged_plan_is_replaced(pair, store):
    plan = plan_of(pair)
    store_plan(store, plan)
    store.replace(layout.PLAN, store.read(layout.PLAN)[:-30])
    with pytest.raises(SpecError, match="damaged"):
        read_plan(store)
    assert stored_plan(store, plan) is None
    store_plan(store, plan)
    assert store.read(layout.PLAN) == plan.to_bytes()


def test_no_plan_is_no_job(store):
    with pytest.raises(SpecError, match=r"allowed: an output of `spd generate`"):
        read_plan(store)


def test_weights_are_checked_against_the_card(tmp_path):
    folder = make_tiny_pair(tmp_path / "pair")
    plan = plan_of(str(folder))
    check_weights(str(folder), plan.pair_sha256)
    path = Path(folder) / "draft.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(PairError, match=r"draft\.safetensors has sha256"):
        check_weights(str(folder), plan.pair_sha256)
    path.unlink()
    with pytest.raises(PairError, match="cannot read"):
        check_weights(str(folder), plan.pair_sha256)
