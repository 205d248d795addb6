"""The cost model: its counts against simulation, and its limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from spd_core.decode.cost import (
    CallTimes,
    Drafting,
    plain,
    plain_windowed,
    residual_attempts,
    rounds_needed,
    speculative,
    tokens_per_round,
)

TIMES = CallTimes(
    context=2.0,
    head=30.0,
    head_windowed=8.0,
    finish=9.0,
    finish_windowed=5.0,
    drafted=3.0,
    verification=6.0,
    residual=9.0,
)  # fmt: skip
TOKENS = 64


def _drafting(acceptance, gamma=8, proposals=4):
    return Drafting([acceptance] * gamma, acceptance, proposals)


def test_tokens_per_round_is_the_geometric_sum():
    assert tokens_per_round([]) == 1
    assert tokens_per_round([0.0] * 8) == 1
    assert tokens_per_round([1.0] * 8) == 9
    assert tokens_per_round([0.7] * 8) == pytest.approx((1 - 0.7**9) / 0.3)
    assert tokens_per_round([0.5, 0.8]) == pytest.approx(1 + 0.5 + 0.4)


def _simulated_rounds(acceptance, tokens, slots, fills, rng):
    rounds = []
    for _ in range(slots):
        made = count = 0
        while made < tokens * fills:
            stood = next((i for i, share in enumerate(acceptance) if rng.random() >= share), len(acceptance))
            made, count = made + min(stood + 1, tokens - made % tokens), count + 1
        rounds.append(count)
    return max(rounds)


@pytest.mark.parametrize(("slots", "fills"), [(1, 1), (4, 1), (2, 3)])
@pytest.mark.parametrize("acceptance", [[0.7] * 4, [0.5, 0.9, 0.3], []])
def test_rounds_are_those_of_a_simulation(acceptance, slots, fills):
    rng = np.random.default_rng(0)
    found = [_simulated_rounds(acceptance, 20, slots, fills, rng) for _ in range(2000)]
    error = np.std(found) / len(found) ** 0.5
    assert rounds_needed(acceptance, 20, slots, fills) == pytest.approx(np.mean(found), abs=4 * error + 1e-9)


def test_rounds_have_their_limits():
    assert rounds_needed([], TOKENS, 3) == TOKENS
    assert rounds_needed([1.0] * 8, TOKENS, 3) == pytest.approx(8), "64 tokens, 9 a round"
    assert rounds_needed([0.7] * 8, TOKENS, 8) > rounds_needed([0.7] * 8, TOKENS, 1)


@pytest.mark.parametrize("batch", [1, 6])
def test_attempts_are_those_of_a_simulation(batch):
    """One draft a round, always rejected but for the share that a proposal must miss."""
    rng, drafting = np.random.default_rng(0), _drafting(0.8, 1, 2)
    rejected = round(batch * 0.2) or 1
    found = []
    for _ in range(5000):
        attempts, still_open, proposals = 0, rejected, 2
        while still_open:
            still_open = int((rng.random((still_open, proposals)) < 0.8).all(axis=1).sum())
            attempts, proposals = attempts + 1, proposals * 4
        found.append(attempts)
    found_mean, error = np.mean(found), np.std(found) / len(found) ** 0.5
    assert residual_attempts(drafting, rejected / 0.2) == pytest.approx(found_mean, abs=4 * error)
    assert residual_attempts(_drafting(0.0, 1), 1) == 1


def test_speculation_without_drafts_is_plain_decoding():
    times = dataclasses.replace(TIMES, verification=TIMES.context)
    assert speculative(times, times, _drafting(0.5, 0), TOKENS, 1) == pytest.approx(plain_windowed(times, TOKENS))
    bare = dataclasses.replace(times, head_windowed=times.head, finish_windowed=times.finish)
    assert speculative(bare, bare, _drafting(0.5, 0), TOKENS, 1) == pytest.approx(plain(bare, TOKENS))


def test_more_acceptance_never_costs_time():
    seconds = [speculative(TIMES, TIMES, _drafting(acceptance / 10), TOKENS, 1) for acceptance in range(11)]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < plain_windowed(TIMES, TOKENS) < seconds[0]


def test_nothing_wins_where_a_verification_costs_its_tokens():
    """Compute-bound: gamma + 1 tokens at once cost as much as one after the other."""
    bound = CallTimes(
        context=2.0, head=30.0, head_windowed=30.0, finish=9.0, finish_windowed=9.0,
        drafted=1.0, verification=9 * 32.0, residual=30.0,
    )  # fmt: skip
    for acceptance in (0.5, 0.9, 1.0):
        assert speculative(bound, bound, _drafting(acceptance), TOKENS, 1) > plain(bound, TOKENS)


def test_a_heavy_context_pass_is_where_speculation_wins():
    heavy = dataclasses.replace(TIMES, context=40.0, verification=44.0)
    drafting = _drafting(0.7)
    gain = plain_windowed(heavy, TOKENS) / speculative(heavy, heavy, drafting, TOKENS, 1)
    assert gain > 1.15 > plain_windowed(TIMES, TOKENS) / speculative(TIMES, TIMES, drafting, TOKENS, 1)


def test_slots_that_run_empty_save_their_share():
    """Cost in proportion to the slots at work: the batch costs what its images cost one by one."""
    eight = CallTimes(**{name: 8 * seconds for name, seconds in vars(TIMES).items()})
    sure = Drafting([0.7] * 8, 0.0, 4)  # every rejected token keeps its first proposal
    one = speculative(TIMES, TIMES, sure, TOKENS, 1)
    assert speculative(eight, TIMES, sure, TOKENS, 8) == pytest.approx(8 * one)
    assert speculative(TIMES, TIMES, sure, TOKENS, 8) > 1.05 * one, "a round that costs the same whoever is at work"
