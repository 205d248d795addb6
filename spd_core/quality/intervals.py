"""Intervals of figures: delete-group jackknife for distances, Wilson for shares, Student's t for means.

A bootstrap does not serve for distances between distributions: a resample holds an image twice, so it looks less varied
than the sample it came from, and the distance of every resample is too large. The jackknife leaves images out instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.stats import binomtest, t
from torch import Tensor

GROUPS = 10
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure, its standard error, and the interval that covers its expectation with probability `CONFIDENCE`."""

    value: float
    error: float
    low: float
    high: float


def group_of(labels_n: Tensor, seed: int = 0) -> Tensor:
    """Jackknife group 0..`GROUPS`-1 of each image, int64 [n]: random, but every class spread evenly over the groups.

    Images are asked for by class, so the class mix is fixed by the job and is no part of the sampling error.

    Raises:
        ValueError: for fewer than two images a group.
    """
    if len(labels_n) < 2 * GROUPS:
        raise ValueError(f"images: got {len(labels_n)}, allowed: at least {2 * GROUPS} for an interval")
    shuffled = torch.randperm(len(labels_n), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[torch.argsort(labels_n[shuffled], stable=True)]
    groups = torch.empty(len(labels_n), dtype=torch.int64)
    groups[by_class] = torch.arange(len(labels_n)) % GROUPS
    return groups


def jackknife_variance(deleted_G: Tensor) -> float:
    """Variance of a figure from its values with one of G equal groups left out, float64 [G]."""
    count = len(deleted_G)
    return float((deleted_G - deleted_G.mean()).square().sum() * (count - 1) / count)


def jackknife_interval(value: float, variance: float, low: float = -math.inf) -> Interval:
    """Interval around ``value`` by Student's t with `GROUPS` - 1 degrees of freedom, cut at the figure's minimum."""
    error = math.sqrt(variance)
    reach = float(t.ppf(0.5 + CONFIDENCE / 2, GROUPS - 1)) * error
    return Interval(value, error, max(low, value - reach), value + reach)


def mean_interval(values_n: Tensor) -> Interval:
    """Of independent figures, at least two: their mean by Student's t."""
    count = len(values_n)
    value, error = float(values_n.mean()), float(values_n.std() / math.sqrt(count))
    reach = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    return Interval(value, error, value - reach, value + reach)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Wilson score interval of a share, ``count`` > 0."""
    interval = binomtest(successes, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
