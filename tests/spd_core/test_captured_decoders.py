"""Decoders whose loops are recorded make the tokens that they make without, and record little."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from spd_core.decode import decode, head_rounds, head_speculation, path
from spd_core.draws import Draws
from spd_core.law import Cspd, Plain, SamplerLaw
from spd_core.pairs.pair import Pair, load_pair
from tests.cpu_graph import cpu_graphs

LABELS, SEEDS = torch.tensor([0, 4]), torch.arange(2)


@pytest.fixture(scope="module")
def mar() -> Pair:
    return load_pair("fashion-mar")


def law(pair: Pair, **changes) -> SamplerLaw:
    return pair.card.law.model_copy(update={"num_iter": 8, "head_steps": 6, **changes})


@pytest.mark.parametrize("changes", [{}, {"cfg": 1.0}, {"dtype": "bfloat16"}], ids=["guided", "unguided", "bfloat16"])
def test_plain_mar_from_graphs(mar: Pair, changes: dict):
    here = law(mar, **changes)
    directly = decode(mar, here, Plain(), LABELS, Draws(SEEDS)).tokens
    with cpu_graphs() as recorded:
        assert torch.equal(decode(mar, here, Plain(), LABELS, Draws(SEEDS)).tokens, directly)
        first = len(recorded)
        again = decode(mar, here, Plain(), LABELS.flip(0), Draws(SEEDS.flip(0))).tokens
    assert torch.allclose(again.flip(0), directly, atol=1e-3)
    assert len(recorded) == first, "another batch of the same size records nothing anew"
    # One graph of the whole loop for each number of rows that an iteration has.
    assert 0 < Counter(recorded)["denoise 6 steps"] <= 8


@pytest.mark.parametrize(
    "method",
    [Cspd(gamma=4), Cspd(gamma=4, aligned=False, unresolved="zeros"), Cspd(gamma=4, variant="paper", prefill=0.75)],
    ids=["released", "released on its own noise", "paper"],
)
def test_cspd_from_graphs(mar: Pair, method: Cspd):
    here = law(mar, head_steps=3)
    directly = decode(mar, here, method, LABELS, Draws(SEEDS))
    with cpu_graphs():
        replayed = decode(mar, here, method, LABELS, Draws(SEEDS))
    assert torch.allclose(replayed.tokens, directly.tokens, atol=1e-3)
    assert torch.equal(replayed.drafts.accepted, directly.drafts.accepted)
    assert torch.equal(replayed.drafts.token, directly.drafts.token)
    assert torch.equal(replayed.rounds, directly.rounds)


@pytest.mark.parametrize("method", [Plain(head_window=(4,)), Cspd(gamma=4, head_window=(3, 2))], ids=lambda m: m.name)
def test_head_windows_from_graphs(mar: Pair, method: Plain | Cspd):
    """Rounds of all rows make what rounds of the rows still open make, in a few times as many head calls."""
    here = law(mar, head_steps=10)
    directly = decode(mar, here, method, LABELS, Draws(SEEDS))
    with cpu_graphs():
        replayed = decode(mar, here, method, LABELS, Draws(SEEDS))
    assert torch.allclose(replayed.tokens, directly.tokens, atol=1e-3)
    assert torch.equal(replayed.drafts.accepted, directly.drafts.accepted)
    calls, fewest = (x.counts["target_head_calls"] for x in (replayed, directly))
    assert fewest <= calls <= 4 * fewest


def test_head_windows_of_fixed_variance_from_graphs():
    pair = load_pair("fashion-ar")
    here = pair.card.law.model_copy(update={"head_steps": 10, "handoff_level": 100})
    labels, seeds = LABELS, SEEDS
    directly = decode(pair, here, Plain(head_window=(4, 3)), labels, Draws(seeds)).tokens
    with cpu_graphs():
        replayed = decode(pair, here, Plain(head_window=(4, 3)), labels, Draws(seeds)).tokens
    assert torch.allclose(replayed, directly, atol=1e-3)


def test_rows_that_need_many_proposals_get_them(mar: Pair, monkeypatch: pytest.MonkeyPatch):
    """With two proposals a block nearly every rejection waits for the next block."""
    for module in (path, head_speculation, head_rounds):
        monkeypatch.setattr(module, "PROPOSALS", 2)
    here = law(mar, head_steps=8, num_iter=4)
    directly = decode(mar, here, Plain(head_window=(4,)), LABELS, Draws(SEEDS)).tokens
    with cpu_graphs():
        replayed = decode(mar, here, Plain(head_window=(4,)), LABELS, Draws(SEEDS)).tokens
    assert torch.allclose(replayed, directly, atol=1e-3)
