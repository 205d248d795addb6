"""The verdict over nights: which figures became worse, by how much, since when, and what changed between.

Three rules, in this order for each figure:

1. The limits of the spec's requirements (``min``, ``max``, ``exact``) hold for the newest night alone.
2. A deterministic figure equals that of the first night that was judged with the same plan and platforms. Where plan or
   platforms have changed, the change is told and explains the figure.
3. A noisy figure is judged by lasting changes of its level (`jobs.nightly.changes`): it is worse if the newest level is
   below an earlier one, unless it came back. One night outside the band of its level is said to be odd and judged no
   further, since it cannot be told from an outlier.

What has nothing to be held against, by a rule or a limit, is not judged: it waits, and is not counted.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from jobs.job.figures import FIGURES, Better, Kind
from jobs.job.plan import flat
from jobs.job.requirements import Requirement, Requirements
from jobs.nightly.changes import Band, Step, find_steps, newest_band
from jobs.nightly.record import Night
from jobs.words.phrases import counted, number
from spd_core.complaints import shown

#: Nights before changes of level are looked for, unless the spec says otherwise.
LEAST_NIGHTS = 10
#: Percent by which a noisy figure may become worse, unless the spec says otherwise.
TOLERATED = 1.0
#: Least standard deviation of a noisy figure's logarithm: rounding of what is measured is no noise.
_FLOOR = 0.001
#: Standard errors by which a level that partly came back must still be worse.
_SURE = 2.0
#: Standard errors of the difference from which on two outputs differ.
_TWO_DIFFER = 3.0


class State(StrEnum):
    """What is to be said of a figure."""

    REGRESSION = "regression"
    IMPROVED = "improved"
    EXPLAINED = "explained"
    ODD = "odd"
    OK = "ok"
    WAITING = "waiting"
    SHOWN = "shown"


@dataclass(frozen=True)
class Finding:
    """Of one figure of the newest night."""

    figure: str
    state: State
    value: float | None
    before: float | None = None  #: what it is held against
    since: datetime.date | None = None  #: first night of the change
    text: str = ""  #: in words, behind the figure's name
    between: tuple[str, ...] = ()  #: what changed from the night before the change to its first
    steps: tuple[datetime.date, ...] = ()  #: first nights of new levels
    band: Band | None = None

    @property
    def percent(self) -> float | None:
        """Change in percent of what it is held against."""
        if self.value is None or not self.before:
            return None
        return 100 * (self.value / self.before - 1)

    @property
    def line(self) -> str:
        """One line: figure, size, since when, what changed between."""
        night = f" since the night of {self.since}" if self.since else ""
        between = ""
        if self.since or self.between:
            between = f"; between: {', '.join(self.between) or 'nothing that is recorded has changed'}"
        return f"{self.state}: {self.figure} {self.text}{night}{between}"


@dataclass(frozen=True)
class Verdict:
    """Of a history or of two outputs."""

    findings: tuple[Finding, ...]
    nights: int  #: judged
    newest: Night

    @property
    def regressions(self) -> tuple[Finding, ...]:
        """The worst first, those with a size before those without."""
        worse = [found for found in self.findings if found.state is State.REGRESSION]
        return tuple(sorted(worse, key=lambda found: -abs(found.percent or 0.0)))

    @property
    def lines(self) -> tuple[str, ...]:
        """The first one says what it is about."""
        told = [*self.regressions, *(found for found in self.findings if found.state in _TOLD)]
        lines = [found.line for found in told]
        judged = sum(found.state not in (State.SHOWN, State.WAITING) for found in self.findings)
        if not judged and self.nights == 1:
            return (f"ok: {_FIRST}, {_NOTHING}",)
        if not self.regressions:
            figures, nights = counted(judged, "figure", "figures"), counted(self.nights, "night", "nights")
            lines.insert(0, f"ok: {figures} of {self.newest.night} judged, {nights}")
        return (*lines, *self._waiting)

    @property
    def _waiting(self) -> list[str]:
        """What is not judged yet, one line for each reason."""
        names: dict[str, list[str]] = {}
        for found in self.findings:
            if found.state is State.WAITING:
                names.setdefault(found.text, []).append(found.figure)
        return [f"not judged yet: {', '.join(figures)}: {why}" for why, figures in names.items()]


_FIRST, _NOTHING = "first night", "nothing to compare with"
_TOLD = (State.ODD, State.EXPLAINED, State.IMPROVED)


def what_changed(before: Night, now: Night) -> tuple[str, ...]:
    """Commit, versions, device and spec, as far as two nights differ in them."""
    texts = []
    if before.commit != now.commit:
        texts.append(f"commit {before.commit or 'unknown'} -> {now.commit or 'unknown'}")
    for name in sorted({*before.versions, *now.versions}):
        old, new = before.versions.get(name, "none"), now.versions.get(name, "none")
        texts += [f"{name} {old} -> {new}"] if old != new else []
    for name in ("device", "machine"):
        old, new = getattr(before, name), getattr(now, name)
        texts += [f"{name} {old or 'unknown'} -> {new or 'unknown'}"] if old != new else []
    if before.platforms != now.platforms:
        texts.append(f"platform {'; '.join(before.platforms)} -> {'; '.join(now.platforms)}")
    old_spec, new_spec = (flat({k: v for k, v in night.spec.items() if k != "output"}) for night in (before, now))
    for name in sorted({*old_spec, *new_spec}):
        old, new = (shown(fields[name]) if name in fields else "none" for fields in (old_spec, new_spec))
        texts += [f"{name} {old} -> {new}"] if old != new else []
    if before.fingerprint != now.fingerprint and not texts:
        texts.append("the pair's weights")
    return tuple(texts)


def judge(nights: Sequence[Night], wanted: Requirements) -> Verdict:
    """The verdict over the newest of some nights.

    Args:
        nights: in order, at least one.
        wanted: of the spec.
    """
    judged = [night for night in nights if wanted.since is None or night.night >= wanted.since] or [nights[-1]]
    findings = [_judge(name, judged, wanted.of(name)) for name in FIGURES]
    content = _judge_content(judged)
    return Verdict((*(found for found in findings if found), *content), len(judged), judged[-1])


def _judge(name: str, nights: Sequence[Night], wanted: Requirement) -> Finding | None:
    """None for a figure that the newest night does not have, unless it is required."""
    value = nights[-1].figures.get(name)
    if value is None:
        missing = Finding(name, State.REGRESSION, None, text="is required and was not measured")
        return missing if _has_limits(wanted) else None
    if text := _outside_limits(value, wanted):
        return Finding(name, State.REGRESSION, value, text=text)
    kind = FIGURES[name].kind
    if kind is Kind.EXACT:
        return _judge_exact(name, nights, wanted)
    if kind is Kind.NOISY or wanted.max_regression is not None:
        return _judge_noisy(name, nights, wanted)
    return Finding(name, State.SHOWN, value)


def _has_limits(wanted: Requirement) -> bool:
    return wanted.min is not None or wanted.max is not None or wanted.exact is not None


def _waiting(name: str, value: float, why: str, wanted: Requirement, band: Band | None = None) -> Finding:
    """Of a figure without a past to be held against; it is judged nevertheless if it had limits to keep."""
    before = math.exp(band.middle) if band else None
    if _has_limits(wanted):
        return Finding(name, State.OK, value, before, band=band)
    return Finding(name, State.WAITING, value, before, text=why, band=band)


def _outside_limits(value: float, wanted: Requirement) -> str:
    if wanted.min is not None and value < wanted.min:
        return f"is {number(value, 4)}, required: at least {wanted.min:g}"
    if wanted.max is not None and value > wanted.max:
        return f"is {number(value, 4)}, required: at most {wanted.max:g}"
    if wanted.exact is not None and value != wanted.exact:
        return f"is {number(value, 6)}, required: {wanted.exact:g}"
    return ""


def _moved(before: float, value: float) -> str:
    """``fell 8.1 % (2.41 -> 2.21)``."""
    size = f" {abs(100 * (value / before - 1)):.2g} %" if before else ""
    return f"{'rose' if value > before else 'fell'}{size} ({number(before, 4)} -> {number(value, 4)})"


def _first_of_run(nights: Sequence[Night], same: Sequence[bool]) -> int:
    """Index of the first night of the run at the end that is all ``same``."""
    at = len(nights) - 1
    while at and same[at - 1]:
        at -= 1
    return at


def _judge_exact(name: str, nights: Sequence[Night], wanted: Requirement) -> Finding:
    now = nights[-1]
    value = now.figures[name]
    alike = [night for night in nights if night.key == now.key and name in night.figures]
    first = alike[0].figures[name]
    if first != value:
        off = abs(100 * (value / first - 1)) if first else math.inf
        if wanted.max_regression is not None and off <= wanted.max_regression:
            return Finding(name, State.OK, value, first)
        at = _first_of_run(alike, [night.figures[name] == value for night in alike])
        text = f"{_moved(first, value)} at the same plan and platform"
        between = what_changed(alike[at - 1], alike[at])
        return Finding(name, State.REGRESSION, value, first, alike[at].night, text, between)
    if len(alike) == 1:
        before = nights[-2].figures.get(name) if len(nights) > 1 else None
        if before is None:
            return _waiting(name, value, _NOTHING, wanted)
        if before != value:
            between = what_changed(nights[-2], now)
            return Finding(name, State.EXPLAINED, value, before, now.night, _moved(before, value), between)
    return Finding(name, State.OK, value, first)


def _judge_content(nights: Sequence[Night]) -> list[Finding]:
    """Bytes, and acceptance by place: equal or explained, without a size."""
    now = nights[-1]
    alike = [night for night in nights if night.key == now.key]
    findings = []
    for name, values in (
        ("bytes of the dataset", [night.content for night in alike]),
        ("acceptance by place", [night.accepted_by_place for night in alike]),
        ("counts", [tuple(sorted(night.counts.items())) for night in alike]),
    ):
        same = [value == values[-1] for value in values]
        if same[0]:
            continue
        at = _first_of_run(alike, same)
        between = what_changed(alike[at - 1], alike[at])
        text = "changed at the same plan and platform"
        findings.append(Finding(name, State.REGRESSION, None, None, alike[at].night, text, between))
    return findings


def _judge_noisy(name: str, nights: Sequence[Night], wanted: Requirement) -> Finding:
    of_images = name in ("frechet", "kid", "label_agreement")
    now = nights[-1]
    series = [
        night
        for night in nights
        if night.figures.get(name, 0.0) > 0 and (not of_images or night.quality_n == now.quality_n)
    ]
    value, least = now.figures[name], wanted.history or LEAST_NIGHTS
    if value <= 0:
        return Finding(name, State.OK, value)
    values = [night.figures[name] for night in series]
    days = [night.night.weekday() for night in series]
    known = sorted(night.errors[name] for night in series if name in night.errors)
    floor = max(_FLOOR, known[len(known) // 2] if of_images and known else 0.0)
    if len(values) <= least:
        why = f"{len(values) - 1} of {least} earlier nights"
        return _waiting(name, value, why, wanted, newest_band(values, days, floor))
    steps = find_steps(values, days, floor)
    level = steps[-1].at if steps else 0
    band = newest_band(values[level:], days[level:], floor)
    firsts = tuple(series[step.at].night for step in steps)
    worst = _worst(steps, FIGURES[name].better)
    tolerated = TOLERATED if wanted.max_regression is None else wanted.max_regression
    if worst is not None and (size := 100 * abs(math.expm1(worst[1]))) > tolerated:
        at = steps[worst[0]].at
        before = _level(values[steps[worst[0] - 1].at if worst[0] else 0 : at])
        after = before * math.exp(worst[1])
        text = f"{'rose' if after > before else 'fell'} {size:.1f} % ({number(before, 4)} -> {number(after, 4)})"
        between = what_changed(series[at - 1], series[at])
        return Finding(name, State.REGRESSION, after, before, series[at].night, text, between, firsts, band)
    if steps and steps[-1].size * FIGURES[name].better.value > 0:
        at = steps[-1].at
        before = _level(values[steps[-2].at if len(steps) > 1 else 0 : at])
        text, between = _moved(before, before * math.exp(steps[-1].size)), what_changed(series[at - 1], series[at])
        return Finding(name, State.IMPROVED, value, before, series[at].night, text, between, firsts, band)
    if band is not None and band.outside:
        text = (
            f"is {number(value, 4)}, expected {number(math.exp(band.low), 4)} to {number(math.exp(band.high), 4)}; "
            "one night is not judged"
        )
        return Finding(name, State.ODD, value, math.exp(band.middle), None, text, (), firsts, band)
    return Finding(name, State.OK, value, math.exp(band.middle) if band else None, None, "", (), firsts, band)


def _level(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _worst(steps: Sequence[Step], better: Better) -> tuple[int, float] | None:
    """The step since which the newest level is worst, and the change of the logarithm since; None: it came back."""
    found: tuple[int, float] | None = None
    for first, step in enumerate(steps):
        since = steps[first:]
        size = math.fsum(one.size for one in since)
        sure = len(since) == 1 or abs(size) > _SURE * math.sqrt(math.fsum(one.error**2 for one in since))
        worse = step.size * better.value < 0 and size * better.value < 0
        if worse and sure and (found is None or abs(size) > abs(found[1])):
            found = (first, size)
    return found


def compare(before: Night, now: Night, wanted: Requirements) -> Verdict:
    """The verdict over two outputs, which have no history and no control.

    Deterministic figures are judged as over nights. A noisy one that has a standard error is worse if the two differ by
    three standard errors of the difference, any other one only by more than the spec's ``max_regression``.
    """
    pair = (before, now)
    findings = []
    for name, figure in FIGURES.items():
        asked = wanted.of(name)
        found = _judge(name, pair, asked)
        old = before.figures.get(name)
        settled = found is None or found.value is None or found.state not in _UNSETTLED
        if not settled and old is not None and figure.kind is not Kind.EXACT:
            found = _compare(name, before, now, asked)
        elif found is not None and found.state is State.WAITING:
            found = replace(found, state=State.SHOWN, text="")
        findings.append(found)
    told = [*(found for found in findings if found), *_judge_content(pair)]
    return Verdict(tuple(replace(found, since=None) for found in told), 2, now)


_UNSETTLED = (State.OK, State.SHOWN, State.WAITING)


def _compare(name: str, before: Night, now: Night, wanted: Requirement) -> Finding:
    old, value, better = before.figures[name], now.figures[name], FIGURES[name].better
    shown = State.SHOWN if FIGURES[name].kind is Kind.SHOWN else State.OK
    comparable = before.quality_n == now.quality_n or name not in ("frechet", "kid", "label_agreement")
    if old <= 0 or value <= 0 or not comparable:
        return Finding(name, shown, value, old)
    size = math.log(value / old)
    error = math.hypot(before.errors.get(name, math.inf), now.errors.get(name, math.inf))
    clear = abs(size) > _TWO_DIFFER * error
    if wanted.max_regression is not None:
        clear = 100 * abs(value / old - 1) > wanted.max_regression
    if not clear or size * better.value >= 0:
        return Finding(name, State.IMPROVED if clear and size else shown, value, old, text=_moved(old, value))
    between = what_changed(before, now)
    return Finding(name, State.REGRESSION, value, old, now.night, _moved(old, value), between)
