"""A metric that only this test registers is computed, aggregated and told like the others."""

from __future__ import annotations

import pytest
import torch

import tests.toy_metric
from jobs.words.phrases import quality_in_words
from spd_core.quality.evaluate import evaluate
from spd_core.quality.metrics import METRICS
from spd_core.quality.reference import load_reference
from tests.documented import code_of, shown_under
from tests.toy_metric import MeanDistance


def _figures():
    reference = load_reference("fashion-mnist")
    return evaluate(reference.features[:20] + 1.0, reference.labels[:20], None, "fashion-mnist")


def test_the_documented_metric_is_the_tested_one():
    assert shown_under("Adding a metric") == code_of(tests.toy_metric)


def test_an_added_metric_is_computed_and_told(monkeypatch):
    before = _figures().model_dump(mode="json")
    assert "mean_distance" not in before
    monkeypatch.setitem(METRICS, MeanDistance.name, MeanDistance())
    after = _figures().model_dump(mode="json")
    assert after == {**before, "mean_distance": after["mean_distance"]}
    assert after["mean_distance"] == pytest.approx(torch.ones(1280).norm().item(), rel=0.2)
    old, new = quality_in_words(before), quality_in_words(after)
    assert [row for row in new if row not in old] == [
        ("distance of the mean features", f"{after['mean_distance']:.3g}")
    ]
    assert len(new) == len(old) + 1, "a report of before has none to tell"


def test_the_bundled_metrics_are_told_as_before():
    quality = {
        "extractor": "features", "reference": "fashion-mnist", "n": 2000, "frechet": 123.456, "floor": 4.56789,
        "frechet_interval": [120.04, 125.06], "floor_spread": 0.1234, "floor_n": 1000, "kid": 0.01234,
        "kid_interval": None, "label_agreement": 0.9512, "label_agreement_interval": [0.94, 0.96], "classes": [],
    }  # fmt: skip
    assert quality_in_words(quality) == [
        ("gap: Frechet distance above the floor", "119 (95 % interval 115 to 121)"),
        ("Frechet distance to fashion-mnist at N = 2,000", "123.5 (95 % interval 120 to 125.1)"),
        ("floor: the same distance of 1,000 real images", "4.568 ± 0.12"),
        ("kernel distance (KID)", "0.0123"),
        ("label agreement", "95.1 % (95 % interval 94.0 % to 96.0 %)"),
        ("features", "features; these are not the published FID and KID"),
    ]
    fewer = quality_in_words({**quality, "kid": None, "label_agreement": None})
    assert [name for name, _ in fewer][3:] == ["features"]
