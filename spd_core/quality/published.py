"""The published metrics of image sets by their published definitions: FID, sFID, IS, KID, precision and recall.

FID and sFID are `spd_core.quality.frechet.frechet_distance` of pool and spatial features. Each function says which tool
it follows; where tools differ, the choice is an argument.

Shape legend: n images of a set, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Images of a chunk of the Inception Score in the ADM evaluator, in file order.
ADM_CHUNK = 5000
NEIGHBOURS = 3
#: Rows of a distance matrix computed at once; bounds its memory at ROWS x n numbers.
ROWS = 1024
KID_SEED = 2020


@dataclass(frozen=True)
class Score:
    """Mean and population standard deviation over chunks or subsets."""

    mean: float
    std: float


def inception_score(logits_nC: Tensor, chunks: list[slice]) -> Score:
    """exp of the mean KL divergence of p(class | image) from its mean, by chunk (Salimans et al. 2016).

    Args:
        logits_nC: without the bias.
        chunks: `chunks_of` (ADM evaluator) or `chunks_in` (torch-fidelity, after a shuffle). A file sorted by class
            breaks chunks in file order: each then holds few classes.

    Raises:
        ValueError: no chunks, or an empty one.
    """
    if not chunks or any(not len(range(*chunk.indices(len(logits_nC)))) for chunk in chunks):
        raise ValueError(f"images: got {len(logits_nC)} in {len(chunks)} chunks, allowed: at least one a chunk")
    log_p = logits_nC.double().log_softmax(dim=1)
    scores = []
    for chunk in chunks:
        part = log_p[chunk]
        marginal = part.exp().mean(dim=0, keepdim=True).log()
        scores.append((part.exp() * (part - marginal)).sum(dim=1).mean().exp())
    stacked = torch.stack(scores)
    return Score(float(stacked.mean()), float(stacked.std(correction=0)))


def chunks_of(count: int, size: int = ADM_CHUNK) -> list[slice]:
    """Slices of ``size`` images, the last one perhaps short."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def chunks_in(count: int, number: int = 10) -> list[slice]:
    """``number`` slices, equal up to one image."""
    return [slice(i * count // number, (i + 1) * count // number) for i in range(number)]


def published_kid(real_nD: Tensor, generated_mD: Tensor, subsets: int = 100, size: int = 1000) -> Score:
    """KID as torch-fidelity prints it: unbiased MMD^2 of random subsets, kernel (x.y / D + 1)^3.

    Args:
        real_nD, generated_mD: pool features; the first set is drawn from first.
        subsets: how many.
        size: images of each side of a subset.

    Raises:
        ValueError: sets smaller than a subset.
    """
    if min(len(real_nD), len(generated_mD)) < size:
        got = min(len(real_nD), len(generated_mD))
        raise ValueError(f"images: got {got}, allowed: at least {size}, the size of a subset")
    draw = np.random.RandomState(KID_SEED)  # the published generator, so that the published number comes out
    values = []
    for _ in range(subsets):
        x, y = (s[torch.from_numpy(draw.choice(len(s), size, replace=False))] for s in (real_nD, generated_mD))
        values.append(_unbiased_mmd2(x.double(), y.double()))
    return Score(float(np.mean(values)), float(np.std(values)))


def _unbiased_mmd2(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    def own(a: Tensor) -> Tensor:
        pairs = kernel(a, a)
        return (pairs.sum() - pairs.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(own(x) + own(y) - 2 * kernel(x, y).mean())


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares of images inside the other set's estimated support (Kynkäänniemi et al. 2019, arXiv:1904.06991)."""

    precision: float  #: of the generated
    recall: float  #: of the real


def precision_recall(real_nD: Tensor, generated_mD: Tensor, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Precision and recall by balls around each image up to its k-th nearest other image of its set.

    The ADM evaluator compares float16 distances, so its figures differ by about 1e-3.

    Raises:
        ValueError: a set of at most ``neighbours`` images.
    """
    if min(len(real_nD), len(generated_mD)) <= neighbours:
        raise ValueError(f"images: got {min(len(real_nD), len(generated_mD))}, allowed: more than {neighbours}")
    real, generated = real_nD.float(), generated_mD.float()
    return PrecisionRecall(
        precision=_covered(generated, real, _radii(real, neighbours)),
        recall=_covered(real, generated, _radii(generated, neighbours)),
    )


def _squared_distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Squared distances [up to ROWS, m] of runs of rows of x to all of y."""
    norms = y.double().square().sum(dim=1)
    for rows in x.double().split(ROWS):
        yield (rows.square().sum(dim=1, keepdim=True) + norms - 2 * rows @ y.double().T).clamp(min=0)


def _radii(x: Tensor, neighbours: int) -> Tensor:
    """Squared distance [n] of each image to its k-th nearest other one."""
    # The nearest of all is the image itself, at distance 0.
    return torch.cat([d.kthvalue(neighbours + 1, dim=1).values for d in _squared_distances(x, x)])


def _covered(x: Tensor, support: Tensor, radii: Tensor) -> float:
    inside = [(d <= radii).any(dim=1) for d in _squared_distances(x, support)]
    return float(torch.cat(inside).double().mean())
