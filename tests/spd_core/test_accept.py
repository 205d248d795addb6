"""Acceptance, thinning and resampling as laws, with the mistakes that must be caught."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from spd_core.accept.cspd import (
    PROPOSAL_ROUNDS,
    log_path_factor,
    resample_modified,
    resample_released,
    tempered_log_ratio,
    thinning,
)
from spd_core.accept.lemma import accept, num_accepted
from spd_core.accept.paths import Gaussian

ROWS = 20_000


def _gaussians(shift: float = 0.8, width: float = 1.3, rows: int = ROWS):
    p = Gaussian(torch.zeros(rows, 1), torch.ones(rows, 1))
    return p, Gaussian(torch.full((rows, 1), shift), torch.full((rows, 1), width))


def _generator(seed: int = 0):
    return torch.Generator().manual_seed(seed)


def _propose(dims: int, generator):
    def propose(rows, attempt, count):
        return torch.randn(len(rows), count, dims, generator=generator), torch.rand(
            len(rows), count, generator=generator
        )

    return propose


def _modified_cdf(log_factor: float, shift: float, width: float):
    """CDF of Norm[(F p - q)_+] on a fine grid, by numerical integration."""
    x = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    p = torch.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    q = torch.exp(-0.5 * ((x - shift) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    density = (math.exp(log_factor) * p - q).clamp(min=0)
    cdf = density.cumsum(0) / density.sum()
    return lambda values: torch.from_numpy(__import__("numpy").interp(values, x.numpy(), cdf.numpy())).numpy()


def test_log_density_is_that_of_scipy():
    wide = Gaussian(torch.randn(3, 4), torch.rand(3, 4) + 0.5)
    x = torch.randn(3, 4)
    expected = stats.norm(wide.mean.numpy(), wide.std.numpy()).logpdf(x.numpy()).sum(axis=1) + 2 * math.log(2 * math.pi)
    assert torch.allclose(wide.log_density(x), torch.from_numpy(expected).float(), atol=1e-4)


def test_accept_has_probability_min_one_ratio():
    log_ratio = torch.tensor([math.log(0.3)]).expand(ROWS)
    share = accept(log_ratio, torch.rand(ROWS, generator=_generator())).float().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.21 / ROWS)
    assert accept(torch.tensor([0.0, 5.0]), torch.tensor([0.999999, 0.5])).all()


def test_num_accepted_counts_leading_acceptances():
    accepted = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    assert num_accepted(accepted).tolist() == [2, 0, 4]


@pytest.mark.parametrize("log_factor", [0.0, 0.4, -0.3])
def test_modified_distribution_is_sampled(log_factor):
    p, q = _gaussians()
    factor = torch.full((ROWS,), log_factor)
    samples = resample_modified(p, q, factor, _propose(1, _generator()))[:, 0].numpy()
    assert stats.kstest(samples, _modified_cdf(log_factor, 0.8, 1.3)).pvalue > 1e-3


@pytest.mark.parametrize("mutant", ["samples of p", "inverse factor", "roles swapped"])
def test_wrong_modified_distributions_are_caught(mutant):
    """Power of the test above: what a wrong resampler gives is rejected."""
    p, q = _gaussians()
    factor, propose = torch.full((ROWS,), 0.4), _propose(1, _generator())
    if mutant == "samples of p":
        samples = torch.randn(ROWS, 1, generator=_generator())
    elif mutant == "inverse factor":
        samples = resample_modified(p, q, -factor, propose)
    else:
        samples = resample_modified(q, p, factor, propose)
    assert stats.kstest(samples[:, 0].numpy(), _modified_cdf(0.4, 0.8, 1.3)).pvalue < 1e-6


def test_resampling_always_ends_with_a_sample():
    """Where the modified distribution is almost or wholly empty a proposal of p comes back, never a zero."""
    p = Gaussian(torch.full((50, 3), 7.0), torch.full((50, 3), 0.01))
    for log_factor in (-6.0, -60.0, -1e4):
        samples = resample_modified(p, p, torch.full((50,), log_factor), _propose(3, _generator()))
        assert ((samples - 7.0).abs() < 0.1).all()


def test_rare_modified_distribution_comes_from_its_support():
    """A residual that one proposal in ten thousand hits: the picked value has p/q above 1/F, as the residual's have."""
    p, q = _gaussians(shift=0.0, width=1.2, rows=400)
    log_factor = math.log(1.2) * -1 + 1e-3  # F p > q only for |x| close to 0, and there by a hair
    values = resample_modified(p, q, torch.full((400,), log_factor), _propose(1, _generator()))
    log_ratio = p.log_density(values) - q.log_density(values) + log_factor
    assert (log_ratio > 0).float().mean() > 0.9
    assert sum(PROPOSAL_ROUNDS) > 1000


def test_released_resampler_follows_the_thinned_law_and_may_leave_zeros():
    p, q = _gaussians()
    generator = _generator()

    # A table of numbers: a proposal that is asked for again is the same.
    normals, uniforms = torch.randn(ROWS, 100, 1, generator=generator), torch.rand(ROWS, 100, generator=generator)
    row = torch.arange(ROWS)[:, None]

    def propose(attempt_RT):
        return normals[row, attempt_RT], uniforms[row, attempt_RT]

    image = torch.arange(ROWS) // 10
    values, rounds = resample_released(p, q, torch.zeros(ROWS), image, propose)
    assert 1 < rounds.max() <= 100
    assert stats.kstest(values[:, 0].numpy(), _modified_cdf(0.0, 0.8, 1.3)).pvalue > 1e-3
    in_parts, _ = resample_released(p, q, torch.zeros(ROWS), image, propose, runs=(2, 5, 93), early=True)
    assert torch.equal(in_parts, values)
    never, rounds = resample_released(p, p, torch.full((ROWS,), -1.0), image, propose, runs=(2, 1))
    assert (rounds == 3).all()
    assert (never == 0).all()
    kept, _ = resample_released(q, q, torch.full((ROWS,), -1.0), image, propose, runs=(3,), zeros=False)
    assert torch.equal(kept, q.mean)


def test_released_resampler_goes_on_for_an_image_and_not_for_its_neighbours():
    """As the public code on one image: attempts go on until every token of the image had one kept; the last counts."""
    p = Gaussian(torch.zeros(4, 1), torch.ones(4, 1))
    keeps = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 1, 0, 0]]).bool()  # [R, attempts]

    def propose(attempt_RT):
        row = torch.arange(4)[:, None]
        return attempt_RT[..., None].float(), torch.where(keeps[row, attempt_RT], -1.0, 2.0)

    values, rounds = resample_released(p, p, torch.zeros(4), torch.tensor([0, 0, 1, 1]), propose, runs=(4,))
    assert values[:, 0].tolist() == [1, 1, 0, 0]
    assert rounds.tolist() == [2, 2, 1, 1]


def test_thinning_is_a_probability():
    p, q = _gaussians()
    keep = thinning(p, q, torch.zeros(ROWS), torch.randn(ROWS, 1, generator=_generator()))
    assert ((keep >= 0) & (keep <= 1)).all()
    assert keep.min() == 0


def test_tempered_ratio_and_factor_have_the_papers_signs():
    p, q = _gaussians(rows=1)
    x = torch.zeros(1, 1)
    plain = p.log_density(x) - q.log_density(x)
    assert torch.allclose(tempered_log_ratio(p, q, x, 1.0), plain)
    assert tempered_log_ratio(p, q, x, 1e6).item() == pytest.approx(math.log(1.3), abs=1e-5)
    narrow, wide = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(2.0)]])
    assert log_path_factor(draft_log_std_sum=wide, target_log_std_sum=narrow).item() == pytest.approx(math.log(4.0))
