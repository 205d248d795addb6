"""A batch is tried before the plan, and a job that runs out of memory ends at once; a stand-in runs out of it."""

from __future__ import annotations

import pytest
import torch

from jobs.job.plan import read_plan
from jobs.job.spec import make_spec
from jobs.run import driver, fit
from jobs.run.fit import fitted, is_to_be_fitted
from jobs.words.errors import SpecError
from spd_core.decode import decode
from tests.faults.inline_ray import InlineRay, inline_ray
from tests.tiny_pair import make_tiny_pair
from workers.store import Store

MOST = 4  #: images that fit


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


@pytest.fixture
def small_device(monkeypatch) -> list[int]:
    """A device that holds four images; the batches tried."""
    tried: list[int] = []

    def limited(pair, law, method, labels, draws, slots):
        tried.append(slots)
        if slots > MOST:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return decode(pair, law, method, labels, draws, slots)

    monkeypatch.setattr("workers.trial.decode", limited)
    return tried


def spec_of(pair: str, output: object, **fields: object):
    raw = {"pair": pair, "output": str(output), "method": "plain", "features": False, "shard_size": 12}
    return make_spec({**raw, "requests": {"count": 24}, "workers": {"count": 1}, **fields})


def test_a_batch_that_was_not_given_is_halved_until_it_fits(pair, tmp_path, small_device):
    assert fitted(InlineRay(), spec_of(pair, tmp_path)).batch == 3
    assert small_device == [12, 6, 3]


def test_batch_auto_with_a_method_by_name_is_the_default_halved_until_it_fits(pair, tmp_path, small_device):
    spec = spec_of(pair, tmp_path, batch="auto")
    assert spec == spec_of(pair, tmp_path) and spec.batch == 32
    assert fitted(InlineRay(), spec).batch == 3


def test_a_batch_that_fits_stays(pair, tmp_path, small_device):
    assert fitted(InlineRay(), spec_of(pair, tmp_path, batch=4)).batch == 4
    assert small_device == [4]


def test_a_given_batch_that_does_not_fit_is_refused_by_name(pair, tmp_path, small_device):
    with pytest.raises(SpecError, match=r"^batch: got 5, which does not fit .*allowed: a smaller one"):
        fitted(InlineRay(), spec_of(pair, tmp_path, batch=5))
    assert small_device == [5]


def test_it_is_tried_on_a_gpu_before_there_is_a_plan(pair, tmp_path):
    cpu, gpu = (spec_of(pair, tmp_path / "out", workers={"num_gpus": gpus}) for gpus in (0, 1))
    store = Store(gpu.output)
    assert [is_to_be_fitted(spec, store) for spec in (cpu, gpu)] == [False, True]
    assert not is_to_be_fitted(spec_of(pair, tmp_path, workers={"num_gpus": 1}, method="null"), store)
    store.create("_run/plan.json", b"{}")
    assert not is_to_be_fitted(gpu, store)


def test_the_plan_holds_the_batch_that_fits_and_a_resume_keeps_it(pair, tmp_path, small_device, monkeypatch):
    monkeypatch.setattr(driver, "running_ray", inline_ray)
    monkeypatch.setattr(driver, "is_to_be_fitted", lambda spec, store: fit.is_to_be_fitted(on_gpu(spec), store))
    spec = spec_of(pair, tmp_path / "out")
    assert driver.generate(spec)["made"] == 24
    assert read_plan(Store(spec.output)).spec.batch == 3
    assert driver.generate(spec)["made"] == 0
    assert small_device == [12, 6, 3]


def on_gpu(spec):
    return spec.model_copy(update={"workers": spec.workers.model_copy(update={"num_gpus": 1.0})})
