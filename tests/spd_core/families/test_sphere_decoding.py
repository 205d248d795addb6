"""SphereAR decoded: the public loop's tokens, and every faster way's law against it, with mutants that must fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from spd_core.accept import rules
from spd_core.accept.lemma import judge
from spd_core.decode import head_speculation
from spd_core.draws import Draws, Purpose
from spd_core.families.causal import speculation
from spd_core.families.sphere import tokens as sphere_tokens
from spd_core.families.sphere.blocks import on_sphere
from spd_core.families.sphere.flow import handoff_step
from spd_core.families.sphere.naive import decode_sphere_naive
from spd_core.families.sphere.tokens import (
    SphereMaking,
    SpherePath,
    SphereReader,
    decode_sphere_plain,
    decode_sphere_speculative,
)
from spd_core.law import Acceptance, SamplerLaw, Speculative
from tests.oracles.sphere import _generate
from tests.spd_core.ledger import ledger
from tests.tiny_sphere import CONFIG, HANDOFF, PUBLIC, perturbed, tiny_sphere
from tests.two_samples import energy_p_value, marginal_p_value

CONSTANT = PUBLIC.model_copy(update={"cfg_schedule": "constant"})
UNGUIDED = PUBLIC.model_copy(update={"cfg": 1.0})
EARLY = PUBLIC.model_copy(update={"handoff_level": 200, "temperature": 0.8})
LAWS = {"public": PUBLIC, "constant": CONSTANT, "unguided": UNGUIDED, "hand-off": HANDOFF, "early hand-off": EARLY}
IMAGES, LENGTH, DIMS = 2000, CONFIG.seq_len, CONFIG.latent_dim


@pytest.fixture(scope="module")
def target():
    return tiny_sphere()


@pytest.fixture(scope="module")
def draft(target):
    return perturbed(target, 0.01)


def _inputs(count: int, first: int = 0) -> tuple[Tensor, Draws]:
    return torch.arange(first, first + count) % 3, Draws(torch.arange(first, first + count) + 100)


def _alike(x: Tensor, y: Tensor) -> bool:
    """But for rounding, which these random models, under guidance, now and then blow up from token to token."""
    return float((x - y).abs().amax(dim=-1).quantile(0.85)) < 1e-3


def _noise(draws: Draws, image: Tensor, token: int, steps: int) -> Tensor:
    """[B, S + 1, D] as the public sampler draws it: the start, then one for every step but the last."""
    at = torch.full_like(image, token)
    start = draws.normals(Purpose.START, image, at, DIMS)
    step = draws.normals(Purpose.STEP, image, at, steps * DIMS).view(-1, steps, DIMS)
    return torch.cat([start[:, None], step.flip(1)[:, :-1]], dim=1)


@torch.inference_mode()
@pytest.mark.parametrize("windows", [(), (1,)], ids=["walk", "windows of one step"])
@pytest.mark.parametrize("name", ["public", "constant", "unguided"])
def test_tokens_are_those_of_the_public_loop(target, name, windows):
    """The reference loop, which the public code's own numbers check, on the same noise."""
    law, (labels, draws) = LAWS[name], _inputs(5)
    image, steps = torch.arange(5), law.head_steps
    noise = torch.stack([_noise(draws, image, token, steps) for token in range(LENGTH)], dim=1)
    run = {"S": steps - 1, "cfg": law.cfg, "schedule": law.cfg_schedule}
    given = {"labels": labels, f"noise/{steps - 1}": noise}
    given[f"null_first_noise/{steps - 1}"] = _noise(draws, image, LENGTH, steps)
    wanted = _generate(target, run, given)["tokens"]
    if windows:  # a window of one step is tested, and mirrored if it is rejected
        always = lambda noise, shift, uniform: (torch.ones(noise.shape[:-1], dtype=torch.bool), noise)  # noqa: E731
        with patch.object(head_speculation, "reflect", always):
            made = decode_sphere_plain(target, law, labels, draws, windows)
    else:
        made = decode_sphere_plain(target, law, labels, draws)
    assert _alike(made.tokens, wanted)
    assert torch.allclose(made.tokens.norm(dim=-1), torch.tensor(DIMS**0.5), atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("name", LAWS)
def test_the_naive_loop_makes_the_same_tokens(target, name):
    plain = decode_sphere_plain(target, LAWS[name], *_inputs(5))
    naive = decode_sphere_naive(target, LAWS[name], *_inputs(5))
    assert _alike(plain.tokens, naive.tokens)
    counts = ("target_context_calls", "target_head_calls", "target_head_rows")
    assert [naive.counts[name] for name in counts] == [plain.counts[name] for name in counts]


def test_the_hand_off():
    assert [handoff_step(101, level) for level in (0, 19, 21, 40, 45, 998)] == [-1, -1, 0, 0, 1, 99]
    path = SpherePath(PUBLIC, 4)
    assert (path.first, path.handoff, path.above) == (8, -1, 9)
    assert SpherePath(HANDOFF, 4).above == 8
    assert path.scale(torch.arange(4))[:, 0].tolist() == [1.0, 1.5, 2.0, 2.5]
    assert SpherePath(CONSTANT, 4).scale(torch.arange(2))[:, 0].tolist() == [3.0, 3.0]


# Laws.


@torch.inference_mode()
def _windowed(target, law):
    labels, draws = torch.zeros(IMAGES, dtype=torch.int64), Draws(torch.arange(IMAGES) + 10**6)
    return decode_sphere_plain(target, law, labels, draws, (4, 3, 2)).tokens.flatten(1)


@cache
@torch.inference_mode()
def _plain(law):
    labels, draws = torch.zeros(IMAGES, dtype=torch.int64), Draws(torch.arange(IMAGES))
    return decode_sphere_plain(tiny_sphere(), law, labels, draws).tokens.flatten(1)


@torch.inference_mode()
def _speculative(target, draft, law, method):
    labels, draws = torch.zeros(IMAGES, dtype=torch.int64), Draws(torch.arange(IMAGES) + 10**6)
    return decode_sphere_speculative(target, draft, law, method, labels, draws, 1000)


def _one_law(x, y):
    assert marginal_p_value(x, y) > 1e-3
    assert energy_p_value(x, y) > 5e-3


def _two_laws(x, y):
    assert marginal_p_value(x, y) < 1e-4 or energy_p_value(x, y) <= 5e-3


SLOW = pytest.mark.slow


@pytest.mark.parametrize("name", ["public", "hand-off", *(pytest.param(name, marks=SLOW) for name in list(LAWS)[1:3])])
def test_windows_keep_the_law(target, name):
    _one_law(_plain(LAWS[name]), _windowed(target, LAWS[name]))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["public", "hand-off"])
def test_windows_save_sequential_calls_and_cost_rows(target, name):
    law = LAWS[name]
    steps = 4 * (LENGTH + 1) * SpherePath(law, LENGTH).above  # with the null branch's token
    made = [decode_sphere_plain(target, law, *_inputs(1, i), (4, 3, 2)).counts for i in range(4)]
    assert sum(counts["target_head_calls"] for counts in made) < 0.8 * steps
    assert sum(counts["target_head_rows"] for counts in made) > 2 * steps


METHODS = [Speculative(gamma=3, stride=1, proposals=2), Speculative(gamma=2, stride=2, proposals=1, head_window=(3, 2))]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("hand-off", METHODS[0]),
        ("early hand-off", METHODS[1]),
        pytest.param("hand-off", METHODS[1], marks=SLOW),
        pytest.param("early hand-off", METHODS[0], marks=SLOW),
    ],
    ids=["hand-off, walk", "early, windows", "hand-off, windows", "early, walk"],
)
def test_speculation_keeps_the_law(target, draft, name, method):
    decoded = _speculative(target, draft, LAWS[name], method)
    assert 0.05 < decoded.drafts.accepted.float().mean() < 0.95, "the test needs both outcomes"
    _one_law(_plain(LAWS[name]), decoded.tokens.flatten(1))


# Mutants.


def _shared_first_token(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, previous, first, reach: right(_without_own_first(self), previous, first, reach)


def _without_own_first(reader: SphereReader) -> SphereReader:
    reader.own_first = False
    return reader


def _of_the_class(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def open(self, opening, path):
        right(self, opening, path)
        for reader in opening.readers:
            reader.null[:] = 1.0

    return open


def _every_step_accepted(noise, shift, uniform):
    return torch.ones(noise.shape[:-1], dtype=torch.bool), noise + shift


def _not_mirrored(noise, shift, uniform):
    accepted = uniform.log() <= -(shift * (noise + 0.5 * shift)).sum(dim=-1)
    return accepted, torch.where(accepted[..., None], noise + shift, noise)


def _reaching(self, position):
    share = (position + 1).float() / self.tokens
    return (1.0 + (self.law.cfg - 1.0) * share)[..., None]


MUTANTS = {
    "the null branch reads the image's first token": (SphereReader, "_read", _shared_first_token(SphereReader._read)),
    "the null branch's first token is no sample": (SphereMaking, "open", _of_the_class(SphereMaking.open)),
    "every step is accepted": (head_speculation, "reflect", _every_step_accepted),
    "a rejected step is not mirrored": (head_speculation, "reflect", _not_mirrored),
    "guidance of the next token": (SpherePath, "scale", _reaching),
    "contexts read what is not on the sphere": (sphere_tokens, "on_sphere", lambda x: x),
}


@pytest.mark.parametrize("name", [*list(MUTANTS)[:3], *(pytest.param(name, marks=SLOW) for name in list(MUTANTS)[3:])])
def test_mutants_of_the_public_law_are_rejected(target, name):
    with patch.object(*MUTANTS[name]):
        wrong = _windowed(target, PUBLIC)
    _two_laws(_plain(PUBLIC), wrong)


def test_the_null_branchs_token_has_numbers_of_its_own(target):
    """Of images without a class it has the law of their first tokens, and is another sample of it."""
    made, right = [], SphereMaking.open

    def open(self, opening, path):
        right(self, opening, path)
        made.append(on_sphere(opening.readers[0].null))

    labels, draws = torch.full((500,), -1), Draws(torch.arange(500))
    with torch.inference_mode(), patch.object(SphereMaking, "open", open):
        tokens = decode_sphere_plain(target, PUBLIC, labels, draws).tokens[:, 0]
    assert marginal_p_value(made[0], tokens) > 1e-3
    assert torch.cat([made[0], tokens], dim=1).T.corrcoef()[:DIMS, DIMS:].abs().max() < 0.2


@torch.inference_mode()
@pytest.mark.parametrize("law", [PUBLIC, HANDOFF], ids=["public", "hand-off"])
@pytest.mark.parametrize("windows", [(), (4, 2)], ids=["walk", "windows"])
def test_an_image_does_not_depend_on_its_batch(target, law, windows):
    together = decode_sphere_plain(target, law, *_inputs(6), windows)
    alone = [decode_sphere_plain(target, law, *_inputs(1, i), windows).tokens for i in range(6)]
    assert _alike(together.tokens, torch.cat(alone))


@torch.inference_mode()
@pytest.mark.parametrize("rule", [Acceptance(), Acceptance(rule="annealed", delta=3.0)], ids=lambda r: r.rule)
def test_an_image_drafted_alone_or_in_slots_is_the_same(target, draft, rule):
    method = Speculative(gamma=2, stride=1, acceptance=rule, head_window=(4, 2))
    together = decode_sphere_speculative(target, draft, HANDOFF, method, *_inputs(8))
    refilled = decode_sphere_speculative(target, draft, HANDOFF, method, *_inputs(8), 3)
    alone = [decode_sphere_speculative(target, draft, HANDOFF, method, *_inputs(1, i)) for i in range(8)]
    assert 0 < together.drafts.accepted.float().mean() < 1
    assert _alike(together.tokens, refilled.tokens)
    assert _alike(together.tokens, torch.cat([part.tokens for part in alone]))


@torch.inference_mode()
def test_gamma_zero_is_plain_decoding(target, draft):
    for windows in ((), (3, 2)):
        fast = decode_sphere_speculative(target, draft, HANDOFF, Speculative(gamma=0, head_window=windows), *_inputs(5))
        plain = decode_sphere_plain(target, HANDOFF, *_inputs(5), windows)
        assert torch.equal(fast.tokens, plain.tokens)
        assert fast.counts == plain.counts


@torch.inference_mode()
def test_a_draft_that_is_the_target_is_always_accepted(target):
    decoded = decode_sphere_speculative(target, target, HANDOFF, Speculative(gamma=3, stride=1), *_inputs(6))
    assert decoded.drafts.accepted.all()
    assert decoded.drafts.log_ratio.abs().max() < 1e-3
    assert decoded.rounds.tolist() == [1] * 6
    assert _alike(decoded.tokens, decode_sphere_plain(target, HANDOFF, *_inputs(6)).tokens)


@torch.inference_mode()
def test_a_draft_that_lacks_the_null_branchs_token_is_caught(target):
    """Then it is another model: its contexts differ from token 1 on."""
    right = SphereMaking.open

    def open(self, opening, path):
        right(self, replace(opening, readers=opening.readers[:1]), path)

    with patch.object(SphereMaking, "open", open):
        decoded = decode_sphere_speculative(target, target, HANDOFF, Speculative(gamma=3, stride=1), *_inputs(6))
    assert decoded.drafts.log_ratio.abs().max() > 1e-2


def _leaning(target):
    """A draft that errs one way: what a wrong correction leaves of its drafts adds up."""
    draft = perturbed(target, 0.0)
    draft.head.net.final_layer.linear.bias.add_(0.4)
    return draft


def test_samples_of_p_as_residual_are_rejected(target):
    def first(rows, propose):
        return propose(rows, 0)[0][:, 0]

    with patch.object(speculation, "sample_residual", first):
        wrong = _speculative(target, _leaning(target), HANDOFF, METHODS[0])
    _two_laws(_plain(HANDOFF), wrong.tokens.flatten(1))


def test_drafts_that_always_stand_are_rejected(target, draft):
    def judged(log_ratio, log_relaxed, uniform, rounding):
        return replace(judge(log_ratio, log_relaxed, uniform), accepted=torch.ones_like(uniform, dtype=torch.bool))

    with patch.object(rules, "judge", judged):
        wrong = _speculative(target, _leaning(target), HANDOFF, METHODS[0])
    _two_laws(_plain(HANDOFF), wrong.tokens.flatten(1))


# Random numbers.


@torch.inference_mode()
@pytest.mark.parametrize("windows", [(), (4, 2)], ids=["walk", "windows"])
def test_every_random_number_has_one_use(target, draft, windows):
    with ledger() as book:
        decode_sphere_plain(target, PUBLIC, *_inputs(3), windows)
    assert not book.in_two_roles and not book.twice_in_a_call
    assert not book.drawn_again(*Purpose)
    assert {key[2] for key in book.times if key[1] is Purpose.START} == set(range(LENGTH + 1))
    with ledger() as book:
        method = Speculative(gamma=2, stride=1, proposals=1, head_window=windows)
        decode_sphere_speculative(target, draft, HANDOFF, method, *_inputs(6), 3)
    assert not book.twice_in_a_call
    assert not book.drawn_again(Purpose.PATH_PROPOSAL)


@torch.inference_mode()
@pytest.mark.parametrize("law", [HANDOFF, PUBLIC.model_copy(update={"handoff_level": 15})], ids=["hand-off", "none"])
def test_speculation_needs_a_hand_off(target, draft, law):
    if law is HANDOFF:
        decode_sphere_speculative(target, draft, law, Speculative(gamma=1), *_inputs(1))
        return
    with pytest.raises(ValueError, match=r"got 'speculative' with law.handoff_level 15, allowed: plain, or a law that"):
        decode_sphere_speculative(target, draft, law, Speculative(gamma=1), *_inputs(1))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["public", "hand-off"])
def test_bfloat16_is_near(target, draft, name):
    low: SamplerLaw = LAWS[name].model_copy(update={"dtype": "bfloat16"})
    exact, rounded = (decode_sphere_plain(target, law, *_inputs(8)).tokens[:, 0] for law in (LAWS[name], low))
    assert 1e-5 < (exact - rounded).abs().mean() < 0.1
