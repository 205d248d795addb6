"""Kernel distance (KID, Binkowski et al. 2018, arXiv:1801.01401): unbiased MMD^2 with the kernel (x.y / D + 1)^3.

The published estimate averages over random subsets; the mean over all pairs used here has the same expectation without
the noise of drawing them. It is unbiased at every N, so small sets compare, and around zero (also below) for equal
distributions.

Shape legend: n images, D features, G jackknife groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from spd_core.quality.intervals import GROUPS, Interval, group_of, jackknife_interval, jackknife_variance

LIMIT = 5000  #: most images of a side: pairs, and so the time, grow with the square


@dataclass(frozen=True, eq=False)
class KernelSample:
    """Features by jackknife group; the sums over their own pairs are computed once."""

    parts: tuple[Tensor, ...]  #: G times float32 [n of the group, D]

    @staticmethod
    def of(features_nD: Tensor, labels_n: Tensor, seed: int = 0) -> KernelSample:
        """A random sample of at most `LIMIT` images in random groups that spread every class evenly.

        Raises:
            ValueError: for fewer than two images a group.
        """
        if len(features_nD) > LIMIT:
            kept = torch.randperm(len(features_nD), generator=torch.Generator().manual_seed(seed))[:LIMIT]
            features_nD, labels_n = features_nD[kept], labels_n[kept]
        groups = group_of(labels_n, seed)
        return KernelSample(tuple(features_nD[groups == group].float() for group in range(GROUPS)))

    @cached_property
    def sizes(self) -> Tensor:
        """Images per group, float64 [G]."""
        return torch.tensor([len(part) for part in self.parts], dtype=torch.float64)

    @cached_property
    def own_sums(self) -> Tensor:
        """Kernel sums over the ordered pairs of different images, by group and group, float64 [G, G]."""
        sums = torch.zeros(GROUPS, GROUPS, dtype=torch.float64)
        for i, x in enumerate(self.parts):
            for j in range(i + 1):
                kernel = _kernel(x, self.parts[j])
                sums[i, j] = sums[j, i] = kernel.sum(dtype=torch.float64)
                if i == j:
                    sums[i, i] -= kernel.diagonal().sum(dtype=torch.float64)
        return sums


def _kernel(x_nD: Tensor, y_mD: Tensor) -> Tensor:
    # float32 is enough: its rounding is random over the pairs, and the sums are float64.
    return (x_nD @ y_mD.T / x_nD.shape[1] + 1.0) ** 3


def _mmd2(xx: Tensor, xy: Tensor, yy: Tensor, n: Tensor, m: Tensor) -> Tensor:
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)


def _without(own_GG: Tensor) -> Tensor:
    """Pair sums that leave out each group in turn, float64 [G]."""
    return own_GG.sum() - own_GG.sum(dim=0) - own_GG.sum(dim=1) + own_GG.diagonal()


def kid(x: KernelSample, y: KernelSample) -> Interval:
    """Unbiased MMD^2 and an interval by a delete-group jackknife over the images of both samples.

    For equal distributions the estimate is not normal (its first-order term vanishes); there the interval is a guide.
    """
    xx, yy = x.own_sums, y.own_sums
    xy = torch.stack([torch.stack([_kernel(a, b).sum(dtype=torch.float64) for b in y.parts]) for a in x.parts])
    n, m = x.sizes.sum(), y.sizes.sum()
    value = _mmd2(xx.sum(), xy.sum(), yy.sum(), n, m)
    without_x = _mmd2(_without(xx), xy.sum() - xy.sum(dim=1), yy.sum(), n - x.sizes, m)
    without_y = _mmd2(xx.sum(), xy.sum() - xy.sum(dim=0), _without(yy), n, m - y.sizes)
    return jackknife_interval(float(value), jackknife_variance(without_x) + jackknife_variance(without_y))
