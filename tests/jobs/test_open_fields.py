"""Fields that follow from device or version where a spec does not give them, and what a resume makes of them."""

from __future__ import annotations

import uuid

import pytest

from jobs.job.plan import as_planned, make_plan, store_plan
from jobs.job.spec import FixedSpec, fingerprint_of, make_spec
from jobs.words.errors import SpecError
from tests.tiny_pair import make_tiny_pair
from workers import layout
from workers.sealed import canonical_json, seal
from workers.store import Store

GPU = {"workers": {"num_gpus": 1}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


@pytest.fixture
def store() -> Store:
    return Store(f"memory://{uuid.uuid4().hex}/out")


def spec_of(pair: str, **fields: object) -> FixedSpec:
    spec = make_spec({"pair": pair, "method": "null", **fields})
    assert isinstance(spec, FixedSpec)
    return spec


def test_batches_and_shards_are_larger_on_a_gpu_unless_they_are_given(pair):
    on_cpu, on_gpu = spec_of(pair), spec_of(pair, **GPU)
    given = spec_of(pair, **GPU, batch=7, shard_size=9)
    assert (on_cpu.batch, on_cpu.shard_size) == (32, 64)
    assert (on_gpu.batch, on_gpu.shard_size) == (256, 512)
    assert (given.batch, given.shard_size) == (7, 9)
    assert given.open_fields == {"image.effort"}


def test_a_job_begun_on_a_cpu_is_resumed_on_a_gpu(pair, store):
    plan = make_plan(spec_of(pair, image={"format": "webp", "effort": "small"}))
    store_plan(store, plan)
    resumed = as_planned(spec_of(pair, **GPU, image={"format": "webp"}), store)
    assert make_plan(resumed).fingerprint == plan.fingerprint
    assert (resumed.batch, resumed.shard_size, resumed.image.effort) == (32, 64, "small")
    with pytest.raises(SpecError, match="batch: got 8, stored 32"):
        store_plan(store, make_plan(as_planned(spec_of(pair, **GPU, image={"format": "webp"}, batch=8), store)))


def test_a_plan_that_knows_no_effort_resumes_as_it_was_made(pair, store):
    """As a version wrote it whose images were what Pillow makes when told nothing."""
    plan = make_plan(spec_of(pair, image={"effort": "small"}))
    old = plan.model_dump(mode="json")
    del old["spec"]["image"]["effort"], old["spec"]["method"]["images_per_s"]
    assert fingerprint_of(old["spec"], plan.pair_sha256, plan.results) == plan.fingerprint
    assert make_plan(spec_of(pair)).fingerprint != plan.fingerprint
    store.create(layout.PLAN, canonical_json(seal(old)))
    resumed = as_planned(spec_of(pair), store)
    assert resumed.image.effort == "small"
    assert store_plan(store, make_plan(resumed)).fingerprint == plan.fingerprint
