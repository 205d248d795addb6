"""Frechet distance against closed forms and scipy, its singular cases, and the coverage of its interval."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from spd_core.quality.frechet import Moments, frechet_distance, frechet_interval, frechet_of_features
from spd_core.quality.intervals import GROUPS, group_of, jackknife_variance, wilson


def normals(n: int, dims: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dims, dims, generator=torch.Generator().manual_seed(1))
    return scale * torch.randn(n, dims, generator=generator) @ mix + 0.1 * seed


def by_scipy(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = x.double().numpy(), y.double().numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(s @ t).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


def test_closed_form_of_commuting_covariances():
    mean, a, b = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([4.0, 1.0, 0.25]), torch.tensor([1.0, 9.0, 0.25])
    expected = mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    left = Moments.from_gaussian(100, mean, a.diag())
    right = Moments.from_gaussian(37, torch.zeros(3), b.diag())
    assert frechet_distance(left, right) == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize("n", [12, 60])  # fewer and more images than features take different roads
def test_equals_scipy_and_is_symmetric(n):
    x, y = normals(n, 24, 1), normals(300, 24, 2, scale=1.4)
    expected = by_scipy(x, y)
    a, b = Moments.from_features(x), Moments.from_features(y)
    # sqrtm of a singular matrix is itself good to a few digits only
    tolerance = 1e-4 if n < 24 else 1e-8
    assert frechet_distance(a, b) == pytest.approx(expected, rel=tolerance)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert frechet_of_features(x, b) == pytest.approx(frechet_distance(a, b), rel=1e-8)


def test_singular_covariances_are_zero_apart_from_themselves():
    a = Moments.from_features(normals(8, 24, 1))
    assert frechet_distance(a, a) < 1e-5 * float(a.covariance.trace())
    point = Moments.from_features(torch.ones(5, 24))
    assert frechet_distance(point, point) == pytest.approx(0.0, abs=1e-9)
    moved = Moments.from_features(torch.full((5, 24), 3.0))
    assert frechet_distance(point, moved) == pytest.approx(24 * 4.0, abs=1e-6)


def test_moments_of_parts_add_up():
    x = normals(100, 10, 3)
    whole = Moments.from_features(x)
    parts = functools.reduce(operator.add, [Moments.from_features(part) for part in torch.split(x, [1, 30, 69])])
    assert parts.count == 100
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.covariance, torch.from_numpy(np.cov(x.double().numpy(), rowvar=False)))
    again = Moments.from_gaussian(100, whole.mean, whole.covariance)
    torch.testing.assert_close(again.outer, whole.outer, rtol=1e-10, atol=1e-8)


def test_one_image_has_no_covariance():
    one = normals(1, 4, 0)
    with pytest.raises(ValueError, match="got 1, allowed: at least 2"):
        frechet_distance(Moments.from_features(one), Moments.from_features(normals(9, 4, 0)))
    with pytest.raises(ValueError, match="got 1, allowed: at least 2"):
        frechet_of_features(one, Moments.from_features(normals(9, 4, 0)))


@pytest.mark.parametrize(("n", "dims"), [(60, 80), (90, 12)])
def test_interval_is_the_plain_delete_group_jackknife(n, dims):
    x, labels = normals(n, dims, 4), torch.arange(n) % 3
    reference = Moments.from_features(normals(500, dims, 5))
    groups = group_of(labels)
    deleted = [frechet_distance(Moments.from_features(x[groups != g]), reference) for g in range(GROUPS)]
    interval = frechet_interval(x, labels, reference)
    assert interval.value == pytest.approx(frechet_distance(Moments.from_features(x), reference), rel=1e-8)
    assert interval.error**2 == pytest.approx(jackknife_variance(torch.tensor(deleted, dtype=torch.float64)), rel=1e-6)
    assert interval.low < interval.value < interval.high


def test_interval_covers_the_expectation():
    dims, n, trials = 6, 120, 200
    reference = Moments.from_gaussian(10**6, torch.zeros(dims), torch.eye(dims))
    generator = torch.Generator().manual_seed(11)
    labels = torch.arange(n) % 10
    intervals = [
        frechet_interval(1.2 * torch.randn(n, dims, generator=generator) + 0.2, labels, reference)
        for _ in range(trials)
    ]
    expectation = sum(i.value for i in intervals) / trials
    covered = sum(i.low <= expectation <= i.high for i in intervals) / trials
    # a 95 % interval misses this band with probability below 1e-3
    assert 0.90 <= covered <= 0.995


def test_groups_spread_every_class_evenly():
    labels = torch.tensor([0] * 50 + [1] * 70 + [2] * 30)
    groups = group_of(labels)
    for label in range(3):
        sizes = torch.bincount(groups[labels == label], minlength=GROUPS)
        assert sizes.max() - sizes.min() <= 1
    assert torch.equal(groups, group_of(labels))
    with pytest.raises(ValueError, match="got 19, allowed: at least 20"):
        group_of(torch.zeros(19, dtype=torch.int64))


def test_wilson_interval():
    low, high = wilson(90, 100)
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=1e-4)  # Wilson 1927
    assert wilson(20, 20)[1] == pytest.approx(1.0)
    assert wilson(20, 20)[0] < 0.9
