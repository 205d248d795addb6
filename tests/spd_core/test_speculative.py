"""Speculative decoding over paths: its law against plain decoding, its promises, and the mutants that must fail."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from spd_core.accept import rules
from spd_core.accept.lemma import LAST_RESORT, judge, sample_residual
from spd_core.accept.paths import ROUNDING
from spd_core.decode.path import LawHead
from spd_core.draws import Draws, Purpose
from spd_core.families.causal import speculation as speculative
from spd_core.families.causal.model import CausalConfig
from spd_core.families.causal.speculation import decode_speculative, settle
from spd_core.families.causal.tokens import PathLaw, decode_causal_plain
from spd_core.law import Acceptance, Guarantee, Speculative
from tests.tiny_causal import LAW, fitted_causal, perturbed, tiny_causal
from tests.two_samples import energy_p_value, marginal_p_value

IMAGES = 4000
CONFIG = CausalConfig(
    img_size=6, vae_stride=1, patch_size=2, vae_embed_dim=1, class_num=3,
    embed_dim=16, depth=2, num_heads=2, head_depth=2, head_width=16,
)  # fmt: skip
GUIDED = LAW.model_copy(update={"cfg": 2.0, "temperature": 0.9})


@pytest.fixture(scope="module")
def tiny():
    target = tiny_causal()
    return target, perturbed(target, 0.02)


@pytest.fixture(scope="module")
def fitted():
    return fitted_causal(0, 200), fitted_causal(1, 150)


@pytest.fixture(scope="module")
def model():
    return tiny_causal(CONFIG)


def _inputs(count, first=0):
    return torch.arange(first, first + count) % 3, Draws(torch.arange(first, first + count) + 100)


@torch.inference_mode()
def _plain(target, law, seed=0, count=IMAGES):
    labels, seeds = torch.zeros(count, dtype=torch.int64), torch.arange(count) + seed * 10**6
    return decode_causal_plain(target, law, labels, Draws(seeds)).tokens.flatten(1)


@torch.inference_mode()
def _speculative(tiny, law, method, seed=1, count=IMAGES):
    labels, seeds = torch.zeros(count, dtype=torch.int64), torch.arange(count) + seed * 10**6
    return decode_speculative(*tiny, law, method, labels, Draws(seeds))


METHODS = [
    Speculative(gamma=3, stride=1, proposals=2),
    Speculative(gamma=2, stride=1, proposals=1, head_window=(3, 2)),
]


@pytest.mark.parametrize("method", METHODS, ids=["walk", "windows"])
@pytest.mark.parametrize("law", [LAW, GUIDED], ids=["plain", "guided"])
def test_the_law_is_the_targets(tiny, law, method):
    decoded = _speculative(tiny, law, method)
    assert 0.1 < decoded.drafts.accepted.float().mean() < 0.9, "the test needs both outcomes"
    plain, fast = _plain(tiny[0], law), decoded.tokens.flatten(1)
    assert marginal_p_value(plain, fast) > 1e-3
    assert energy_p_value(plain[:2000], fast[:2000]) > 1e-2


@pytest.mark.parametrize("windows", [(), (5, 3)], ids=["walk", "windows"])
def test_a_held_prediction_keeps_the_law(fitted, windows):
    law = LAW.model_copy(update={"head_steps": 16})
    decoded = _speculative(fitted, law, Speculative(gamma=3, stride=4, head_window=windows))
    assert 0.3 < decoded.drafts.accepted.float().mean() < 0.95
    plain, fast = _plain(fitted[0], law), decoded.tokens.flatten(1)
    assert marginal_p_value(plain, fast) > 1e-3
    assert energy_p_value(plain[:2000], fast[:2000]) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS, ids=["walk", "windows"])
def test_the_law_is_the_targets_at_many_images(tiny, method, seed):
    plain = _plain(tiny[0], LAW, seed=2 * seed + 10, count=40_000)
    fast = _speculative(tiny, LAW, method, seed=2 * seed + 11, count=40_000).tokens.flatten(1)
    assert marginal_p_value(plain, fast) > 1e-3
    assert energy_p_value(plain[:4000], fast[:4000]) > 1e-2


def _samples_of_p(rows, propose):
    return propose(rows, 0)[0][:, 0]


def _capped(rows, propose):
    values, log_ratio, uniforms = propose(rows, 0)
    kept = -torch.expm1((-log_ratio).clamp(max=0.0)) > uniforms
    return values[torch.arange(len(rows)), kept.to(torch.uint8).argmax(dim=1)]


def _no_stop(accepted, drafted, room):
    kept, draws, advance = settle(accepted, drafted, room)
    return torch.stack([kept, draws, torch.maximum(advance, drafted)])


def _each_token_for_itself(accepted, drafted, room):
    inside = torch.arange(accepted.shape[1]) < drafted[:, None]
    kept = (accepted & inside).sum(dim=1)
    draws = (kept < room).long()
    return torch.stack([kept, draws, kept + draws])


MUTANTS = {
    "samples of p as residual": ("sample_residual", _samples_of_p),
    "capped residual": ("sample_residual", _capped),
    "no stop after a rejection": ("settle", _no_stop),
    "each token accepted for itself": ("settle", _each_token_for_itself),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_rejected(tiny, name):
    plain = _plain(tiny[0], LAW)
    with patch.object(speculative, *MUTANTS[name]):
        wrong = _speculative(tiny, LAW, Speculative(gamma=3, stride=1, proposals=1)).tokens.flatten(1)
    assert marginal_p_value(plain, wrong) < 1e-4
    assert energy_p_value(plain[:2000], wrong[:2000]) <= 0.01


@torch.inference_mode()
@pytest.mark.parametrize("law", [LAW, GUIDED], ids=["plain", "guided"])
def test_gamma_zero_is_plain_decoding_bit_for_bit(model, law):
    draft = perturbed(model, 0.1)
    for windows in ((), (3, 2)):
        method = Speculative(gamma=0, head_window=windows)
        fast = decode_speculative(model, draft, law, method, *_inputs(5))
        plain = decode_causal_plain(model, law, *_inputs(5), windows)
        assert torch.equal(fast.tokens, plain.tokens)
        assert torch.equal(fast.rounds, plain.rounds)
        assert fast.counts == plain.counts


@torch.inference_mode()
@pytest.mark.parametrize("law", [LAW, GUIDED], ids=["plain", "guided"])
def test_a_draft_equal_to_the_target_is_always_accepted(model, law):
    decoded = decode_speculative(model, model, law, Speculative(gamma=3, stride=1), *_inputs(6))
    assert decoded.drafts.accepted.all()
    assert decoded.drafts.log_ratio.abs().max() < 1e-3
    # Three drafts and a token of the target's own each round, 9 tokens an image.
    assert decoded.rounds.tolist() == [3] * 6
    assert torch.allclose(decoded.tokens, decode_causal_plain(model, law, *_inputs(6)).tokens, atol=1e-3)
    assert decoded.counts.get("residual_proposals", 0) == 0


@torch.inference_mode()
@pytest.mark.parametrize("windows", [(), (4, 2)], ids=["walk", "windows"])
@pytest.mark.parametrize("rule", [Acceptance(), Acceptance(rule="annealed", delta=3.0)], ids=lambda r: r.rule)
def test_an_image_does_not_depend_on_its_batch(model, rule, windows):
    draft = perturbed(model, 0.005)
    method = Speculative(gamma=3, stride=1, acceptance=rule, head_window=windows)
    together = decode_speculative(model, draft, GUIDED, method, *_inputs(6))
    parts = [decode_speculative(model, draft, GUIDED, method, *_inputs(1, i)) for i in range(6)]
    assert 0 < together.drafts.accepted.float().mean() < 1
    assert len(set(together.rounds.tolist())) > 1, "images of a batch should advance independently"
    assert torch.allclose(together.tokens, torch.cat([part.tokens for part in parts]), atol=1e-3)
    assert together.rounds.tolist() == [int(part.rounds) for part in parts]


@torch.inference_mode()
def test_rounds_stop_at_the_first_rejection_and_make_a_token(model):
    draft = perturbed(model, 0.005)
    decoded = decode_speculative(model, draft, LAW, Speculative(gamma=3, stride=1), *_inputs(6))
    drafts = decoded.drafts
    for image in range(6):
        mine = drafts.image == image
        tests = list(
            zip(*(getattr(drafts, n)[mine].tolist() for n in ("draft_index", "token", "accepted")), strict=True)
        )
        for (place, token, accepted), (following, after, _) in itertools.pairwise(tests):
            if following:
                assert accepted
                assert (following, after) == (place + 1, token + 1)
            else:
                assert after == token + 1 + (accepted and place == 2), "the target's own token follows a full block"
        assert sum(1 for test in tests if not test[0]) in (int(decoded.rounds[image]), int(decoded.rounds[image]) - 1)
    assert (drafts.excess == 0).all()
    above = PathLaw(LAW, 9).above
    assert decoded.counts["draft_head_calls"] >= decoded.counts["draft_context_calls"] * above


def test_settle():
    accepted = torch.tensor([[1, 0, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
    kept, draws, advance = settle(accepted, torch.tensor([3, 3, 3, 1]), torch.tensor([5, 5, 3, 1]))
    assert kept.tolist() == [1, 3, 3, 1]
    assert draws.tolist() == [1, 1, 0, 0]
    assert advance.tolist() == [2, 4, 3, 1]


def test_annealing_accepts_more_and_says_what_it_costs(tiny):
    exact = _speculative(tiny, LAW, Speculative(gamma=3, stride=1), count=2000)
    rule = Acceptance(rule="annealed", delta=4.0)
    relaxed = _speculative(tiny, LAW, Speculative(gamma=3, stride=1, acceptance=rule), count=2000)
    gained = float(relaxed.drafts.accepted.float().mean() - exact.drafts.accepted.float().mean())
    assert gained > 0.02
    first = relaxed.drafts.draft_index == 0
    assert relaxed.drafts.excess[first].mean() > relaxed.drafts.excess[relaxed.drafts.draft_index == 2].mean()
    assert ((relaxed.drafts.excess >= 0) & (relaxed.drafts.excess <= 1)).all()
    assert relaxed.rounds.float().mean() < exact.rounds.float().mean()


@torch.inference_mode()
@pytest.mark.parametrize("windows", [(), (4, 2)], ids=["walk", "windows"])
def test_the_coupled_rule_stays_within_its_radius(model, windows):
    draft = perturbed(model, 0.02)

    def run(radius):
        rule = Acceptance(rule="coupled", radius=radius)
        method = Speculative(gamma=3, stride=1, acceptance=rule, head_window=windows)
        return decode_speculative(model, draft, LAW, method, *_inputs(4))

    never, always = run(0.0), run(1e6)
    some = run(1e6 / float(always.drafts.log_ratio.exp().median()))
    assert not never.drafts.accepted.any()
    assert always.drafts.accepted.all()
    assert 0 < some.drafts.accepted.float().mean() < 1
    plain = decode_causal_plain(model, LAW, *_inputs(4), windows).tokens
    assert torch.allclose(never.tokens, plain, atol=1e-3)
    assert some.drafts.excess.isnan().all()


def test_guarantees_and_settings():
    assert Speculative().guarantee is Guarantee.EXACT
    assert Speculative(acceptance=Acceptance(rule="annealed", delta=2)).guarantee is Guarantee.TV
    assert Speculative(acceptance=Acceptance(rule="coupled", radius=0.1)).guarantee is Guarantee.W_INF
    assert Speculative().uses_draft
    with pytest.raises(ValueError, match="delta"):
        Acceptance(rule="coupled", delta=2.0)
    with pytest.raises(ValueError, match="radius"):
        Acceptance(radius=1.0)
    with pytest.raises(ValueError, match="head_window"):
        Speculative(head_window=(0,))


# Residual proposals, looked at when a draft that is the target itself is rejected all the same.


def _rejected(log_ratio, log_relaxed, uniform, rounding):
    return replace(judge(log_ratio, log_relaxed, uniform), accepted=torch.zeros_like(uniform, dtype=torch.bool))


@torch.inference_mode()
def _proposals(model, method):
    """log p/q of each residual's first proposals, and the noise that they started from beside that of the tokens."""
    ratios, starts = [], []
    right = speculative.path_above

    def path_above(bound, path, noise, draws, windows, trace=False):
        starts.append((noise.start, draws.image, draws.token))
        return right(bound, path, noise, draws, windows, trace)

    def first(rows, propose):
        values, log_ratio, _ = propose(rows, 0)
        ratios.append(log_ratio[log_ratio.isfinite()])
        return values[:, 0]

    labels, draws = torch.arange(30) % 3, Draws(torch.arange(30))
    of_path = patch.multiple(speculative, sample_residual=first, path_above=path_above)
    with patch.object(rules, "judge", _rejected), of_path:
        decode_speculative(model, model, GUIDED, method, labels, draws)
    shared = [draws.normals(Purpose.START, image, token, 4) for _, image, token in starts]
    rejected = [(start != own).any(dim=1) for (start, _, _), own in zip(starts, shared, strict=True)]
    return torch.cat(ratios), [start for start, _, _ in starts], shared, torch.cat(rejected)


@pytest.mark.parametrize("windows", [(), (4, 2)], ids=["walk", "windows"])
def test_residual_proposals_know_the_draft_s_law_and_are_new(model, windows):
    """A draft that is the target: p = q on every proposal, also under guidance; and no start noise is the draft's."""
    ratios, starts, shared, fresh = _proposals(model, Speculative(gamma=2, stride=1, head_window=windows))
    assert len(ratios) > 100
    assert ratios.abs().max() < 1e-3
    assert fresh.float().mean() > 0.8, "but for tokens without a draft, proposals start from noise of their own"
    both = torch.stack([torch.cat(starts)[fresh].flatten(), torch.cat(shared)[fresh].flatten()])
    assert both.corrcoef()[0, 1].abs() < 0.05


def test_a_residual_without_the_draft_s_guidance_is_caught(model):
    right = LawHead.bind

    def bind(self, z, scale):
        # Only the draft's head is bound by the function that proposes.
        lost = inspect.stack()[1].function == "_proposal_ratio"
        return right(self, z, torch.ones_like(scale) if lost else scale)

    with patch.object(LawHead, "bind", bind), pytest.raises(AssertionError):
        test_residual_proposals_know_the_draft_s_law_and_are_new(model, ())


def test_proposals_from_the_draft_s_own_noise_are_caught(model):
    right = Draws.proposals

    def proposals(self, purpose, image, token, count, dims, round_R=0, attempt=0):
        normals, uniforms = right(self, purpose, image, token, count, dims, round_R, attempt)
        normals[:, :, :4] = self.normals(Purpose.START, image, token, 4)[:, None]
        return normals, uniforms

    with patch.object(Draws, "proposals", proposals), pytest.raises(AssertionError):
        test_residual_proposals_know_the_draft_s_law_and_are_new(model, ())


# Bounds of a residual.


@torch.inference_mode()
@pytest.mark.parametrize("windows", [(), (4, 2)], ids=["walk", "windows"])
def test_a_residual_s_paths_are_made_in_parts(model, windows):
    """However many tokens are rejected at once, no more than `MOST_PATHS` paths exist; nothing else changes."""
    draft, method = perturbed(model, 0.02), Speculative(gamma=2, stride=1, proposals=2, head_window=windows)
    whole = decode_speculative(model, draft, LAW, method, *_inputs(9))
    seen = []
    right = speculative.path_above

    def path_above(bound, path, noise, *rest, **named):
        seen.append(len(noise.start))
        return right(bound, path, noise, *rest, **named)

    with patch.multiple(speculative, MOST_PATHS=8, path_above=path_above):
        parts = decode_speculative(model, draft, LAW, method, *_inputs(9))
    assert max(seen) <= 8 or max(seen) <= 256, "one token's proposals are made together"
    assert [count for count in seen if count > 8] == [count for count in seen if count in (32, 128, 256)]
    assert torch.allclose(whole.tokens, parts.tokens, atol=1e-3)
    assert torch.equal(whole.rounds, parts.rounds)


def test_a_ratio_of_one_within_rounding_is_one():
    below = torch.tensor([-3e-5, -1.3e-4, 0.0])
    never = torch.full((3,), 1 - 2.0**-24)
    assert judge(below, below, never).accepted.tolist() == [False, False, True]
    assert judge(below, below, never, ROUNDING).accepted.tolist() == [True, False, True]


def test_a_residual_of_next_to_nothing_ends():
    """p = q but for rounding: after a million rejected proposals the next one is taken, though never padding."""
    attempts = []

    def propose(rows, attempt):
        attempts.append(attempt)
        values = torch.arange(2**16).float().expand(len(rows), -1)
        log_ratio = torch.zeros(len(rows), 2**16).index_fill(1, torch.tensor([0]), -torch.inf)
        return values, log_ratio, torch.full((len(rows), 2**16), 0.5)

    assert sample_residual(torch.arange(2), propose).tolist() == [1.0, 1.0]
    assert len(attempts) == LAST_RESORT // 2**16 + 1


def test_proposals_above_their_most_are_refused():
    with pytest.raises(ValueError, match="less than or equal to 256"):
        Speculative(proposals=257)
