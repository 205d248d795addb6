"""Kernel distance: the estimator against its definition, unbiasedness, power, and the interval."""

from __future__ import annotations

import pytest
import torch

from spd_core.quality import kid as module
from spd_core.quality.kid import KernelSample, kid


def normals(n: int, generator: torch.Generator, shift: float = 0.0, dims: int = 8) -> KernelSample:
    return KernelSample.of(torch.randn(n, dims, generator=generator) + shift, torch.arange(n) % 10)


def test_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    x, y = normals(43, generator), normals(61, generator, 0.3)
    a, b = torch.cat(x.parts).double(), torch.cat(y.parts).double()

    def kernel(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[(float(u @ v) / len(u) + 1) ** 3 for v in q] for u in p], dtype=torch.float64)

    xx, yy, xy = kernel(a, a), kernel(b, b), kernel(a, b)
    off_x, off_y = (k.sum() - k.diagonal().sum() for k in (xx, yy))
    expected = off_x / (43 * 42) + off_y / (61 * 60) - 2 * xy.mean()
    assert kid(x, y).value == pytest.approx(float(expected), rel=1e-4)


def test_jackknife_leaves_out_one_group_of_one_side():
    generator = torch.Generator().manual_seed(1)
    x, y = normals(60, generator, 0.5), normals(80, generator)

    def values(leave_x: bool) -> torch.Tensor:
        kept = []
        for group in range(10):
            parts = [part for g, part in enumerate((x if leave_x else y).parts) if g != group]
            other = KernelSample((*parts, torch.zeros(0, 8)))
            kept.append(kid(other, y).value if leave_x else kid(x, other).value)
        return torch.tensor(kept, dtype=torch.float64)

    spread = sum(9 / 10 * (v - v.mean()).square().sum() for v in (values(True), values(False)))
    assert kid(x, y).error ** 2 == pytest.approx(float(spread), rel=1e-3)


def test_unbiased_at_equal_distributions():
    generator = torch.Generator().manual_seed(2)
    values = torch.tensor([kid(normals(40, generator), normals(200, generator)).value for _ in range(150)])
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean()) < 4 * error
    assert (values < 0).any()


def test_clearly_positive_when_shifted_and_interval_covers():
    generator = torch.Generator().manual_seed(3)
    intervals = [kid(normals(100, generator, 0.4), normals(300, generator)) for _ in range(150)]
    expectation = sum(i.value for i in intervals) / len(intervals)
    assert all(i.low > 0 for i in intervals)
    covered = sum(i.low <= expectation <= i.high for i in intervals) / len(intervals)
    assert 0.89 <= covered <= 0.999


def test_same_seed_same_figure_and_large_sets_are_sampled(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    features, labels = torch.randn(90, 8, generator=generator), torch.arange(90) % 10
    monkeypatch.setattr(module, "LIMIT", 50)
    first, second = (KernelSample.of(features, labels) for _ in range(2))
    assert first.sizes.sum() == 50
    assert all(torch.equal(a, b) for a, b in zip(first.parts, second.parts, strict=True))
