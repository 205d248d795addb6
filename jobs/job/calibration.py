"""Which way of decoding is fastest: a knock-out of short measurements, and the table of what was measured.

Plain decoding, one head call a step, is always among the last, so that every table says what its choice gains.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from spd_core.decode.trial import Trial
from spd_core.law import Auto, Choice, Guarantee, Method, Plain, Settings

logger = logging.getLogger(__name__)

#: Choices of the last round, and how often each has its turn there, at most.
FINALISTS = 3
LAPS = 3
#: A choice with less of the best one's speed in the first rounds does not come into the last.
CONTENDING = 0.6
#: So many times the fastest turn of every other choice, the slowest turn of one decides the last round.
CLEAR = 1.5
#: Share of the time that is meant for the last round.
FINAL_SHARE = 2 / 3
#: The last round of a brief measurement may take so many times its share, if every turn of it then is a whole batch.
STRETCH = 4.0


class CalibrationRow(Settings):
    """One choice and what was measured of it."""

    method: Method
    batch: int
    guarantee: Guarantee
    images_per_s: float | None = Field(description="median of the trials; None: it failed")
    trials: tuple[float, ...] = Field(description="images/s of each turn in the last round it was in")
    images: float = Field(description="images of these trials; of those that were cut off, the share made")
    whole: bool = Field(True, description="no turn was cut off within a batch")
    problem: str = Field("", description="why it failed")
    chosen: bool = False


class Comparison(Settings):
    """A method and plain decoding at the same law and batch: the same requests in turns, by one worker."""

    method: tuple[float, ...] = Field(description="images/s of each turn")
    plain: tuple[float, ...] = Field(description="images/s of each turn of plain decoding")
    images: float = Field(description="of all turns of each; of those that were cut off, the share made")
    batch: int
    whole: bool = Field(description="no turn was cut off within a batch")
    ratio: float = Field(description="speed over plain decoding: median of the pairs of turns")
    made: str = Field(description="when, UTC; empty: by a version that did not say it")
    machine: dict[str, str] = Field(description="of the worker")


class Calibration(Settings):
    """How the method and batch size of a plan were chosen."""

    method: Auto = Field(description="what the spec asked for")
    batch: int | Literal["auto"] = Field(description="what the spec asked for")
    rows: tuple[CalibrationRow, ...] = Field(description="empty: nothing was measured, or it was lost")
    machine: dict[str, str] = Field(description="of the worker that measured")
    seconds: float = Field(description="time of all trials")
    made: str = Field("", description="when it was measured, UTC; empty: by a version that did not say it")
    remembered: bool = Field(False, description="it was measured for an earlier job, on such a device")
    unmeasured: str = Field("", description="why nothing was measured; empty without rows: lost with a damaged plan")

    @model_validator(mode="after")
    def _one_is_chosen(self) -> Calibration:
        if self.rows and sum(row.chosen for row in self.rows) != 1:
            raise ValueError("not exactly one row is chosen")
        return self

    @property
    def chosen(self) -> CalibrationRow | None:
        return next((row for row in self.rows if row.chosen), None)

    @property
    def comparison(self) -> Comparison | None:
        """The choice against plain decoding; None: it is plain decoding, or they were not measured in turns."""
        chosen = self.chosen
        if chosen is None or chosen.method == Plain():
            return None
        plain = next((row for row in self.rows if (row.method, row.batch) == (Plain(), chosen.batch)), None)
        if plain is None or not all(plain.trials) or len(plain.trials) != len(chosen.trials):
            return None
        return Comparison(
            method=chosen.trials,
            plain=plain.trials,
            images=min(chosen.images, plain.images),
            batch=chosen.batch,
            whole=chosen.whole and plain.whole,
            ratio=statistics.median(one / other for one, other in zip(chosen.trials, plain.trials, strict=True)),
            made=self.made,
            machine=self.machine,
        )


class TrialFailed(Exception):
    """One choice cannot be measured; the others can."""


#: Measures a choice in the numbered lap, every choice on the same requests, for at most so many seconds; infinite: for
#: a whole batch.
Measure = Callable[[Choice, int, float], Trial]


@dataclass(frozen=True)
class Round:
    """One round of the knock-out."""

    size: int  #: choices in it, at most
    laps: int  #: turns of each
    limit_s: float  #: of one turn


def early_rounds(count: int, seconds: float) -> list[Round]:
    """The rounds before the last: each of ``count`` choices once, then the better third once, until few are left."""
    sizes = [count]
    while sizes[-1] // 3 > FINALISTS:
        sizes.append(sizes[-1] // 3)
    return [Round(size, 1, seconds / len(sizes) / size) for size in sizes]


def last_round(batch_s: Sequence[float], seconds: float, least: int = 2, brief: bool = False) -> Round:
    """The last round: as many laps as leave every turn the time for a batch; for a second lap the last drops out.

    The first part of a batch is no fair measure of the whole: its last images are made with less company, and causal
    tokens are finished together at the end.

    Args:
        batch_s: seconds that a batch of each finalist takes, those first that should stay.
        seconds: for the round.
        least: finalists that stay in any case.
        brief: each has one whole batch, rather than two parts of one, where that is not far over the time.
    """
    size = len(batch_s)
    while size > least and 2 * sum(batch_s[:size]) > seconds:
        size -= 1
    if brief and seconds / 2 < sum(batch_s[:size]) <= STRETCH * seconds:
        return Round(size, 1, math.inf)
    laps = max(2, min(LAPS, int(seconds / sum(batch_s[:size]))))
    return Round(size, laps, seconds / (size * laps))


def most_turns(count: int, brief: bool = False) -> int:
    """Turns of a knock-out of ``count`` choices, with the warm-up: at most, since a slow finalist may drop out."""
    return 1 + sum(each.size for each in early_rounds(count, 1.0)) + (2 if brief else FINALISTS + 1) * LAPS


class _KnockOut:
    """The state between the rounds."""

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.standing = list(choices)
        self.trials: dict[Choice, list[Trial]] = {}  # of the last round that a choice was in
        self.speeds: dict[Choice, list[float]] = {}  # of every turn
        self.problems: dict[Choice, str] = {}
        self.lap = 0
        self.seconds = 0.0

    def rate(self, choice: Choice) -> float:
        return statistics.median(trial.images_per_s for trial in self.trials[choice])

    def keep(self, count: int) -> None:
        """Leaves the fastest standing, fastest first."""
        self.standing = sorted(self.standing, key=self.rate, reverse=True)[:count]

    def keep_contenders(self, brief: bool) -> int:
        """Leaves those standing that are not far behind the fastest, and the second in any case.

        Plain decoding at the batch of the fastest is put third, however slow it is, if it is none of the first two. In
        a brief measurement it is put second, and others are left out.

        Returns:
            how many have to stay: the first two and plain decoding.
        """
        least = CONTENDING * max((self.rate(choice) for choice in self.standing), default=0.0)
        kept = [c for place, c in enumerate(self.standing) if place < 2 or self.rate(c) >= least]
        plain = Choice(method=Plain(), batch=kept[0].batch)
        if plain not in kept[:2] and plain not in self.problems and self.trials.get(plain):
            kept = [*kept[: 1 if brief else 2], plain, *(choice for choice in kept[2:] if choice != plain)]
        self.standing = kept[:2] if brief else kept
        return max(2, kept.index(plain) + 1) if plain in kept[:3] else 2

    def decided(self) -> bool:
        """Whether one choice was in its slowest turn far faster than every other in its fastest, in two rounds."""
        speeds = sorted((self.speeds[choice] for choice in self.standing), key=max)
        return bool(speeds) and min(speeds[-1]) >= CLEAR * max((max(own) for own in speeds[:-1]), default=0.0)

    def run(self, each: Round, measure: Measure) -> None:
        self.trials |= {choice: [] for choice in self.standing}
        for lap in range(each.laps):
            if lap and self.decided():
                return
            self.lap += 1
            for choice in list(self.standing):
                try:
                    trial = measure(choice, self.lap, each.limit_s)
                except TrialFailed as error:
                    logger.warning("%s at batch %d is skipped: %s", choice.method.name, choice.batch, error)
                    self.problems[choice] = str(error)
                    self.standing.remove(choice)
                    continue
                self.trials[choice].append(trial)
                self.speeds.setdefault(choice, []).append(trial.images_per_s)
                self.seconds += trial.seconds

    def row(self, choice: Choice, chosen: bool) -> CalibrationRow:
        failed = choice in self.problems
        trials = self.trials[choice]
        return CalibrationRow(
            method=choice.method,
            batch=choice.batch,
            guarantee=choice.method.guarantee,
            images_per_s=None if failed else self.rate(choice),
            trials=tuple(trial.images_per_s for trial in trials),
            images=sum(trial.images for trial in trials),
            whole=all(trial.whole for trial in trials),
            problem=self.problems.get(choice, ""),
            chosen=chosen,
        )


def calibrate(
    choices: Sequence[Choice], measure: Measure, seconds: float, brief: bool = False
) -> tuple[Choice, tuple[CalibrationRow, ...], float]:
    """Finds the fastest choice.

    1. Warm up: the first choice once, for as short as can be.
    2. Every choice has one turn; the best third goes on, until few are left (`early_rounds`).
    3. The finalists and plain decoding take turns, so that a drift of the machine meets all of them (`last_round`),
       until the laps are over or one is clearly the fastest.
    4. The highest median of the last round wins.

    Args:
        choices: at least one.
        measure: one turn of one choice.
        seconds: for all turns together, about: a turn ends no earlier than at the first part of its images.
        brief: only the best is met again beside plain decoding, or the second where that is the best.

    Returns:
        the choice, a row for each choice in their order, and the seconds of all turns.

    Raises:
        TrialFailed: every choice failed.
    """
    state = _KnockOut(choices)
    with suppress(TrialFailed):  # it fails again in its turn, and is told there
        measure(choices[0], 0, 0.0)
    early = early_rounds(len(choices), seconds * (1 - FINAL_SHARE))
    for each, next_size in zip(early, [*(each.size for each in early[1:]), FINALISTS], strict=True):
        state.run(each, measure)
        state.keep(next_size)
    if state.standing:
        least = state.keep_contenders(brief)
        # A turn is over when its shard is made, or takes longer than it should where no part of a batch is that short.
        left_s = max(seconds - state.seconds, seconds * FINAL_SHARE / (1 if brief else 2))
        last = last_round([choice.batch / state.rate(choice) for choice in state.standing], left_s, least, brief)
        state.standing = state.standing[: last.size]
        state.run(last, measure)
    # Should all finalists have failed, the best of the others still beats an end of the job.
    left = state.standing or [choice for choice in choices if choice not in state.problems]
    if not left:
        raise TrialFailed(f"every method failed, the first with: {state.problems[choices[0]]}")
    best = max(left, key=state.rate)
    return best, tuple(state.row(choice, choice == best) for choice in choices), state.seconds
