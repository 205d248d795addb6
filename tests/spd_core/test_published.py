"""The published metrics: against the oracle's feature sets, closed forms, and their mistakes."""

from __future__ import annotations

import math

import pytest
import torch

from spd_core.quality import published
from spd_core.quality.published import chunks_in, chunks_of, inception_score, precision_recall, published_kid
from tests.oracles import inception as oracle_code
from tests.oracles.base import load_oracle
from tests.oracles.files import BUNDLED


def test_metrics_of_the_oracles_feature_sets_agree_to_1e_6():
    oracle = load_oracle(BUNDLED / "inception_fid.json")
    got = oracle_code.metrics(oracle.inputs.under("set"), oracle.config["sets"])
    for key, value in got.items():
        assert float(value) == pytest.approx(float(oracle.expected[key]), rel=1e-6), key


def test_inception_score_of_sure_and_even_predictions_is_the_number_of_classes():
    logits = 100 * torch.eye(8).repeat(5, 1)
    assert inception_score(logits, [slice(0, 40)]).mean == pytest.approx(8)
    assert inception_score(torch.zeros(40, 8), [slice(0, 40)]).mean == pytest.approx(1)


def test_a_file_sorted_by_class_breaks_the_score_in_file_order():
    logits = 100 * torch.eye(8).repeat_interleave(5, dim=0)
    assert inception_score(logits, chunks_of(40, 5)).mean == pytest.approx(1)
    assert inception_score(logits[torch.randperm(40)], chunks_of(40, 20)).mean > 5


def test_chunks_cover_every_image_once():
    for cut in (chunks_of(23, 5), chunks_in(23, 4)):
        assert [i for chunk in cut for i in range(*chunk.indices(23))] == list(range(23))
    assert chunks_of(23, 5)[-1] == slice(20, 23)
    with pytest.raises(ValueError, match="at least one a chunk"):
        inception_score(torch.zeros(3, 2), chunks_in(3, 10))


def test_precision_and_recall_tell_a_lost_mode_from_a_foreign_one():
    torch.manual_seed(0)
    left, right = torch.randn(200, 4) - 20, torch.randn(200, 4) + 20
    both = torch.cat([left, right])
    lost = precision_recall(both, left + 0.01 * torch.randn(200, 4))
    assert lost.precision > 0.9 and lost.recall == pytest.approx(0.5, abs=0.05)
    foreign = precision_recall(left, both)
    assert foreign.recall > 0.9 and foreign.precision == pytest.approx(0.5, abs=0.05)


def test_a_ball_reaches_to_the_third_other_image():
    line = torch.arange(8.0)[:, None]
    # Balls around 0 and 7 reach to 3 images on one side, those inside only to 2.
    assert precision_recall(line, torch.tensor([[-2.9], [-3.1], [9.9], [10.1]])).precision == 0.5


def test_rows_computed_at_once_do_not_change_the_figures(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(1)
    x, y = torch.randn(50, 6), torch.randn(40, 6)
    whole = precision_recall(x, y)
    monkeypatch.setattr(published, "ROWS", 7)
    assert precision_recall(x, y) == whole


def test_kid_of_one_distribution_is_near_zero_and_of_two_is_not():
    torch.manual_seed(2)
    x, y = torch.randn(300, 8), torch.randn(300, 8)
    same, shifted = published_kid(x, y, subsets=20, size=100), published_kid(x, y + 1, subsets=20, size=100)
    assert abs(same.mean) < 4 * same.std / math.sqrt(20) + 0.05
    assert shifted.mean > 10 * abs(same.mean)


@pytest.mark.parametrize(
    "call",
    [lambda x: published_kid(x, x), lambda x: precision_recall(x[:3], x), lambda x: inception_score(x, [])],
    ids=["kid", "precision", "score"],
)
def test_too_few_images_are_said(call):
    with pytest.raises(ValueError, match="images: got"):
        call(torch.randn(10, 4))
