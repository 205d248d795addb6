"""The published metrics of image sets by their published definitions: FID, sFID, IS, KID, precision and recall.

FID and sFID are `spd_core.quality.frechet.frechet_distance` of pool and spatial features. Each function says which tool
it follows; where tools differ, the choice is an argument.

Shape legend: n images of a set, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spd_core.quality.rows import Rows, as_rows, blocks

#: Images of a chunk of the Inception Score in the ADM evaluator, in file order.
ADM_CHUNK = 5000
NEIGHBOURS = 3
#: Rows of a distance matrix computed at once; bounds its memory at ROWS x n numbers.
ROWS = 1024
#: Rows that they are held against at once.
COLUMNS = 4096
KID_SEED = ORDER_SEED = 2020
KID_SUBSETS, KID_SIZE = 100, 1000


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
    return _over_chunks([_chunk_score(logits_nC[chunk]) for chunk in chunks])


def inception_score_of_rows(pool: Rows, logits: Callable[[Tensor], Tensor], chunk: int = ADM_CHUNK) -> Score:
    """`inception_score` in chunks of a fixed random order, of which one is in memory at a time.

    The ADM evaluator takes chunks in file order, which for a file in random order is the same up to noise and for one
    sorted by class is no Inception Score.

    Args:
        pool: pool features.
        logits: of some of them, without the bias.
        chunk: images of a chunk.

    Raises:
        ValueError: no images.
    """
    if not len(pool):
        raise ValueError("images: got 0, allowed: at least 1")
    order = torch.from_numpy(np.random.RandomState(ORDER_SEED).permutation(len(pool)))
    return _over_chunks([_chunk_score(logits(pool.take(order[part]))) for part in chunks_of(len(pool), chunk)])


def _chunk_score(logits_nC: Tensor) -> float:
    log_p = logits_nC.double().log_softmax(dim=1)
    marginal = log_p.exp().mean(dim=0, keepdim=True).log()
    return float((log_p.exp() * (log_p - marginal)).sum(dim=1).mean().exp())


def _over_chunks(scores: list[float]) -> Score:
    return Score(float(np.mean(scores)), float(np.std(scores)))


def chunks_of(count: int, size: int = ADM_CHUNK) -> list[slice]:
    """Slices of ``size`` images, the last one perhaps short."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def chunks_in(count: int, number: int = 10) -> list[slice]:
    """``number`` slices, equal up to one image."""
    return [slice(i * count // number, (i + 1) * count // number) for i in range(number)]


def published_kid(
    real_nD: Rows | Tensor, generated_mD: Rows | Tensor, subsets: int = KID_SUBSETS, size: int = KID_SIZE
) -> Score:
    """KID as torch-fidelity prints it: unbiased MMD^2 of random subsets, kernel (x.y / D + 1)^3.

    Args:
        real_nD, generated_mD: pool features; the first set is drawn from first.
        subsets: how many.
        size: images of each side of a subset.

    Raises:
        ValueError: sets smaller than a subset.
    """
    sets = as_rows(real_nD), as_rows(generated_mD)
    if (got := min(map(len, sets))) < size:
        raise ValueError(f"images: got {got}, allowed: at least {size}, the size of a subset")
    draw = np.random.RandomState(KID_SEED)  # the published generator, so that the published number comes out
    values = []
    for _ in range(subsets):
        x, y = (s.take(torch.from_numpy(draw.choice(len(s), size, replace=False))) for s in sets)
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


def precision_recall(
    real_nD: Rows | Tensor, generated_mD: Rows | Tensor, neighbours: int = NEIGHBOURS
) -> PrecisionRecall:
    """Precision and recall by balls around each image up to its k-th nearest other image of its set.

    Blocks of distances are in memory, never a whole set. The ADM evaluator compares float16 distances, so its figures
    differ by about 1e-3.

    Raises:
        ValueError: a set of at most ``neighbours`` images.
    """
    real, generated = as_rows(real_nD), as_rows(generated_mD)
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(f"images: got {min(len(real), len(generated))}, allowed: more than {neighbours}")
    return PrecisionRecall(
        precision=_covered(generated, real, _radii(real, neighbours)),
        recall=_covered(real, generated, _radii(generated, neighbours)),
    )


def _squared_distances(rows_nD: Tensor, support: Rows) -> Iterator[Tensor]:
    """Squared distances [n, up to COLUMNS] of some rows to all of a set, block by block."""
    x = rows_nD.double()
    norms = x.square().sum(dim=1, keepdim=True)
    for block in blocks(support, COLUMNS):
        y = block.double()
        yield (norms + y.square().sum(dim=1) - 2 * x @ y.T).clamp(min=0)


def _radii(x: Rows, neighbours: int) -> Tensor:
    """Squared distance [n] of each image to its k-th nearest other one."""
    found = []
    for rows in blocks(x, ROWS):
        nearest = torch.full((len(rows), 0), torch.inf, dtype=torch.float64)
        for distances in _squared_distances(rows, x):
            both = torch.cat([nearest, distances], dim=1)
            # The nearest of all is the image itself, at distance 0.
            nearest = both.topk(min(neighbours + 1, both.shape[1]), largest=False, dim=1).values
        found.append(nearest[:, neighbours])
    return torch.cat(found)


def _covered(x: Rows, support: Rows, radii: Tensor) -> float:
    inside = 0
    for rows in blocks(x, ROWS):
        hit = torch.zeros(len(rows), dtype=torch.bool)
        for distances, limits in zip(_squared_distances(rows, support), radii.split(COLUMNS), strict=True):
            hit |= (distances <= limits).any(dim=1)
        inside += int(hit.sum())
    return inside / len(x)
