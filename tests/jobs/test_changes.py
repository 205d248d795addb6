"""Lasting changes of a noisy figure are found, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.nightly.changes import find_steps, newest_band
from tests.nights import CHANGE, history, rates

DAYS = [night % 7 for night in range(60)]


def steps_of(values):
    return find_steps(values, DAYS[: len(values)])


@pytest.mark.parametrize("drop", [0.08, 0.15, 0.3])
def test_a_drop_is_found_on_its_night_and_with_its_size(drop):
    (step,) = steps_of(history(np.random.default_rng(5), drop, "narrow"))
    assert step.at == CHANGE
    assert np.expm1(step.size) == pytest.approx(-drop, abs=0.02)


def test_nothing_is_found_where_nothing_changed():
    assert steps_of(history(np.random.default_rng(5), 0.0)) == []


def test_one_odd_night_is_no_change_wherever_it_is():
    still = 2.4 * (1 + np.random.default_rng(6).uniform(-0.05, 0.05, 30))
    for night in range(30):
        values = still.copy()
        values[night] *= 0.5
        assert all(not any(step.size < 0 for step in steps_of(values[:seen])) for seen in (night + 1, night + 2, 30))


def test_a_weekly_pattern_is_no_change():
    week = np.array([1, 1, 1, 1, 1, 0.85, 0.85])
    noise = np.random.default_rng(7).uniform(-0.02, 0.02, 42)
    assert steps_of(2.4 * week[np.arange(42) % 7] * (1 + noise)) == []


def test_a_large_drop_is_found_on_its_second_night():
    values = 2.4 * (1 + np.random.default_rng(8).uniform(-0.02, 0.02, 22))
    values[20:] *= 0.7
    assert [step.at for step in steps_of(values)] == [20]


def test_several_changes_are_told_apart():
    values = 2.4 * (1 + np.random.default_rng(9).uniform(-0.02, 0.02, 60))
    values[20:] *= 1.2
    values[45:] *= 0.85
    assert [step.at for step in steps_of(values)] == [20, 45]


def test_equal_values_have_no_steps_and_a_change_of_constants_has_one():
    assert steps_of([2.0] * 30) == []
    assert [step.at for step in steps_of([2.0] * 20 + [1.9] * 10)] == [20]


def test_a_change_within_the_known_error_is_none():
    assert find_steps([337.0] * 20 + [338.0] * 10, DAYS[:30], floor=0.02) == []


def test_figures_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        steps_of([1.0, 0.0, 1.0])


def test_the_newest_night_is_held_against_the_band_of_its_level():
    values = list(2.4 * (1 + np.random.default_rng(10).uniform(-0.05, 0.05, 20)))
    inside, outside = newest_band(values, DAYS[:20]), newest_band([*values[:-1], 1.6], DAYS[:20])
    assert inside is not None and not inside.outside
    assert outside is not None and outside.outside
    assert newest_band(values[:4], DAYS[:4]) is None


def test_drops_are_found_and_false_alarms_are_rare_in_a_few_simulated_histories():
    found = rates(seed=1, histories=20, drop=0.08)
    assert found.last_night <= 0.1
    assert found.found >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["uniform", "normal"])
def test_three_hundred_histories_keep_their_marks(noise):
    found = rates(seed=104, histories=300, drop=0.08, kind=noise)
    assert found.last_night <= 0.02
    assert found.found >= 0.95
