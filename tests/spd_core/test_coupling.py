"""Couplings, residuals and relaxed rules of `spd_core.accept.paths` as laws, with the mistakes that must be caught."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from spd_core.accept.lemma import accept, excess, judge, sample_residual
from spd_core.accept.paths import Gaussian, path_log_ratio, reflect
from spd_core.accept.rules import Annealed, Coupled, Couplings

ROWS = 40_000


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _reflected(mean_q, std_q, mean_p, std_p, seed=0):
    """Draft from q, coupled to p by reflection as if both had p's std."""
    generator = _generator(seed)
    draft = mean_q + std_q * torch.randn(ROWS, len(mean_q), generator=generator)
    noise = (draft - mean_q) / std_p
    shift = ((mean_q - mean_p) / std_p).expand_as(noise)
    accepted, result = reflect(noise, shift, torch.rand(ROWS, generator=generator))
    return accepted, mean_p + std_p * result, draft


def test_reflection_gives_the_target_and_accepts_as_often_as_any_coupling_can():
    mean_q, mean_p, std = torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.0, 0.1, 0.7]), torch.tensor([0.5, 1.0, 0.8])
    accepted, result, draft = _reflected(mean_q, std, mean_p, std)
    for value, mean, sigma in zip(result.unbind(dim=1), mean_p, std, strict=True):
        assert stats.kstest(((value - mean) / sigma).numpy(), "norm").pvalue > 1e-3
    whitened = (result - mean_p) / std
    assert torch.allclose(whitened.T.cov(), torch.eye(3), atol=0.03)
    # 1 - TV of two Gaussians of equal covariance.
    best = 2 * stats.norm.cdf(-0.5 * float(((mean_q - mean_p) / std).norm()))
    assert abs(accepted.float().mean() - best) < 4 * math.sqrt(0.25 / ROWS)
    assert torch.allclose(result[accepted], draft[accepted], atol=1e-5)


def test_reflection_with_unequal_stds_is_caught():
    mean_q, mean_p = torch.tensor([0.3]), torch.tensor([0.0])
    _, result, _ = _reflected(mean_q, torch.tensor([1.3]), mean_p, torch.tensor([1.0]))
    assert stats.kstest(result[:, 0].numpy(), "norm").pvalue < 1e-6


def test_reflection_of_equal_means_keeps_the_noise():
    noise = torch.randn(100, 4)
    accepted, result = reflect(noise, torch.zeros(100, 4), torch.rand(100, generator=_generator()))
    assert accepted.all()
    assert torch.equal(result, noise)


def _pair(rows=ROWS):
    p = Gaussian(torch.zeros(rows, 2), torch.tensor([1.0, 0.6]).expand(rows, 2))
    q = Gaussian(torch.tensor([0.4, -0.3]).expand(rows, 2), torch.tensor([1.3, 0.5]).expand(rows, 2))
    return p, q


def _maximally_coupled(p, q, seed=0, count=2, residual=sample_residual):
    generator = _generator(seed)
    draft = q.mean + q.std * torch.randn(ROWS, 2, generator=generator)
    accepted = accept(p.log_density(draft) - q.log_density(draft), torch.rand(ROWS, generator=generator))
    rejected = (~accepted).nonzero()[:, 0]

    def propose(at, attempt):
        wide_p, wide_q = (Gaussian(g.mean[at, None], g.std[at, None]) for g in (p, q))
        y = wide_p.mean + wide_p.std * torch.randn(len(at), count, 2, generator=generator)
        return y, wide_p.log_density(y) - wide_q.log_density(y), torch.rand(len(at), count, generator=generator)

    draft[rejected] = residual(rejected, propose)
    return accepted, draft


def test_unequal_stds_are_coupled_by_test_and_residual():
    p, q = _pair()
    accepted, result = _maximally_coupled(p, q)
    assert 0.3 < accepted.float().mean() < 0.95
    for value, sigma in zip(result.unbind(dim=1), (1.0, 0.6), strict=True):
        assert stats.kstest((value / sigma).numpy(), "norm").pvalue > 1e-3
    assert abs((result[:, 0] * result[:, 1]).mean()) < 4 * 0.6 / math.sqrt(ROWS)


def _capped(rows, propose):
    values, log_ratio, uniforms = propose(rows, 0)
    kept = -torch.expm1((-log_ratio).clamp(max=0.0)) > uniforms
    return values[torch.arange(len(rows)), kept.to(torch.uint8).argmax(dim=1)]


def _of_p(rows, propose):
    return propose(rows, 0)[0][:, 0]


@pytest.mark.parametrize("residual", [_capped, _of_p], ids=["capped", "samples of p"])
def test_wrong_residuals_are_caught(residual):
    p, q = _pair()
    _, result = _maximally_coupled(p, q, residual=residual)
    worst = min(stats.kstest((v / s).numpy(), "norm").pvalue for v, s in zip(result.unbind(1), (1.0, 0.6), strict=True))
    assert worst < 1e-4


def test_residual_names_order_padding_and_nan():
    """Values come back in the order of the rows' names; -inf is never taken, inf always, NaN is an error."""
    names = torch.tensor([7, 2, 5])

    def propose(rows, attempt):
        log_ratio = torch.full((len(rows), 2), -math.inf)
        log_ratio[rows <= 2 + 3 * attempt, 1] = math.inf
        return torch.stack([rows * 0 - 1, rows], dim=1).float(), log_ratio, torch.full((len(rows), 2), 0.999)

    assert sample_residual(names, propose).tolist() == [7, 2, 5]
    with pytest.raises(FloatingPointError):
        sample_residual(names, lambda rows, _: (torch.zeros(3, 1), torch.full((3, 1), math.nan), torch.zeros(3, 1)))


def test_path_log_ratio_is_that_of_the_densities():
    own, other, std = torch.randn(3, 5, 2), torch.randn(3, 5, 2), torch.rand(3, 5, 1) + 0.5
    noise = torch.randn(3, 5, 2)
    y = own + std * noise
    expected = torch.distributions.Normal(other, std).log_prob(y) - torch.distributions.Normal(own, std).log_prob(y)
    assert torch.allclose(path_log_ratio(noise, (own - other) / std), expected.sum(dim=(1, 2)), atol=1e-4)


def test_annealed_weights_fall_and_never_cost_acceptance():
    weights = Annealed(delta=3.0).log_weight(torch.arange(5))
    assert weights[0] == pytest.approx(math.log(3))
    assert (weights.diff() <= 0).all()
    assert weights[-1] == 0
    lossless = judge(torch.tensor([-1.0, 2.0]), torch.tensor([-1.0, 2.0]), torch.tensor([0.3, 0.9]))
    assert lossless.accepted.tolist() == [True, True]
    assert (lossless.excess == 0).all()


@pytest.mark.parametrize("delta", [1.2, 2.0, 5.0])
def test_certificate_is_the_total_variation(delta):
    """On a toy where the law of the output can be integrated: mean excess = TV(output, p), within its interval."""
    x = torch.linspace(-9, 9, 60_001, dtype=torch.float64)
    step = float(x[1] - x[0])
    p = torch.distributions.Normal(0.0, 1.0).log_prob(x).exp()
    q = torch.distributions.Normal(0.7, 1.2).log_prob(x).exp()
    kept = torch.minimum(q, delta * p)
    residual = (p - q).clamp(min=0) / ((p - q).clamp(min=0).sum() * step)
    output = kept + (1 - kept.sum() * step) * residual
    distance = 0.5 * float((output - p).abs().sum() * step)
    drafts = 0.7 + 1.2 * torch.randn(ROWS, generator=_generator())
    log_ratio = torch.distributions.Normal(0.0, 1.0).log_prob(drafts) - torch.distributions.Normal(0.7, 1.2).log_prob(
        drafts
    )
    share = excess(log_ratio, log_ratio + math.log(delta))
    assert ((share >= 0) & (share <= 1)).all()
    assert abs(float(share.mean()) - distance) < 4 * float(share.std()) / math.sqrt(ROWS)


def test_coupled_rule_measures_the_distance():
    drafted, coupled = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]]), torch.zeros(3, 2)
    verdict = Coupled(radius=2.0).judge(Couplings(drafted=drafted, coupled=coupled))
    assert verdict.accepted.tolist() == [True, False, True]
    assert verdict.log_ratio[0] == math.inf
    assert verdict.log_ratio[1] == pytest.approx(math.log(0.4))
    assert verdict.excess.isnan().all()
