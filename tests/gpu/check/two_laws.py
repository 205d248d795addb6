"""Two-sample tests on a device: do two decoders follow one law? By permutation, so the p-values are right for any law.

Shape legend: n images of each sample, F features of an image, V values of a code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PERMUTATIONS = 199


def _signs(n: int, like: Tensor) -> Tensor:
    """[1 + permutations, 2 n]: +1 for images of the first sample, -1 for the second's; row 0 as they are."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.cat([torch.ones(n), -torch.ones(n)])
    shuffled = [signs[torch.randperm(2 * n, generator=generator)] for _ in range(PERMUTATIONS)]
    return torch.stack([signs, *shuffled]).to(like)


def _p_value(statistic_P: Tensor) -> float:
    return (1 + int((statistic_P[1:] >= statistic_P[0]).sum())) / (PERMUTATIONS + 1)


def energy_p_value(x_nF: Tensor, y_nF: Tensor) -> float:
    """Of the energy distance between equally many vectors."""
    both = torch.cat([x_nF, y_nF])
    both = both / both.std(dim=0).clamp(min=1e-6)
    distances, signs = torch.cdist(both, both), _signs(len(x_nF), both)
    # With equal counts the energy distance is -s' D s / n^2 for the signs s of the two samples.
    return _p_value(-((signs @ distances) * signs).sum(dim=1))


def codes_p_value(x_nN: Tensor, y_nN: Tensor, values: int) -> float:
    """Of the sum over positions of the chi-square distance between the codes' frequencies."""
    both = torch.cat([x_nN, y_nN])
    signs = _signs(len(x_nN), both.float())
    statistic = torch.zeros(len(signs), device=both.device)
    for codes in both.unbind(dim=1):
        hot = F.one_hot(codes, values).float()
        statistic += ((signs @ hot).square() / hot.sum(dim=0).clamp(min=1.0)).sum(dim=1)
    return _p_value(statistic)
