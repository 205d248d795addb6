"""Tuned windows: the expected calls and rows are those of decoding, and no constant window does better."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spd_core.decode.head_speculation import speculate_head
from spd_core.decode.path import HeadDraws, LawHead, PathNoise, walk
from spd_core.draws import Draws
from spd_core.law import SamplerLaw
from spd_core.train.windows import SLICES, expected, survival, tune
from tests.tiny_causal import fitted_causal

FIRST, LAST, ROWS = 39, 4, 400
LAW = SamplerLaw(head_steps=40)


@pytest.fixture(scope="module")
def bound():
    model = fitted_causal(0, 200)
    with torch.inference_mode():
        return LawHead(model.head, LAW).bind(torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0)), 1.0)


def _noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return PathNoise(torch.randn(ROWS, 2, generator=generator), torch.randn(ROWS, 40, 2, generator=generator))


@pytest.fixture(scope="module")
def stands(bound):
    noise = _noise(1)
    with torch.inference_mode():
        return survival(bound, walk(bound, noise.start, FIRST, LAST, noise, trace=True).trace, FIRST)


def _calls_alone(bound, windows):
    """Mean sequential calls and rows of a path, each decoded by itself."""
    noise, zero, made = _noise(2), torch.zeros(1, dtype=torch.int64), []
    for row in range(200):
        own = PathNoise(noise.start[row, None], noise.step[row, None])
        alone = bound.at_law.bind(bound.z[row, None], 1.0)
        draws = HeadDraws(Draws(torch.tensor([row])), zero, zero, zero, 40)
        path, _ = speculate_head(alone, FIRST, LAST, own, draws, windows)
        made.append((path.calls, path.rows))
    return np.mean(made, axis=0)


@torch.inference_mode()
@pytest.mark.parametrize("windows", [(3,), (12, 6), (36,)], ids=str)
def test_the_expected_cost_is_that_of_decoding(bound, stands, windows):
    by_position = [windows[step * len(windows) // 40] for step in range(len(stands))]
    calls, rows = expected(stands, by_position)
    assert (calls, rows) == pytest.approx(_calls_alone(bound, windows), rel=0.15)


def test_windows_of_one_step_cost_what_plain_decoding_does(stands):
    assert expected(stands, [1] * len(stands)) == (len(stands), len(stands))


@pytest.mark.parametrize("price", [0.0, 0.1, 1.0])
def test_tuned_windows_beat_every_constant_one(stands, price):
    tuned = tune(stands, FIRST, 40, price)
    costs = []
    for length in range(1, 37):
        calls, rows = expected(stands, [length] * len(stands))
        costs.append(calls + price * rows)
    assert len(tuned.windows) == SLICES
    assert tuned.calls + price * tuned.rows <= min(costs)
    assert tuned.steps == len(stands)


def test_dear_rows_make_windows_short(stands):
    few_calls, few_rows = tune(stands, FIRST, 40, 0.0), tune(stands, FIRST, 40, 1.0)
    assert few_calls.calls < few_rows.calls
    assert few_calls.rows > few_rows.rows
