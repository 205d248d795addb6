"""Where the level of a nightly figure changed: steps found in a noisy history, and the band the newest night lies in.

The model of a figure's logarithm y on night t, of weekday d(t), with one step from night s on:

    y_t = level + step [t >= s] + u_d(t) + e_t,    u_d ~ N(0, r v),  e_t ~ N(0, v)

Weekday effects u are random with a variance of their own, so a short history is not fitted to pieces by seven free
levels and a long one loses its weekly pattern. The step of each s follows by generalised least squares; nights far off
count less or not at all (a redescending weight, iterated), and a step must stand without its most extreme night: one
odd night is no change. Student's t of the step becomes a normal deviate, and the largest over all s is held against a
limit that was set by simulation (``python -m tests.nights``). A history with several steps is split at the clearest one
and both parts are looked at again (binary segmentation).

Shape legend: n nights, S candidates for the first night of a new level, D = 7 weekdays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr

Floats = NDArray[np.float64]

#: Normal deviate from which on a step counts, whichever of the nights it may begin in; and the same without its most
#: extreme night.
LIMIT, LIMIT_WITHOUT_ONE = 3.25, 2.2
#: What is asked for on top: of a step of the last three nights, which one outlier can make; of one that has been looked
#: for on seven nights and was not found; and of one with fewer than two weeks before it, whose weekdays are not known.
_FEW, _MORE_FOR_FEW = 3, 0.5
_WEEK, _MORE_FOR_OLD = 7, 0.6
KNOWN, _MORE_FOR_UNKNOWN = 14, 1.3
#: Nights before a step, and from it on, at least; a step that is not the newest has at least `BEFORE` on both sides.
BEFORE, AFTER = 5, 2
#: Variance of the weekdays' levels over that of the nights within a weekday.
WEEKDAY_RATIO = 0.4
#: Nights that are looked back, at most.
LONGEST = 180
#: Distances in standard deviations from which on a night counts less, and no more.
_FULL, _NONE = 2.8, 4.5
_ROUNDS = 4
#: Half width of the band of the newest night, in standard deviations estimated from the median absolute deviation.
BAND = 4.0
_MAD = 1.4826


@dataclass(frozen=True)
class Step:
    """A lasting change of level."""

    at: int  #: index of the first night of the new level
    size: float  #: of the logarithm
    error: float  #: standard error of it
    z: float  #: normal deviate, of the sign of the size


@dataclass(frozen=True)
class Band:
    """Where the newest night was expected, from the nights of its level, in logarithms."""

    middle: float
    low: float
    high: float
    value: float

    @property
    def outside(self) -> bool:
        return not self.low <= self.value <= self.high


@dataclass(frozen=True)
class _Fit:
    """One row for each candidate."""

    step_S: Floats
    error_S: Floats
    z_S: Floats
    residual_Sn: Floats


def _weighted(x_Sn: Floats, weight_Sn: Floats, day_nD: Floats) -> Floats:
    """The model's inverse covariance, but for the factor 1/v, times x, in closed form for each weekday's block."""
    within_SD = weight_Sn @ day_nD
    share_SD = WEEKDAY_RATIO * ((weight_Sn * x_Sn) @ day_nD) / (1 + WEEKDAY_RATIO * within_SD)
    return weight_Sn * (x_Sn - share_SD @ day_nD.T)


def _solve(y_n: Floats, after_Sn: Floats, weight_Sn: Floats, day_nD: Floats, floor: float) -> _Fit:
    """Least squares with given weights, one candidate a row."""
    one = np.ones_like(after_Sn)
    solved_one = _weighted(one, weight_Sn, day_nD)
    solved_after = _weighted(after_Sn, weight_Sn, day_nD)
    a11, a12, a22 = solved_one.sum(1), solved_after.sum(1), (solved_after * after_Sn).sum(1)
    b1, b2 = solved_one @ y_n, solved_after @ y_n
    det = np.maximum(a11 * a22 - a12**2, 1e-12)
    step, level = (a11 * b2 - a12 * b1) / det, (a22 * b1 - a12 * b2) / det
    rest = y_n - level[:, None] - step[:, None] * after_Sn
    within = WEEKDAY_RATIO * (weight_Sn @ day_nD)
    days = WEEKDAY_RATIO * ((weight_Sn * rest) @ day_nD) / (1 + within)
    residual = rest - days @ day_nD.T
    free = np.maximum(weight_Sn.sum(1) - 2 - (within / (1 + within)).sum(1), 1.0)
    deviation = np.maximum(np.sqrt((weight_Sn * residual**2).sum(1) / free), max(floor, 1e-12))
    error = deviation * np.sqrt(a11 / det)
    chance = stdtr(free, -np.abs(step) / error)
    return _Fit(step, error, -np.sign(step) * ndtri(np.maximum(chance, 1e-300)), residual)


def _weights(residual_Sn: Floats, floor: float) -> Floats:
    """1 near the model, falling to 0 for nights that are far off."""
    deviation = _MAD * np.median(np.abs(residual_Sn), axis=1, keepdims=True)
    far = np.abs(residual_Sn) / np.maximum(deviation, max(floor, 1e-12))
    return np.clip((_NONE - far) / (_NONE - _FULL), 0.0, 1.0)


def _start(y_n: Floats, after_Sn: Floats) -> Floats:
    """Residuals from the medians of both sides."""
    both = np.where(after_Sn > 0, np.nan, y_n), np.where(after_Sn > 0, y_n, np.nan)
    before, behind = (np.nanmedian(side, axis=1, keepdims=True) for side in both)
    return y_n - np.where(after_Sn > 0, behind, before)


def _days(weekdays: Sequence[int]) -> Floats:
    return np.eye(7)[np.asarray(weekdays, dtype=np.int64)]


def _limits(starts_S: NDArray[np.int64], nights: int) -> Floats:
    """What each candidate's deviate must reach."""
    behind = nights - starts_S
    return (
        LIMIT
        + np.where(behind <= _FEW, _MORE_FOR_FEW, 0.0)
        + np.where(behind > _WEEK, _MORE_FOR_OLD, 0.0)
        + np.where(starts_S < KNOWN, _MORE_FOR_UNKNOWN, 0.0)
    )


def _clearest(y_n: Floats, day_nD: Floats, floor: float, newest: bool) -> Step | None:
    """The clearest step, if there is one that counts.

    Args:
        y_n: logarithms.
        day_nD: one-hot weekdays.
        floor: least standard deviation of a night.
        newest: these nights end with the newest one, so a step near the end is of interest.
    """
    last = len(y_n) - (AFTER if newest else BEFORE)
    starts = np.arange(BEFORE, last + 1)
    if not len(starts):
        return None
    after = (np.arange(len(y_n)) >= starts[:, None]).astype(np.float64)
    weight = _weights(_start(y_n, after), floor)
    for _ in range(_ROUNDS):
        fit = _solve(y_n, after, weight, day_nD, floor)
        weight = _weights(fit.residual_Sn, floor)
    fit = _solve(y_n, after, weight, day_nD, floor)
    found = np.flatnonzero(np.abs(fit.z_S) >= _limits(starts, len(y_n)))
    if not len(found):
        return None
    # The night that speaks most for each step, left out.
    for_it = np.where(after > 0, 1.0, -1.0) * np.sign(fit.step_S)[:, None] * fit.residual_Sn
    rows = np.arange(len(starts))
    small = np.where((starts <= len(y_n) // 2)[:, None], after == 0, after > 0)
    weight[rows, np.where(small, for_it, -np.inf).argmax(1)] = 0.0
    without = _solve(y_n, after, weight, day_nD, floor)
    stands = [row for row in found if without.z_S[row] * np.sign(fit.z_S[row]) >= LIMIT_WITHOUT_ONE]
    if not stands:
        return None
    best = max(stands, key=lambda row: abs(fit.z_S[row]))
    return Step(int(starts[best]), float(fit.step_S[best]), float(fit.error_S[best]), float(fit.z_S[best]))


def find_steps(values: Sequence[float], weekdays: Sequence[int], floor: float = 0.0) -> list[Step]:
    """Lasting changes of level, by night; each is measured against the nights up to the steps beside it.

    Args:
        values: positive figures [n], oldest first.
        weekdays: of the nights, 0 to 6.
        floor: least standard deviation of a night's logarithm, where the figure is known no better.

    Raises:
        ValueError: a value is not positive.
    """
    y, days = np.asarray(values, dtype=np.float64), _days(weekdays)
    if not (y > 0).all():
        raise ValueError("values: got one that is not positive, allowed: positive figures")
    return _split(np.log(y), days, floor, max(0, len(y) - LONGEST), len(y))


def _split(y_n: Floats, day_nD: Floats, floor: float, first: int, end: int) -> list[Step]:
    found = _clearest(y_n[first:end], day_nD[first:end], floor, end == len(y_n))
    if found is None:
        return []
    at = first + found.at
    here = Step(at, found.size, found.error, found.z)
    return [*_split(y_n, day_nD, floor, first, at), here, *_split(y_n, day_nD, floor, at, end)]


def newest_band(values: Sequence[float], weekdays: Sequence[int], floor: float = 0.0) -> Band | None:
    """Where the last value was expected from those before it, at one level: median and MAD, less the weekday's part.

    Args:
        values: positive figures [n] of one level, oldest first.
        weekdays: of the nights, 0 to 6.
        floor: least standard deviation of a night's logarithm.

    Returns:
        None with too few nights to tell.
    """
    if len(values) <= BEFORE:
        return None
    y, days = np.log(np.asarray(values, dtype=np.float64)), _days(weekdays)
    before, middle = y[:-1], float(np.median(y[:-1]))
    own = (before - middle)[days[:-1] @ days[-1] > 0]
    within = WEEKDAY_RATIO * len(own)
    middle += float(np.median(own)) * within / (1 + within) if len(own) else 0.0
    spread = max(_MAD * float(np.median(np.abs(before - np.median(before)))), floor, 1e-12)
    return Band(middle, middle - BAND * spread, middle + BAND * spread, float(y[-1]))
