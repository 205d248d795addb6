"""The cost model's limits."""

from __future__ import annotations

import pytest

from spd_core.decode.cost import CallTimes, plain, plain_windowed, speculative, tokens_per_round

TIMES = CallTimes(context=2.0, head=30.0, head_windowed=8.0, drafted=3.0, verification=6.0, residual=9.0)


def test_tokens_per_round_is_the_geometric_sum():
    assert tokens_per_round(0, 0.7) == 1
    assert tokens_per_round(8, 0.0) == 1
    assert tokens_per_round(8, 1.0) == 9
    assert tokens_per_round(8, 0.7) == pytest.approx((1 - 0.7**9) / 0.3)


def test_speculation_without_drafts_is_plain_decoding():
    times = CallTimes(**{**vars(TIMES), "verification": TIMES.context})
    assert speculative(times, 0, 0.9) == plain_windowed(times)
    assert speculative(times, 0, 0.9, windowed=False) == plain(times)


def test_more_acceptance_never_costs_time():
    seconds = [speculative(TIMES, 8, acceptance / 10) for acceptance in range(11)]
    assert seconds == sorted(seconds, reverse=True)
    assert speculative(TIMES, 8, 1.0) < plain_windowed(TIMES) < speculative(TIMES, 8, 0.0)


def test_nothing_wins_where_a_verification_costs_its_tokens():
    """Compute-bound: gamma + 1 tokens at once cost as much as one after the other."""
    bound = CallTimes(context=2.0, head=30.0, head_windowed=30.0, drafted=1.0, verification=9 * 32.0, residual=30.0)
    assert all(speculative(bound, 8, acceptance) > plain(bound) for acceptance in (0.5, 0.9, 1.0))
