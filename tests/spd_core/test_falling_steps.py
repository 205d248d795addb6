"""Head steps that fall along the image: the schedule, each token at its own steps, and every decoder at that law."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from spd_core.decode import decode
from spd_core.decode.naive import decode_naive
from spd_core.diffusion import respaced_timesteps
from spd_core.draws import Draws, Purpose
from spd_core.families.causal import tokens as causal
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.causal.tokens import PathLaw, decode_causal_plain
from spd_core.families.mar import cspd
from spd_core.families.mar import iterations as mar
from spd_core.law import Acceptance, Cspd, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import load_pair
from tests.tiny_causal import LAW, make_tiny_causal_pair, perturbed, tiny_causal
from tests.tiny_pair import make_tiny_pair
from tests.two_samples import energy_p_value, marginal_p_value

FALLS = ("linear", "cosine", "two-stage")
DISA = {"head_steps": 50, "head_steps_end": 5}
MAR_LAW = SamplerLaw(num_iter=8, head_steps=12, start_level=900, cfg=2.0)
CAUSAL_LAW = LAW.model_copy(update={"cfg": 2.0, "temperature": 0.9})
IMAGES = 4000


def _falling(law, schedule, first=12, last=3):
    changed = {"head_schedule": schedule, "head_steps": first, "head_steps_end": last}
    return SamplerLaw.model_validate({**law.model_dump(), **changed})


def _inputs(count=4):
    return torch.arange(count) % 3, Draws(torch.arange(count) + 100)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    make_tiny_pair(folder / "mar")
    return load_pair(str(folder / "mar"))


@pytest.fixture(scope="module")
def causal_pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    make_tiny_causal_pair(folder / "causal")
    return load_pair(str(folder / "causal"))


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 256])
@pytest.mark.parametrize("schedule", FALLS)
def test_the_schedules_are_those_of_the_public_code(schedule, count):
    law = SamplerLaw(head_schedule=schedule, **DISA)
    steps = [law.steps_at(index, count) for index in range(count)]
    assert steps[0] == 50
    assert count == 1 or steps[-1] == 5
    assert all(before >= after for before, after in itertools.pairwise(steps))
    if count == 64:
        public = {
            "linear": [5 + int((64 - 1 - i) / (64 - 1) * 45) for i in range(64)],
            "cosine": [5 + int((math.cos(math.pi * i / (64 - 1)) + 1) / 2 * 45) for i in range(64)],
            "two-stage": [50] * 32 + [5] * 32,
        }
        assert steps == public[schedule]


def test_a_constant_law_is_its_own_everywhere():
    law = SamplerLaw(head_steps=40)
    assert law.at(3, 7) is law
    assert [law.steps_at(index, 3) for index in range(3)] == [40] * 3


def test_the_law_of_a_token_is_a_constant_one():
    law = SamplerLaw(head_schedule="linear", cfg=2.0, **DISA)
    assert law.at(2, 5) == SamplerLaw(head_steps=5 + 22, cfg=2.0)
    assert not law.at(4, 5).falls


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_steps_end": 7}, "head_steps_end belongs to a head_schedule that falls, got 7"),
        ({"head_schedule": "linear", "head_steps": 4}, "head_steps_end at most head_steps = 4, got 5"),
        ({"head_schedule": "linear", "head_steps_end": 1}, "greater than or equal to 2"),
        ({"head_schedule": "falling"}, "'constant', 'linear', 'cosine' or 'two-stage'"),
    ],
)
def test_wrong_schedules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplerLaw(**fields)


def test_each_number_of_steps_has_its_own_hand_off():
    path = PathLaw(SamplerLaw(head_schedule="linear", handoff_level=91, **DISA), 64)
    for position in (0, 20, 63):
        own = path.at(position)
        levels = respaced_timesteps(own.law.head_steps)
        assert abs(levels[own.handoff] - 91) == min(abs(level - 91) for level in levels[:-1])
    assert path.at(0).above == 49 - 4
    assert path.at(63).above == 4


def test_stretches_cover_the_image_and_keep_the_number_of_steps():
    path = PathLaw(_falling(LAW, "two-stage"), 40)
    parts = [(own.law.head_steps, list(positions)) for own, positions in path.stretches(16)]
    assert [(steps, len(positions)) for steps, positions in parts] == [(12, 16), (12, 4), (3, 16), (3, 4)]
    assert list(itertools.chain.from_iterable(positions for _, positions in parts)) == list(range(40))
    assert [len(positions) for _, positions in PathLaw(LAW, 40).stretches(16)] == [16, 16, 8]


# Where contexts do not look at other tokens, a token of a falling law is that of the constant law with its steps.


def _blind_mar(model, law, tokens, *args, **kwargs):
    return mar_contexts(model, law, torch.zeros_like(tokens), *args, **kwargs)


mar_contexts = mar.contexts
read = causal.ContextReader.read


@pytest.fixture
def blind():
    """Contexts that do not look at the tokens of the canvas."""
    with (
        patch.object(mar, "contexts", _blind_mar),
        patch.object(cspd, "contexts", _blind_mar),
        patch.object(causal.ContextReader, "read", lambda self, x, *args: read(self, torch.zeros_like(x), *args)),
    ):
        yield


def _iteration_of_tokens(draws, tokens, num_iter):
    """[B, N] iteration of the mask schedule in which each token is made."""
    order, masked = draws.orders(tokens), tokens
    made = torch.full_like(order, -1)
    for step, left in enumerate(mar.left_after(mar.mask_lengths(tokens, num_iter))):
        made.scatter_(1, order[:, left:masked], step)
        masked = left
    return made


def _constant_tokens(pair, law, method, labels, draws, index_BN, count):
    """Tokens [B, N, D], each from the constant law with its own number of steps."""
    made = None
    for steps in {law.steps_at(index, count) for index in range(count)}:
        tokens = decode(pair, law.with_steps(steps), method, labels, draws).tokens
        here = torch.tensor([law.steps_at(index, count) == steps for index in range(count)])[index_BN]
        made = torch.where(here[..., None], tokens, tokens if made is None else made)
    return made


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("windows", [(), (4, 2)], ids=["walk", "windows"])
@pytest.mark.parametrize("schedule", FALLS)
def test_each_mar_iteration_is_made_at_its_own_steps(pair, schedule, windows):
    law, (labels, draws) = _falling(MAR_LAW, schedule), _inputs()
    method = Plain(head_window=windows)
    falling = decode(pair, law, method, labels, draws).tokens
    iteration = _iteration_of_tokens(draws, falling.shape[1], law.num_iter)
    expected = _constant_tokens(pair, law, method, labels, draws, iteration, law.num_iter)
    # Contexts still differ in which tokens are visible, and these do not depend on the steps.
    assert torch.allclose(falling, expected, atol=1e-5)


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize("windows", [(), (4, 2)], ids=["walk", "windows"])
@pytest.mark.parametrize("schedule", FALLS)
def test_each_causal_token_is_made_at_its_own_steps(causal_pair, schedule, windows):
    law, (labels, draws) = _falling(CAUSAL_LAW, schedule), _inputs()
    method = Plain(head_window=windows)
    falling = decode(causal_pair, law, method, labels, draws).tokens
    length = falling.shape[1]
    position = torch.arange(length).expand(len(labels), -1)
    expected = _constant_tokens(causal_pair, law, method, labels, draws, position, length)
    assert torch.allclose(falling, expected, atol=1e-4)


def test_the_first_stage_is_the_constant_law(causal_pair):
    law, (labels, draws) = _falling(CAUSAL_LAW, "two-stage"), _inputs()
    falling = decode(causal_pair, law, Plain(), labels, draws).tokens
    constant = decode(causal_pair, law.with_steps(12), Plain(), labels, draws).tokens
    assert torch.allclose(falling[:, :5], constant[:, :5], atol=1e-5)
    assert not torch.allclose(falling[:, 5:], constant[:, 5:], atol=1e-2)


@pytest.mark.parametrize("schedule", FALLS)
def test_heads_make_the_steps_of_the_schedule(pair, causal_pair, schedule):
    law, (labels, draws) = _falling(MAR_LAW, schedule), _inputs()
    counts = decode(pair, law, Plain(), labels, draws).counts
    assert counts["target_head_calls"] == sum(law.steps_at(index, 8) for index in range(8))
    law = _falling(LAW, schedule)
    counts = decode(causal_pair, law, Plain(), labels, draws).counts
    paths = [PathLaw(law, 9).at(position) for position in range(9)]
    assert counts["target_head_calls"] == sum(path.above for path in paths)
    assert counts["finish_head_calls"] == sum(path.handoff + 1 for path in set(paths))


@pytest.mark.parametrize("schedule", FALLS)
def test_the_direct_loop_makes_the_same_tokens(pair, causal_pair, schedule):
    for own, law in ((pair, MAR_LAW), (causal_pair, CAUSAL_LAW)):
        falling, (labels, draws) = _falling(law, schedule), _inputs()
        plain = decode(own, falling, Plain(), labels, draws).tokens
        assert torch.allclose(decode_naive(own, falling, labels, draws).tokens, plain, atol=2e-3)


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("schedule", FALLS)
@pytest.mark.usefixtures("blind")
def test_draft_and_target_of_cspd_make_the_same_steps(pair, schedule, variant):
    law, (labels, draws) = _falling(MAR_LAW, schedule), _inputs()
    method, visible = Cspd(variant=variant, gamma=3, prefill=0.0), mar.Mar.forward

    def all_hidden(self, tokens, _visible, labels, counts=None, wanted=None):
        nothing = torch.zeros(len(tokens), 1, dtype=torch.int64)
        return visible(self, tokens, nothing, labels, torch.zeros(len(tokens), dtype=torch.int64), wanted)

    with patch.object(mar.Mar, "forward", all_hidden):
        decoded = cspd.decode_cspd(pair.target, pair.target, law, method, labels, draws)
        plain = decode(pair, law, Plain(), labels, draws).tokens
    assert decoded.drafts.accepted.all()
    assert decoded.drafts.log_ratio.abs().max() < 1e-2
    assert torch.allclose(decoded.tokens, plain, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("schedule", FALLS)
def test_gamma_zero_and_an_equal_draft_are_plain_decoding(causal_pair, schedule):
    law, target = _falling(CAUSAL_LAW, schedule), causal_pair.target
    plain = decode_causal_plain(target, law, *_inputs())
    none = decode_speculative(target, causal_pair.draft, law, Speculative(gamma=0), *_inputs())
    assert torch.allclose(none.tokens, plain.tokens, atol=1e-4)
    equal = decode_speculative(target, target, law, Speculative(gamma=3, stride=1), *_inputs())
    assert equal.drafts.accepted.all()
    assert equal.drafts.log_ratio.abs().max() < 1e-3
    assert torch.allclose(equal.tokens, plain.tokens, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("rule", [Acceptance(), Acceptance(rule="coupled", radius=1.0)], ids=lambda rule: rule.rule)
def test_an_image_does_not_depend_on_its_batch(causal_pair, rule):
    law, method = _falling(CAUSAL_LAW, "linear"), Speculative(gamma=3, stride=2, acceptance=rule, head_window=(3, 2))
    together = decode(causal_pair, law, method, *_inputs(5))
    alone = [decode(causal_pair, law, method, torch.tensor([i % 3]), Draws(torch.tensor([i + 100]))) for i in range(5)]
    assert torch.allclose(together.tokens, torch.cat([one.tokens for one in alone]), atol=1e-3)
    assert together.rounds.tolist() == [int(one.rounds) for one in alone]
    slots = decode(causal_pair, law, method, *_inputs(5), slots=2)
    assert torch.allclose(slots.tokens, together.tokens, atol=1e-3)


@pytest.fixture(scope="module")
def tiny():
    target = tiny_causal()
    return target, perturbed(target, 0.02)


SPECULATIVE = [
    Speculative(gamma=3, stride=1, proposals=2),
    Speculative(gamma=2, stride=1, proposals=1, head_window=(3, 2)),
]


@torch.inference_mode()
def _tokens(tiny, law, method, seed):
    labels, draws = torch.zeros(IMAGES, dtype=torch.int64), Draws(torch.arange(IMAGES) + seed * 10**6)
    if isinstance(method, Plain):
        return decode_causal_plain(tiny[0], law, labels, draws, method.head_window).tokens.flatten(1)
    return decode_speculative(*tiny, law, method, labels, draws).tokens.flatten(1)


@pytest.mark.parametrize("method", [Plain(head_window=(5, 2)), *SPECULATIVE], ids=["windows", "walk", "both"])
def test_exact_methods_keep_a_falling_law(tiny, method):
    law = _falling(LAW, "linear", 9, 3)
    plain, fast = _tokens(tiny, law, Plain(), 0), _tokens(tiny, law, method, 1)
    assert marginal_p_value(plain, fast) > 1e-3
    assert energy_p_value(plain[:2000], fast[:2000]) > 1e-2


@pytest.mark.parametrize("wrong", [8, 9])
def test_a_law_with_other_steps_is_told_apart(tiny, wrong):
    law = _falling(LAW, "linear", 9, 3)
    plain, other = _tokens(tiny, law, Plain(), 0), _tokens(tiny, law.with_steps(wrong), SPECULATIVE[0], 1)
    assert marginal_p_value(plain, other) < 1e-4


def test_constant_laws_draw_what_they_always_drew(pair, causal_pair):
    stored = json.loads((Path(__file__).parent / "data/constant_laws.json").read_text())
    coupled = Acceptance(rule="coupled", radius=1.0)
    methods = {
        "mar: plain": Plain(),
        "mar: plain, windows": Plain(head_window=(4, 2)),
        "mar: cspd released": Cspd(gamma=3),
        "mar: cspd paper, windows": Cspd(variant="paper", gamma=3, aligned=False, head_window=(3,)),
        "causal: plain": Plain(),
        "causal: plain, windows": Plain(head_window=(4, 2)),
        "causal: speculative": Speculative(gamma=3, stride=2),
        "causal: speculative, windows": Speculative(gamma=2, stride=1, head_window=(3, 2)),
        "causal: coupled": Speculative(gamma=3, stride=1, acceptance=coupled),
    }
    assert set(stored) == set(methods)
    for name, method in methods.items():
        own, law = (pair, MAR_LAW) if name.startswith("mar") else (causal_pair, CAUSAL_LAW)
        tokens = decode(own, law, method, *_inputs()).tokens[:, [0, -1], 0]
        assert torch.allclose(tokens, torch.tensor(stored[name]), atol=5e-3), name


def test_numbers_are_drawn_ahead_only_where_the_steps_stay(pair):
    law, (labels, draws) = _falling(MAR_LAW, "two-stage"), _inputs()
    with patch.object(draws, "normals", wraps=draws.normals) as normals:
        decode(pair, law, Plain(), labels, draws)
    counts = {call.args[3] for call in normals.call_args_list if call.args[0] is Purpose.STEP}
    assert counts == {12 * 4, 3 * 4}
