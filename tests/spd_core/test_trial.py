"""Timed trials: what counts as made when one is cut off, and that listening changes no draw."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from spd_core.decode import decode
from spd_core.decode import trial as trial_module
from spd_core.decode.trial import Stopwatch, Trial, try_out
from spd_core.draws import Draws
from spd_core.families.causal import tokens as causal
from spd_core.families.mar import iterations as decode_mar
from spd_core.families.mar.iterations import left_after, mask_lengths
from spd_core.law import Choice, Cspd, Null, Plain, Speculative
from spd_core.pairs.pair import load_pair
from tests.tiny_causal import make_tiny_causal_pair
from tests.tiny_pair import make_tiny_pair

IMAGES = 5
SPECULATIVE = Speculative(gamma=3, stride=2)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return {
        "mar": load_pair(str(make_tiny_pair(folder / "mar"))),
        "causal": load_pair(str(make_tiny_causal_pair(folder / "causal"))),
    }


def requests(count: int = IMAGES) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(count) % 3, torch.arange(count) + 7


class Listener(Stopwatch):
    """Keeps what every request found made."""

    def __init__(self, seeds, tokens):
        super().__init__(seeds, tokens, math.inf)
        self.heard: list[int] = []

    def _listen(self, image_R, token_R):
        super()._listen(image_R, token_R)
        self.heard.append(self.made)


def heard(pair, method, count, slots=None) -> tuple[list[int], object]:
    labels, seeds = requests(count)
    listener = Listener(seeds, pair.card.target.seq_len)
    return listener.heard, decode(pair, pair.card.law, method, labels, listener, slots)


@pytest.fixture(autouse=True)
def one_iteration_at_a_time(monkeypatch):
    """MAR decoders draw for the coming iterations too, which a tiny image has too few of."""
    monkeypatch.setattr(decode_mar, "DRAWN_AHEAD", 0)


def test_plain_mar_is_heard_iteration_by_iteration(pairs):
    pair, law = pairs["mar"], pairs["mar"].card.law
    found, _ = heard(pair, Plain(), 2)
    left = left_after(mask_lengths(16, law.num_iter))
    assert found == [0, *(2 * (16 - masked) for masked in left[:-1])]


def test_plain_causal_is_heard_block_by_block(pairs, monkeypatch):
    monkeypatch.setattr(causal, "DRAWN_AHEAD", 4)
    assert heard(pairs["causal"], Plain(), 2)[0] == [0, 2 * 4, 2 * 8]


def made_before_each_round(drafts, tokens: int) -> list[int]:
    """Of one image, from its draft records: a round starts at draft index 0 and ends with a token of the target."""
    made, rounds = 0, []
    for index, accepted in zip(drafts.draft_index.tolist(), drafts.accepted.tolist(), strict=True):
        if index == 0:
            made = min(made + 1, tokens) if rounds else 0
            rounds.append(made)
        made += accepted
    return rounds


def test_speculative_is_heard_round_by_round_without_the_drafts_in_vain(pairs):
    rejected = 0
    for seed in range(6):
        pair, labels = pairs["causal"], torch.tensor([0])
        listener = Listener(torch.tensor([seed]), 9)
        # A draft far off, by holding its first prediction all the way: some drafts are rejected.
        method = SPECULATIVE.model_copy(update={"stride": 8})
        decoded = decode(pair, pair.card.law, method, labels, listener)
        rejected += int((~decoded.drafts.accepted).sum())
        assert listener.heard == made_before_each_round(decoded.drafts, 9)
    assert rejected


def test_slots_that_are_filled_again_go_on_counting(pairs):
    found, decoded = heard(pairs["causal"], SPECULATIVE, IMAGES, slots=2)
    assert found == sorted(found) and found[0] == 0
    assert IMAGES * 9 - 2 * (SPECULATIVE.gamma + 1) <= found[-1] < IMAGES * 9
    assert len(found) >= int(decoded.rounds.max())


@pytest.mark.parametrize(
    ("family", "method"),
    [("mar", Plain()), ("mar", Cspd(gamma=3)), ("causal", Plain()), ("causal", SPECULATIVE)],
    ids=str,
)
def test_listening_changes_no_token(pairs, family, method):
    pair, (labels, seeds) = pairs[family], requests()
    tokens = pair.card.target.seq_len
    made = [
        decode(pair, pair.card.law, method, labels, d).tokens
        for d in (Draws(seeds), Stopwatch(seeds, tokens, math.inf))
    ]
    assert torch.equal(*made)


@pytest.mark.parametrize(
    ("family", "method"),
    [("mar", Plain()), ("causal", Plain()), ("causal", SPECULATIVE), ("mar", Cspd(gamma=3))],
    ids=str,
)
def test_a_trial_with_time_makes_all_images(pairs, family, method):
    pair = pairs[family]
    trial = try_out(pair, pair.card.law, Choice(method=method, batch=2), *requests(), limit_s=60.0)
    assert trial.images == IMAGES
    assert 0 < trial.seconds < 60
    assert trial.images_per_s == pytest.approx(IMAGES / trial.seconds)


def test_a_trial_without_time_makes_a_first_part(pairs, monkeypatch):
    monkeypatch.setattr(causal, "DRAWN_AHEAD", 4)
    mar, both = pairs["mar"], requests()
    first = 16 - left_after(mask_lengths(16, mar.card.law.num_iter))[0]
    found = try_out(mar, mar.card.law, Choice(method=Plain(), batch=2), *both, limit_s=0.0)
    assert found.images == 2 * first / 16
    pair = pairs["causal"]
    assert try_out(pair, pair.card.law, Choice(method=Plain(), batch=2), *both, limit_s=0.0).images == 2 * 4 / 9
    part = try_out(pair, pair.card.law, Choice(method=SPECULATIVE, batch=2), *both, limit_s=0.0).images
    assert 2 * 1 / 9 <= part <= 2 * (SPECULATIVE.gamma + 1) / 9


def test_batches_before_the_one_cut_off_count_in_whole(pairs, monkeypatch):
    # A clock that moves when it is looked at: at the start of the trial (0) and of each batch (1 and 11), at each of a
    # batch's 8 requests (2 to 9, then from 12 on), and after a batch (10).
    ticks = itertools.count()
    monkeypatch.setattr(trial_module, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    pair = pairs["mar"]
    trial = try_out(pair, pair.card.law, Choice(method=Plain(), batch=2), *requests(), limit_s=13.5)
    made = 16 - left_after(mask_lengths(16, pair.card.law.num_iter))[1]
    assert trial == Trial(images=2 + 2 * made / 16, seconds=14.0, whole=False)


def test_cspd_is_never_cut_inside_a_batch(pairs):
    pair = pairs["mar"]
    assert try_out(pair, pair.card.law, Choice(method=Cspd(gamma=3), batch=2), *requests(), limit_s=0.0).images == 2


def test_null_has_nothing_to_time(pairs):
    with pytest.raises(ValueError, match="a method that makes tokens"):
        try_out(pairs["mar"], pairs["mar"].card.law, Choice(method=Null(), batch=2), *requests(), limit_s=1.0)
