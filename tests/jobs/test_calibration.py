"""The knock-out that finds the fastest choice, on made-up times."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from jobs.job.calibration import (
    FINALISTS,
    LAPS,
    Calibration,
    TrialFailed,
    calibrate,
    early_rounds,
    last_round,
)
from spd_core.decode.trial import Trial
from spd_core.law import Auto, Choice, Guarantee, Plain, Speculative

CHOICES = tuple(
    Choice(method=method, batch=batch)
    for batch in (1, 4)
    for method in (Plain(), Plain(head_window=(8,)), *(Speculative(gamma=gamma) for gamma in (2, 4, 8)))
)


class Machine:
    """Takes trials at given rates (images/s by place in the list); keeps what it was asked."""

    def __init__(self, rates: list[float], disturb: Callable[[int, int, float], float] = lambda _i, _turn, rate: rate):
        self.rates, self.disturb = rates, disturb
        self.asked: list[tuple[int, int, float]] = []

    def measure(self, choice: Choice, lap: int, limit_s: float) -> Trial:
        place = CHOICES.index(choice)
        self.asked.append((place, lap, limit_s))
        if math.isinf(limit_s):  # a whole batch
            limit_s = choice.batch / self.rates[place]
        rate = self.disturb(place, len(self.asked), self.rates[place])
        if rate < 0:
            raise TrialFailed("no memory")
        return Trial(rate * max(limit_s, 0.01), max(limit_s, 0.01))


RATES = [1.0, 3.0, 2.0, 2.5, 2.4, 3.5, 3.6, 5.0, 4.0, 2.0]


def test_the_fastest_is_chosen_and_every_choice_has_a_row():
    machine = Machine(RATES)
    best, rows, seconds = calibrate(CHOICES, machine.measure, 120.0)
    assert best == CHOICES[7]
    assert [(row.method, row.batch) for row in rows] == [(choice.method, choice.batch) for choice in CHOICES]
    assert [row.images_per_s for row in rows] == pytest.approx(RATES)
    assert [row.chosen for row in rows] == [place == 7 for place in range(10)]
    # The fastest three, and plain decoding at the batch of the fastest.
    assert {place for place, row in enumerate(rows) if len(row.trials) == LAPS} == {5, 6, 7, 8}
    assert all(len(row.trials) == 1 for place, row in enumerate(rows) if place not in (5, 6, 7, 8))
    assert all(row.guarantee is Guarantee.EXACT and not row.problem for row in rows)
    assert seconds == pytest.approx(120.0)


@pytest.mark.parametrize("place", range(10))
def test_any_place_can_win(place):
    rates = [1.0] * 10
    rates[place] = 1.2
    assert calibrate(CHOICES, Machine(rates).measure, 60.0)[0] == CHOICES[place]


def test_a_clear_winner_is_found_in_a_fraction_of_the_time():
    rates = [1.0] * 7 + [5.0, 1.2, 1.1]
    machine = Machine(rates)
    best, rows, seconds = calibrate(CHOICES, machine.measure, 120.0)
    assert best == CHOICES[7]
    assert len(rows[7].trials) == 1
    # The first rounds' third, and one of the laps in which only the winner, the second and plain decoding take turns.
    assert [place for place, _, _ in machine.asked[-3:]] == [7, 8, 5]
    assert seconds <= 120 * (1 / 3 + 1 / 3) + 1e-6


def test_a_winner_by_luck_in_the_first_round_is_met_again():
    rates = [1.0] * 7 + [1.3, 1.2, 1.1]
    machine = Machine(rates, lambda place, turn, rate: 50.0 if place == 3 and turn <= 11 else rate)
    best, _, _ = calibrate(CHOICES, machine.measure, 120.0)
    assert best == CHOICES[7], "the second best of the first rounds is always met again"


def test_equally_fast_choices_leave_the_first():
    assert calibrate(CHOICES, Machine([1.0] * 10).measure, 60.0)[0] == CHOICES[0]


def test_the_first_trial_only_warms_up():
    machine = Machine(RATES, lambda _place, turn, rate: 1e6 if turn == 1 else rate)
    assert calibrate(CHOICES, machine.measure, 60.0)[0] == CHOICES[7]
    assert machine.asked[0] == (0, 0, 0.0)


def test_one_lucky_turn_does_not_win():
    # The first turn of the last round; a mean, or the best turn, would choose the lucky one.
    machine = Machine(RATES, lambda place, turn, rate: 100.0 if place == 8 and turn == 13 else rate)
    best, rows, _ = calibrate(CHOICES, machine.measure, 60.0)
    assert max(rows[8].trials) == pytest.approx(100.0), "the lucky turn was in the last round"
    assert best == CHOICES[7]


def test_a_machine_that_slows_down_slows_all_finalists():
    # The best comes last into the last round, which loses 1 % a turn: one finalist after the other, in place of in
    # turn, would cost it more than its lead.
    rates = [1.0] * 7 + [2.0, 2.1, 2.0]

    def disturb(place: int, turn: int, rate: float) -> float:
        early = turn <= 1 + len(CHOICES)
        return (1.9 if place == 8 else rate) if early else rate * 0.99 ** (turn - 11)

    machine = Machine(rates, disturb)
    assert calibrate(CHOICES, machine.measure, 60.0)[0] == CHOICES[8]
    assert [place for place, _, _ in machine.asked[-FINALISTS - 1 :]] == [7, 9, 5, 8]


def test_with_noise_the_choice_is_near_the_best():
    noise = random.Random(0)
    losses = []
    for _ in range(200):
        rates = [noise.uniform(1.0, 2.0) for _ in CHOICES]
        machine = Machine(rates, lambda _place, _turn, rate: rate * noise.gauss(1.0, 0.03))
        losses.append(rates[CHOICES.index(calibrate(CHOICES, machine.measure, 60.0)[0])] / max(rates))
    assert min(losses) > 0.9
    assert sum(loss >= 0.95 for loss in losses) >= 195


def test_a_finalist_is_met_on_other_requests_in_every_lap():
    machine = Machine(RATES)
    calibrate(CHOICES, machine.measure, 60.0)
    laps = [lap for place, lap, _ in machine.asked if place == 7]
    assert len(laps) == len(set(laps)) == 1 + LAPS
    last = [(lap, place) for place, lap, _ in machine.asked[-3 * FINALISTS :]]
    assert last == sorted(last, key=lambda turn: turn[0]), "the finalists take turns"


def test_a_failing_choice_is_left_out_with_a_warning(caplog):
    machine = Machine(RATES, lambda place, _turn, rate: -1.0 if place == 7 else rate)
    best, rows, _ = calibrate(CHOICES, machine.measure, 60.0)
    assert best == CHOICES[8]
    assert (rows[7].images_per_s, rows[7].trials, rows[7].problem) == (None, (), "no memory")
    assert "speculative at batch 4 is skipped: no memory" in caplog.text


def test_a_choice_that_fails_late_is_left_out_too():
    machine = Machine(RATES, lambda place, turn, rate: -1.0 if place == 7 and turn > 11 else rate)
    best, rows, _ = calibrate(CHOICES, machine.measure, 60.0)
    assert best == CHOICES[8]
    assert rows[7].images_per_s is None


def test_if_all_finalists_fail_the_best_of_the_others_is_taken():
    machine = Machine(RATES, lambda place, turn, rate: -1.0 if place in (6, 7, 8) and turn > 11 else rate)
    assert calibrate(CHOICES, machine.measure, 60.0)[0] == CHOICES[5]


def test_nothing_left_is_an_error():
    with pytest.raises(TrialFailed, match="every method failed, the first with: no memory"):
        calibrate(CHOICES, Machine([-1.0] * 10).measure, 60.0)


@pytest.mark.parametrize(
    ("batch_s", "laps"),
    [((1.0, 1.0), 3), ((10.0, 12.0), 2), ((23.0, 24.0), 1), ((100.0, 120.0), 1), ((120.0, 121.0), 2)],
)
def test_a_brief_last_round_is_of_whole_batches_unless_they_take_much_too_long(batch_s, laps):
    found = last_round(batch_s, 60.0, brief=True)
    assert (found.size, found.laps, math.isinf(found.limit_s)) == (2, laps, laps == 1)


def test_a_brief_measurement_meets_the_best_and_plain_decoding_again():
    choices, machine = CHOICES[5:], Machine(RATES)
    best, rows, _ = calibrate(choices, machine.measure, 10.0, brief=True)
    assert best == CHOICES[7]
    assert [place for place, _, _ in machine.asked] == [5, 5, 6, 7, 8, 9, *[7, 5] * (len(rows[0].trials))]
    # Cut-off turns flatter the windows; whole batches show that plain decoding is as fast.
    flattered = Machine(RATES, lambda place, turn, rate: 3.0 if place == 7 and turn > 6 else rate)
    assert calibrate(choices, flattered.measure, 10.0, brief=True)[0] == CHOICES[5]


def test_the_gain_is_the_median_over_pairs_of_turns():
    rates = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 1.0, 1.0]
    _, rows, seconds = calibrate(CHOICES, Machine(rates).measure, 60.0)
    raw = {"method": Auto(), "batch": "auto", "machine": {}, "seconds": seconds, "made": "today"}
    found = Calibration(**raw, rows=rows).comparison
    assert (found.ratio, found.batch, found.made) == (2.0, 4, "today")
    assert found.whole
    cut = [row.model_copy(update={"whole": False}) if row.chosen else row for row in rows]
    assert not Calibration(**raw, rows=cut).comparison.whole
    uneven = [row.model_copy(update={"trials": row.trials[:1]}) if row.chosen else row for row in rows]
    assert Calibration(**raw, rows=uneven).comparison is None, "they did not take turns"
    assert Calibration(**raw, rows=()).comparison is None


@pytest.mark.parametrize("count", [*range(1, 14), 28, 100])
def test_early_rounds_share_their_time(count):
    found = early_rounds(count, 90.0)
    assert sum(each.size * each.laps * each.limit_s for each in found) == pytest.approx(90.0)
    sizes = [each.size for each in found]
    assert sizes[0] == count and sizes == sorted(set(sizes), reverse=True)
    # A round leaves about a third for the next, and the last of them for the finalists.
    assert all(size // 3 == after for size, after in pairwise(sizes))
    assert sizes[-1] // 3 <= FINALISTS


@pytest.mark.parametrize(
    ("batch_s", "size", "laps"),
    [
        ((1.0, 1.0, 1.0), 3, 3),
        ((9.0, 10.0, 11.0), 3, 3),
        ((10.0, 10.0, 11.0), 3, 2),
        ((15.0, 15.0, 15.0), 3, 2),
        ((15.0, 15.0, 16.0), 2, 3),
        ((20.0, 20.0, 90.0), 2, 2),
        ((1e4, 1e4, 1e4), 2, 2),
        ((1e4, 1e4), 2, 2),
        ((10.0,), 1, 3),
        ((1e4,), 1, 2),
    ],
)
def test_finalists_have_the_time_for_a_batch_in_every_turn_where_they_can(batch_s, size, laps):
    found = last_round(batch_s, 90.0)
    assert (found.size, found.laps) == (size, laps)
    assert found.limit_s * found.size * found.laps == pytest.approx(90.0)


@pytest.mark.parametrize(
    ("slower", "finalists", "turns"), [(1, (5, 6, 7, 8), 3), (9, (5, 7, 8), 2), (40, (5, 7, 8), 2)]
)
def test_slow_choices_have_fewer_and_longer_turns(slower, finalists, turns):
    _, rows, seconds = calibrate(CHOICES, Machine([rate / slower for rate in RATES]).measure, 90.0)
    assert {place: len(row.trials) for place, row in enumerate(rows) if len(row.trials) > 1} == dict.fromkeys(
        finalists, turns
    )
    assert seconds == pytest.approx(90.0)


def test_the_last_round_gets_what_the_first_left():
    class Quick(Machine):
        """Shards are made before the time is up."""

        def measure(self, choice: Choice, lap: int, limit_s: float) -> Trial:
            trial = super().measure(choice, lap, limit_s)
            return Trial(0.1 * trial.images_per_s, 0.1)

    machine = Quick(RATES)
    calibrate(CHOICES, machine.measure, 90.0)
    assert machine.asked[1][2] == pytest.approx(30.0 / len(CHOICES))
    assert machine.asked[-1][2] == pytest.approx((90.0 - 0.1 * len(CHOICES)) / ((FINALISTS + 1) * LAPS))


def test_a_calibration_has_one_chosen_row():
    _, rows, seconds = calibrate(CHOICES, Machine(RATES).measure, 60.0)
    raw = {"method": Auto(), "batch": "auto", "machine": {}, "seconds": seconds}
    assert Calibration(**raw, rows=rows).chosen == rows[7]
    assert Calibration(**raw, rows=()).chosen is None
    with pytest.raises(ValueError, match="not exactly one row is chosen"):
        Calibration(**raw, rows=rows[:7])
