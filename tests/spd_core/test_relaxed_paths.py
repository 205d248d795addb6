"""The law of relaxed decoding over paths, predicted by importance weighting, and the mistakes that must be caught.

A model of one token. With R = p/q of the draft's path and f = min(1, w R), expectations under the relaxed law r are

    E_r[g] = E_q[f g] + (1 - E_q[f]) (E_p[g] - E_q[min(1, R) g]) / (1 - E_q[min(1, R)]),

the last fraction being that of the lossless residual. Plain decoding samples p; relaxed decoding with a weight that
keeps every draft samples q, and its records tell R.
"""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from spd_core.accept import lemma, rules
from spd_core.accept.certificate import bounds, image_certificates, log_weights
from spd_core.decode.log import Decoded
from spd_core.draws import Draws
from spd_core.families.causal import speculation as speculative
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.causal.tokens import decode_causal_plain
from spd_core.law import Acceptance, Speculative
from tests.tiny_causal import CONFIG, LAW, perturbed, tiny_causal

IMAGES = 40_000
ONE = CONFIG.model_copy(update={"img_size": 1})
WEIGHT = 3.0
RELAXED = Speculative(gamma=1, stride=1, proposals=2, acceptance=Acceptance(rule="annealed", delta=WEIGHT))
ALL_KEPT = RELAXED.model_copy(update={"acceptance": Acceptance(rule="annealed", delta=1e6)})


@pytest.fixture(scope="module")
def models():
    target = tiny_causal(ONE)
    return target, perturbed(target, 0.04)


def _inputs(seed):
    return torch.zeros(IMAGES, dtype=torch.int64), Draws(torch.arange(IMAGES) + seed * 10**6)


def _functions(tokens):
    """[n, F] of tokens [n, 2]: coordinates, their squares and product, and a wave."""
    a, b = tokens[:, 0].double(), tokens[:, 1].double()
    return torch.stack([a, b, a * a, b * b, a * b, torch.cos(2 * a), torch.cos(2 * b)], dim=1)


@torch.inference_mode()
def _decoded(models, method, seed) -> Decoded:
    return decode_speculative(*models, LAW, method, *_inputs(seed))


def _predicted(of_p, of_q, log_ratio, weight):
    """Expectations [F] under the relaxed law."""
    f, plain = (log_ratio.double() + math.log(weight)).clamp(max=0).exp(), log_ratio.double().clamp(max=0).exp()
    residual = (of_p.mean(dim=0) - (plain[:, None] * of_q).mean(dim=0)) / (1 - plain.mean())
    return (f[:, None] * of_q).mean(dim=0) + (1 - f.mean()) * residual


@pytest.fixture(scope="module")
def known(models):
    """Functions of p's tokens and of q's, and log R of the latter."""
    with torch.inference_mode():
        plain = decode_causal_plain(models[0], LAW, *_inputs(0)).tokens[:, 0]
    drafted = _decoded(models, ALL_KEPT, 1)
    assert drafted.drafts.accepted.float().mean() > 0.9999, "but for rounding it samples q"
    order = drafted.drafts.image.argsort()
    return _functions(plain), _functions(drafted.tokens[:, 0]), drafted.drafts.log_ratio[order]


def _z(known, decoded, weight=WEIGHT):
    """Largest difference between a sample and the prediction, in standard errors of both (those of 20 parts)."""
    of_p, of_q, log_ratio = known
    of_r = _functions(decoded.tokens[:, 0])
    difference = of_r.mean(dim=0) - _predicted(of_p, of_q, log_ratio, weight)
    parts = zip(of_p.chunk(20), of_q.chunk(20), log_ratio.chunk(20), of_r.chunk(20), strict=True)
    apart = torch.stack([r.mean(dim=0) - _predicted(p, q, ratio, weight) for p, q, ratio, r in parts])
    return float((difference / (apart.std(dim=0) / math.sqrt(20))).abs().max())


@pytest.mark.parametrize("windows", [(), (3, 2)], ids=["walk", "windows"])
def test_the_relaxed_law_is_the_predicted_one(models, known, windows):
    decoded = _decoded(models, RELAXED.model_copy(update={"head_window": windows}), 2)
    assert 0.2 < decoded.drafts.accepted.float().mean() < 0.9, "the test needs both outcomes"
    assert _z(known, decoded) < 5
    assert _z(known, decoded, weight=1.0) > 6, "it is not the target's"


def test_the_lossless_law_is_the_predicted_one(models, known):
    lossless = _decoded(models, RELAXED.model_copy(update={"acceptance": Acceptance()}), 3)
    assert _z(known, lossless, weight=1.0) < 5
    assert _z(known, lossless) > 6


def test_the_certificate_is_the_total_variation(models, known):
    """Of one token: E_q[f - min(1, R)], which the drafts' excess and the images' certificates estimate."""
    drafts = _decoded(models, RELAXED, 2).drafts
    log_ratio = known[2].double()
    f, plain = (log_ratio + math.log(WEIGHT)).clamp(max=0).exp(), log_ratio.clamp(max=0).exp()
    exact, error = float((f - plain).mean()), float((f - plain).std()) / math.sqrt(IMAGES)
    assert float(drafts.excess.mean()) == pytest.approx(exact, abs=6 * error)
    weights = log_weights(drafts.log_ratio.numpy(), drafts.accepted.numpy(), drafts.excess.numpy())
    certificates = image_certificates(drafts.image.numpy(), weights, IMAGES)
    found = bounds(IMAGES, certificates.sum(), (certificates**2).sum())
    assert found.mean == pytest.approx(exact, abs=10 * error)
    assert found.low < exact < found.high


def _of_the_weighted_ratio(rows, propose):
    """The residual Norm[(w p - q)_+]: what one finds by putting the relaxed ratio where the ratio belongs."""

    def weighted(at, attempt):
        values, log_ratio, uniforms = propose(at, attempt)
        return values, log_ratio + math.log(WEIGHT), uniforms

    return lemma.sample_residual(rows, weighted)


def _of_p(rows, propose):
    return propose(rows, 0)[0][:, 0]


@pytest.mark.parametrize("residual", [_of_the_weighted_ratio, _of_p], ids=["of the weighted ratio", "samples of p"])
def test_a_wrong_residual_is_caught(models, known, residual):
    with patch.object(speculative, "sample_residual", residual):
        assert _z(known, _decoded(models, RELAXED, 2)) > 6


def _spoilt(change):
    def judge(*tested):
        verdict = lemma.judge(*tested)
        return replace(verdict, excess=change(verdict))

    return judge


EXCESS = {
    "halved": lambda verdict: verdict.excess / 2,
    "of accepted drafts only": lambda verdict: torch.where(verdict.accepted, verdict.excess, 0.0),
    "of the accepted share": lambda verdict: verdict.accepted.float() - verdict.log_ratio.clamp(max=0).exp(),
}


@pytest.mark.parametrize("name", EXCESS)
def test_a_wrong_excess_is_caught(models, known, name):
    with patch.object(rules, "judge", _spoilt(EXCESS[name])), pytest.raises(AssertionError):
        test_the_certificate_is_the_total_variation(models, known)
