"""Certificates of relaxed decoding: how far the law of an image may be from the target's, from what was logged.

Relaxed and lossless decoding draw the same drafts and the same residuals; they differ in how likely each test is to
accept its draft: f against a = min(1, R). On everything that a decoding draws, the ratio of their laws is therefore

    W = product over the tests of (a / f where the draft was accepted, (1 - a) / (1 - f) where it was rejected),

and the total variation between the two is the expectation of (1 - W)_+ over relaxed decodings. An image is a function
of what was drawn, so that bounds the total variation between the laws of the image. `(1 - W)_+` is the image's
certificate; only its mean over images bounds anything.

Shape legend: K tests, n images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Probability with which an interval covers the mean, at least.
CONFIDENCE = 0.95
#: Below it a probability is rounding of the logged float32 numbers.
_TINY = 2.0**-24

Float = NDArray[np.floating]
Float64 = NDArray[np.float64]


def log_weights(log_ratio_K: Float, accepted_K: NDArray[np.bool_], excess_K: Float) -> Float64:
    """log [K] of how much likelier each test's outcome is under the lossless rule.

    Args:
        log_ratio_K: log R of the draft.
        accepted_K: whether it was accepted.
        excess_K: f - a, which with R says what f was; NaN where no bound exists gives NaN.
    """
    log_ratio, spent = np.minimum(log_ratio_K, 0.0).astype(np.float64), excess_K.astype(np.float64)
    lossless, rejection = np.exp(log_ratio), -np.expm1(log_ratio)
    with np.errstate(divide="ignore", invalid="ignore"):
        taken = np.log(lossless) - np.log(lossless + spent)
    rejected = np.log(np.maximum(rejection, _TINY)) - np.log(np.maximum(rejection - spent, _TINY))
    changed = np.where(accepted_K, taken, rejected)
    return np.where(spent == 0, 0.0, np.where(np.isnan(spent), np.nan, changed))


def image_certificates(image_K: NDArray[np.int64], log_weight_K: Float64, images: int) -> Float64:
    """(1 - W)_+ [n] of each image, in [0, 1]; ``image_K`` says to which one a test belongs."""
    log_weight = np.bincount(image_K, weights=log_weight_K, minlength=images)
    return -np.expm1(np.minimum(log_weight, 0.0))


@dataclass(frozen=True)
class Bounds:
    """A mean of numbers in [0, 1] and an interval that covers its expectation with probability `CONFIDENCE`."""

    mean: float
    low: float
    high: float


def bounds(count: int, total: float, squares: float) -> Bounds:
    """Of independent numbers in [0, 1], which need not have one law: at every count, however rare the large ones are.

    An empirical Bernstein bound. For x = m - X in [-1, 1] and 0 < t < 1, log(1 + t x) >= t x - psi(t) x^2 with
    psi(t) = -log(1 - t) - t (Fan, Grama and Liu 2015, arXiv:1206.6702, lemma 4.1), so exp of the sum of the right sides
    is at most the product of 1 + t x, whose expectation is at most 1 at m = the mean of the expectations (the
    geometric mean is no more than the arithmetic one, so these may differ, by class for instance). By Markov's
    inequality the sum stays below log(2 / (1 - CONFIDENCE)) on either side; several t share that probability, and what
    each excludes counts.

    Args:
        count: of the numbers, at least 1.
        total, squares: their sum and the sum of their squares.
    """
    mean = total / count
    variance = max(0.0, squares / count - mean**2)
    # From the t for numbers that are 0 or 1 to the one for numbers that are almost always 0.
    smallest = min(0.5, math.sqrt(32.0 / count))
    steps = 1 + math.ceil(math.log2(0.9 / smallest))
    t = 0.9 * np.exp2(-np.arange(steps, dtype=np.float64))
    psi = -np.log1p(-t) - t
    cost = math.log(2.0 * steps / (1.0 - CONFIDENCE)) / count + psi * variance
    inside = t**2 - 4.0 * psi * cost
    half = np.sqrt(np.maximum(inside, 0.0))
    least, most = ((t + sign * half) / (2.0 * psi) for sign in (-1.0, 1.0))
    # A t excludes what lies between its roots, of which the larger one may be below 1.
    reach = 1.0
    while (excludes := (inside > 0) & (least < reach) & (reach <= most)).any():
        reach = float(least[excludes].min())
    return Bounds(float(mean), float(max(0.0, mean - reach)), float(min(1.0, mean + reach)))
