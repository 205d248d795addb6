"""Frechet distance between Gaussians fitted to features, from float64 moments that merge.

``|m1 - m2|^2 + Tr(S1 + S2) - 2 Tr (S1 S2)^(1/2)`` (Heusel et al. 2017, arXiv:1706.08500, eq. 6). The last trace is the
sum of the square roots of the eigenvalues of the symmetric ``S2^(1/2) S1 S2^(1/2)``: it needs no matrix square root of
a product, never turns complex, and holds for singular covariances, that is for fewer images than features.

The distance is biased upwards by roughly a constant over the number of images, so it only compares at one N.

Shape legend: n images, D features.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spd_core.quality.intervals import GROUPS, Interval, group_of, jackknife_interval, jackknife_variance


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, sum and sum of outer products of features; the moments of parts add up to those of the whole."""

    count: int
    sum: Tensor  #: float64 [D]
    outer: Tensor  #: float64 [D, D]

    @staticmethod
    def from_features(features_nD: Tensor) -> Moments:
        x = features_nD.double()
        return Moments(len(x), x.sum(dim=0), x.T @ x)

    @staticmethod
    def from_gaussian(count: int, mean_D: Tensor, covariance_DD: Tensor) -> Moments:
        """Moments of ``count`` images that have this mean and unbiased covariance."""
        mean = mean_D.double()
        outer = covariance_DD.double() * (count - 1) + count * torch.outer(mean, mean)
        return Moments(count, mean * count, outer)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.sum + other.sum, self.outer + other.outer)

    @cached_property
    def mean(self) -> Tensor:
        """float64 [D]."""
        return self.sum / self.count

    @cached_property
    def covariance(self) -> Tensor:
        """Unbiased, float64 [D, D].

        Raises:
            ValueError: for fewer than two images.
        """
        if self.count < 2:
            raise ValueError(f"images: got {self.count}, allowed: at least 2 for a covariance")
        return (self.outer - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)

    @cached_property
    def root(self) -> Tensor:
        """Symmetric square root of the covariance, float64 [D, D]."""
        values, vectors = torch.linalg.eigh(self.covariance)
        root: Tensor = (vectors * _roots(values)) @ vectors.T
        return root


def _roots(eigenvalues: Tensor) -> Tensor:
    """Square roots; what is zero up to rounding becomes zero, lest a thousand roots of 1e-17 add up."""
    noise = eigenvalues.abs().max() * len(eigenvalues) * torch.finfo(torch.float64).eps
    return torch.where(eigenvalues > noise, eigenvalues, 0.0).sqrt()


def _distance(mean_D: Tensor, trace: Tensor, product: Tensor, reference: Moments) -> float:
    """Distance given a symmetric matrix with the non-zero eigenvalues of the product of both covariances."""
    roots = _roots(torch.linalg.eigvalsh((product + product.T) / 2)).sum()
    gap = (mean_D - reference.mean).square().sum()
    return max(0.0, float(gap + trace + reference.covariance.trace() - 2 * roots))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Frechet distance, >= 0, in squared feature units; ``b``'s root is kept for the next call with the same ``b``.

    Raises:
        ValueError: if either holds fewer than two images.
    """
    return _distance(a.mean, a.covariance.trace(), b.root @ a.covariance @ b.root, b)


def frechet_of_features(features_nD: Tensor, reference: Moments) -> float:
    """`frechet_distance` of the features' moments, the faster way for their number.

    Raises:
        ValueError: if there are fewer than two images.
    """
    return _Split(features_nD, torch.zeros(len(features_nD), dtype=torch.int64), reference).distance()


class _Split:
    """Features by jackknife group, prepared so that a distance without one group costs one eigenvalue problem.

    The eigenvalues of ``R S R`` (R the reference's root, S the covariance of the features) are those of the covariance
    of the features times R, whose moments add up over groups: a D x D problem. For n <= D the same non-zero ones come
    from the smaller Gram matrix ``X R R X^T`` of the centred features X, whose rows and columns can be left out.
    """

    def __init__(self, features_nD: Tensor, groups_n: Tensor, reference: Moments) -> None:
        order = torch.argsort(groups_n, stable=True)
        parts = torch.split(features_nD[order], torch.bincount(groups_n).tolist())
        self._groups = groups_n[order]
        self._reference = reference
        self._counts = torch.tensor([len(part) for part in parts])
        self._sums = torch.stack([part.double().sum(dim=0) for part in parts])
        self._squares = torch.stack([part.double().square().sum() for part in parts])
        self._gram: Tensor | None = None
        self._turned: list[Moments] = []
        if len(features_nD) <= features_nD.shape[1]:
            x = features_nD[order].double()
            self._gram = x @ reference.covariance @ x.T
        else:
            self._turned = [Moments.from_features(part.double() @ reference.root) for part in parts]

    def distance(self, without: int | None = None) -> float:
        """Distance of all the features, or of those outside one group."""
        kept = torch.tensor([group != without for group in range(len(self._counts))])
        count = int(self._counts[kept].sum())
        if count < 2:
            raise ValueError(f"images: got {count}, allowed: at least 2 for a covariance")
        total = self._sums[kept].sum(dim=0)
        trace = (self._squares[kept].sum() - total.square().sum() / count) / (count - 1)
        if self._gram is not None:
            rows = kept[self._groups]
            gram = self._gram[rows][:, rows]
            product = gram - gram.mean(dim=0) - gram.mean(dim=1, keepdim=True) + gram.mean()
            product = product / (count - 1)
        else:
            turned = (part for part, keep in zip(self._turned, kept.tolist(), strict=True) if keep)
            product = functools.reduce(operator.add, turned).covariance
        return _distance(total / count, trace, product, self._reference)


def frechet_interval(features_nD: Tensor, labels_n: Tensor, reference: Moments) -> Interval:
    """The distance and an interval by a delete-group jackknife.

    The interval is for the expectation of the distance at this n, small-sample bias included, against a fixed
    reference: the quantity that the real/real floor at the same n is to be compared with. It says nothing of the limit
    n -> infinity.

    Args:
        features_nD: n >= 2 * `GROUPS`.
        labels_n: int64, the classes asked for; the groups hold equal shares of each.
        reference: moments of the real images.

    Raises:
        ValueError: too few images.
    """
    split = _Split(features_nD, group_of(labels_n), reference)
    deleted = torch.tensor([split.distance(without=group) for group in range(GROUPS)], dtype=torch.float64)
    return jackknife_interval(split.distance(), jackknife_variance(deleted), low=0.0)
