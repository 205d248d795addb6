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
LIMIT, LIMIT_WITHOUT_ONE = 3.05, 2.2
#: What is asked for on top by the nights of the new level, 2 first, the last one for all longer ones: nothing on the
#: fifth night, when a drop of a few percent can be known; more before, when outliers can make a step, and after, when
#: it would have been found: each further look would else be another chance of a false alarm.
_MORE_BY_NIGHTS = np.array([0.5, 0.5, 0.2, 0.0, 0.2, 0.4, 0.7])
#: And for a step with fewer than two weeks before it, whose weekdays are not known.
KNOWN, _MORE_FOR_UNKNOWN = 14, 1.3
#: Nights before a step, and from it on, at least; a step that is not the newest has at least `BEFORE` on both sides.
BEFORE, AFTER = 5, 2
#: Least and largest r: the variance of the weekdays' levels over that of the nights within a weekday.
_LEAST_RATIO, _LARGEST_RATIO = 0.4, 100.0
#: Nights by which a step may be placed anew beside its neighbours.
_AROUND = 3
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
    deviation_S: Floats  #: of a night


@dataclass(frozen=True)
class _Nights:
    """What is known of some nights before a step is looked for."""

    y_n: Floats  #: logarithms
    day_nD: Floats  #: one-hot weekdays
    ratio: float  #: r of the model
    floor: float  #: least standard deviation of a night

    def part(self, first: int, end: int) -> _Nights:
        return _Nights(self.y_n[first:end], self.day_nD[first:end], self.ratio, self.floor)


def _ratio(y_n: Floats, day_nD: Floats) -> float:
    """How strong the weekly pattern is, from what nights are off the median of the week around them."""
    if len(y_n) < KNOWN:
        return _LEAST_RATIO
    weeks = np.median(np.lib.stride_tricks.sliding_window_view(y_n, 7), axis=1)
    rest = y_n - weeks[np.clip(np.arange(len(y_n)) - 3, 0, len(weeks) - 1)]
    days = np.array([np.median(rest[day > 0]) if day.any() else 0.0 for day in day_nD.T])
    within = _MAD * float(np.median(np.abs(rest - days @ day_nD.T)))
    between = (_MAD * float(np.median(np.abs(days - np.median(days))))) if within == 0 else float(days.std())
    if within == 0:
        return _LARGEST_RATIO if between else _LEAST_RATIO
    return float(np.clip((between / within) ** 2 - 7 / len(y_n), _LEAST_RATIO, _LARGEST_RATIO))


def _weighted(x_Sn: Floats, weight_Sn: Floats, nights: _Nights) -> Floats:
    """The model's inverse covariance, but for the factor 1/v, times x, in closed form for each weekday's block."""
    within_SD = weight_Sn @ nights.day_nD
    share_SD = nights.ratio * ((weight_Sn * x_Sn) @ nights.day_nD) / (1 + nights.ratio * within_SD)
    return weight_Sn * (x_Sn - share_SD @ nights.day_nD.T)


def _solve(nights: _Nights, after_Sn: Floats, weight_Sn: Floats) -> _Fit:
    """Least squares with given weights, one candidate a row."""
    y_n, day_nD = nights.y_n, nights.day_nD
    one = np.ones_like(after_Sn)
    solved_one = _weighted(one, weight_Sn, nights)
    solved_after = _weighted(after_Sn, weight_Sn, nights)
    a11, a12, a22 = solved_one.sum(1), solved_after.sum(1), (solved_after * after_Sn).sum(1)
    b1, b2 = solved_one @ y_n, solved_after @ y_n
    det = np.maximum(a11 * a22 - a12**2, 1e-12)
    step, level = (a11 * b2 - a12 * b1) / det, (a22 * b1 - a12 * b2) / det
    rest = y_n - level[:, None] - step[:, None] * after_Sn
    within = nights.ratio * (weight_Sn @ day_nD)
    days = nights.ratio * ((weight_Sn * rest) @ day_nD) / (1 + within)
    residual = rest - days @ day_nD.T
    free = np.maximum(weight_Sn.sum(1) - 2 - (within / (1 + within)).sum(1), 1.0)
    deviation = np.maximum(np.sqrt((weight_Sn * residual**2).sum(1) / free), max(nights.floor, 1e-12))
    error = deviation * np.sqrt(a11 / det)
    chance = stdtr(free, -np.abs(step) / error)
    return _Fit(step, error, -np.sign(step) * ndtri(np.maximum(chance, 1e-300)), residual, deviation)


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
    behind = np.clip(nights - starts_S - AFTER, 0, len(_MORE_BY_NIGHTS) - 1)
    return LIMIT + _MORE_BY_NIGHTS[behind] + np.where(starts_S < KNOWN, _MORE_FOR_UNKNOWN, 0.0)


def _fitted(nights: _Nights, starts_S: NDArray[np.int64]) -> tuple[_Fit, Floats, Floats]:
    """The steps of some candidates, their weights [S, n] and which nights are behind each [S, n]."""
    after = (np.arange(len(nights.y_n)) >= starts_S[:, None]).astype(np.float64)
    weight = _weights(_start(nights.y_n, after), nights.floor)
    for _ in range(_ROUNDS):
        weight = _weights(_solve(nights, after, weight).residual_Sn, nights.floor)
    return _solve(nights, after, weight), weight, after


def _clearest(nights: _Nights, newest: bool) -> int | None:
    """The first night of the clearest step, if there is one that counts.

    Args:
        nights: to look at.
        newest: they end with the newest one, so a step near the end is of interest.
    """
    count = len(nights.y_n)
    starts = np.arange(BEFORE, count - (AFTER if newest else BEFORE) + 1)
    if not len(starts):
        return None
    fit, weight, after = _fitted(nights, starts)
    found = np.flatnonzero(np.abs(fit.z_S) >= _limits(starts, count))
    if not len(found):
        return None
    # The night that speaks most for each step, on its shorter side, is left out.
    for_it = np.where(after > 0, 1.0, -1.0) * np.sign(fit.step_S)[:, None] * fit.residual_Sn
    shorter = np.where((starts <= count // 2)[:, None], after == 0, after > 0)
    weight[np.arange(len(starts)), np.where(shorter, for_it, -np.inf).argmax(1)] = 0.0
    without = _solve(nights, after, weight)
    stands = found[without.z_S[found] * np.sign(fit.z_S[found]) >= LIMIT_WITHOUT_ONE]
    if not len(stands):
        return None
    return int(starts[stands[_likeliest(fit, stands)]])


def _likeliest(fit: _Fit, rows: NDArray[np.int64]) -> int:
    """Which of some candidates; whether there is a step, its deviate says, where it is, how little nights are off."""
    off = np.abs(fit.residual_Sn[rows]) / fit.deviation_S[rows].min()
    return int((np.minimum(off, _NONE) ** 2).sum(1).argmin())


def _split(nights: _Nights, first: int, end: int) -> list[int]:
    """First nights of the levels behind the first one."""
    found = _clearest(nights.part(first, end), end == len(nights.y_n))
    if found is None:
        return []
    at = first + found
    return [*_split(nights, first, at), at, *_split(nights, at, end)]


def _between_neighbours(nights: _Nights, starts: Sequence[int]) -> list[Step]:
    """Each step placed anew, a few nights around, and measured from the level before it to the one behind it."""
    bounds = [0, *starts, len(nights.y_n)]
    steps = []
    for before, at, end in zip(bounds, bounds[1:-1], bounds[2:], strict=False):
        near = np.arange(max(before + AFTER, at - _AROUND), min(end - AFTER, at + _AROUND) + 1)
        fit, _, _ = _fitted(nights.part(before, end), near - before)
        row = _likeliest(fit, np.arange(len(near)))
        steps.append(Step(int(near[row]), float(fit.step_S[row]), float(fit.error_S[row]), float(fit.z_S[row])))
    return steps


def find_steps(values: Sequence[float], weekdays: Sequence[int], floor: float = 0.0) -> list[Step]:
    """Lasting changes of level, by night; each is measured against the nights up to the steps beside it.

    Args:
        values: positive figures [n], oldest first; the last `LONGEST` are looked at.
        weekdays: of the nights, 0 to 6.
        floor: least standard deviation of a night's logarithm, where the figure is known no better.

    Raises:
        ValueError: a value is not positive.
    """
    skipped = max(0, len(values) - LONGEST)
    y, days = np.asarray(values[skipped:], dtype=np.float64), _days(weekdays[skipped:])
    if not (y > 0).all():
        raise ValueError("values: got one that is not positive, allowed: positive figures")
    y = np.log(y)
    nights = _Nights(y, days, _ratio(y, days), floor)
    starts = _split(nights, 0, len(y))
    steps = _between_neighbours(nights, starts)
    # A step that was clear beside nights that have a level of their own may be none beside its neighbours.
    while steps and abs((weakest := min(steps, key=lambda step: abs(step.z))).z) < LIMIT_WITHOUT_ONE:
        steps = _between_neighbours(nights, [step.at for step in steps if step is not weakest])
    return [Step(step.at + skipped, step.size, step.error, step.z) for step in steps]


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
    spread = max(_MAD * float(np.median(np.abs(before - middle))), floor, 1e-12)
    within = _ratio(before, days[:-1]) * len(own)
    middle += float(np.median(own)) * within / (1 + within) if len(own) else 0.0
    return Band(middle, middle - BAND * spread, middle + BAND * spread, float(y[-1]))
