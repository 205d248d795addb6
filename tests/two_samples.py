"""Two-sample tests: do two sets of vectors follow one law?"""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor


def energy_p_value(x: Tensor, y: Tensor, permutations: int = 199, seed: int = 0) -> float:
    """Permutation p-value of the energy distance between equally many samples x and y [n, d]."""
    n = len(x)
    assert len(y) == n
    scale = torch.cat([x, y]).std(dim=0)
    both = torch.cat([x, y]) / scale
    distances = torch.cdist(both, both)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.cat([torch.ones(n), -torch.ones(n)])
    shuffled = torch.stack([signs[torch.randperm(2 * n, generator=generator)] for _ in range(permutations)])
    rows = torch.cat([signs[None], shuffled])
    # With equal counts the energy distance is -s' D s / n^2 for the signs s of the two samples.
    energies = -((rows @ distances) * rows).sum(dim=1)
    return (1 + int((energies[1:] >= energies[0]).sum())) / (permutations + 1)


def marginal_p_value(x: Tensor, y: Tensor) -> float:
    """Smallest Kolmogorov-Smirnov p-value over coordinates, and sums and products of all pairs, times their number."""
    d = x.shape[1]
    pairs = [(a, b) for a in range(d) for b in range(a)]
    features = [
        torch.cat([z, *(torch.stack([z[:, a] + z[:, b], z[:, a] * z[:, b]], dim=1) for a, b in pairs)], dim=1)
        for z in (x, y)
    ]
    values = [
        float(stats.ks_2samp(a.numpy(), b.numpy()).pvalue)
        for a, b in zip(features[0].unbind(dim=1), features[1].unbind(dim=1), strict=True)
    ]
    return min(1.0, min(values) * len(values))
