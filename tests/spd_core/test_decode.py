"""Decoders on a tiny pair: schedules, ragged batches, purity in the image seeds, and cspd's own promises."""

from __future__ import annotations

import itertools
import math
from unittest.mock import patch

import pytest
import torch

from spd_core.decode import decode
from spd_core.draws import Draws, image_seed
from spd_core.families.mar.cspd import prefill_iterations
from spd_core.families.mar.iterations import OrderDraws, RowDraws, guidance_scale, left_after, mask_lengths, rows_of
from spd_core.families.mar.model import Mar
from spd_core.law import Cspd, Guarantee, Plain, SamplerLaw
from spd_core.pairs.pair import load_pair
from tests.tiny_pair import make_tiny_pair

LAW = SamplerLaw(num_iter=16, head_steps=6, start_level=900)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    make_tiny_pair(folder)
    return load_pair(str(folder))


def _inputs(count, first=0):
    labels = torch.arange(first, first + count) % 3
    return labels, Draws(torch.tensor([image_seed(1, str(i)) for i in range(first, first + count)]))


@pytest.mark.parametrize(("tokens", "num_iter"), [(64, 64), (64, 8), (256, 256), (256, 64), (64, 256), (16, 1)])
def test_mask_schedule(tokens, num_iter):
    lengths = mask_lengths(tokens, num_iter)
    left = left_after(lengths)
    assert len(lengths) == num_iter
    assert left[-1] == 0
    assert all(later <= earlier for earlier, later in zip([tokens, *left], left, strict=False))
    if tokens == num_iter:
        assert [a - b for a, b in zip([tokens, *left], left, strict=False)] == [1] * tokens


def test_guidance_schedules():
    law = SamplerLaw(cfg=3.0)
    assert guidance_scale(law, 64, 64) == 1.0
    assert guidance_scale(law, 64, 32) == 2.0
    assert guidance_scale(law.model_copy(update={"cfg_schedule": "constant"}), 64, 64) == 3.0


@torch.inference_mode()
def test_wanted_contexts_are_those_of_the_whole_pass(pair):
    model = pair.target
    config, labels = model.config, torch.tensor([0, -1, 2])
    tokens = torch.randn(3, config.seq_len, config.token_dim, generator=torch.Generator().manual_seed(0))
    visible = torch.tensor([[1, 4, 9], [0, 2, 3], [5, 6, 15]])
    wanted = torch.tensor([[7, 2], [15, 1], [0, 1]])
    whole = model(tokens, visible, labels)
    part = model(tokens, visible, labels, wanted_BQ=wanted)
    assert torch.allclose(part, whole[torch.arange(3)[:, None], wanted], atol=1e-5)


@pytest.mark.parametrize(("batch", "draws_of_a_kind"), [(1, 3), (3, 5), (20, 8)])
def test_numbers_drawn_ahead_are_those_of_the_row(batch, draws_of_a_kind):
    length, dims = 40, 3
    _, draws = _inputs(batch)
    ordered = OrderDraws(draws, LAW, length, dims, speculates=True)
    ends = [40, 39, 38, 37, 30, 29, 4, 3, 0]
    with patch.object(draws, "normals", wraps=draws.normals) as normals:
        iterations = [ordered.of(left, masked) for masked, left in itertools.pairwise(ends)]
    assert normals.call_count == 2 * draws_of_a_kind
    for (masked, left), (rows, own) in zip(itertools.pairwise(ends), iterations, strict=True):
        expected = RowDraws.of(draws, LAW, rows_of(ordered.order, left, masked), dims, speculates=False)
        assert torch.equal(rows.image, expected.head.image)
        assert torch.equal(rows.token, expected.head.token)
        assert torch.equal(own.noise.start, expected.noise.start)
        assert torch.equal(own.noise.step, expected.noise.step)
        assert torch.equal(own.head.uniforms(), expected.head.uniforms())
        for ahead, now in zip(own.head.first_proposals(dims), expected.head.first_proposals(dims), strict=True):
            assert torch.equal(ahead, now)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("num_iter", [1, 5, 16, 40])
def test_plain_makes_every_token_once(pair, cfg, num_iter):
    law = LAW.model_copy(update={"cfg": cfg, "num_iter": num_iter})
    decoded = decode(pair, law, Plain(), *_inputs(3))
    assert torch.isfinite(decoded.tokens).all()
    assert (decoded.tokens.abs().sum(dim=-1) > 0).all()
    rows = decoded.counts["target_head_rows"]
    assert rows == 3 * pair.card.target.seq_len * LAW.head_steps * (2 if cfg != 1 else 1)
    assert len(decoded.drafts.accepted) == 0


METHODS = [Plain(), Cspd(gamma=3), Cspd(gamma=3, aligned=False), Cspd(variant="paper", gamma=3, prefill=0.2)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'variant', '')}")
def test_same_seeds_same_tokens(pair, method):
    first, second = (decode(pair, LAW, method, *_inputs(4)).tokens for _ in range(2))
    assert torch.equal(first, second)
    other = decode(pair, LAW, method, _inputs(4)[0], Draws(torch.arange(4))).tokens
    assert not torch.equal(first, other)


@pytest.mark.parametrize("method", [Plain(), Cspd(variant="paper", gamma=3)], ids=["plain", "paper"])
def test_an_image_does_not_depend_on_its_batch(pair, method):
    """Rounding may differ with the shape of a batch; the random numbers and decisions may not."""
    together = decode(pair, LAW, method, *_inputs(5)).tokens
    alone = torch.cat([decode(pair, LAW, method, *_inputs(1, i)).tokens for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-3)


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_draft_equal_to_target_is_accepted_where_the_contexts_agree(pair, variant, cfg):
    """gamma 1: the block is one iteration, so draft and target condition on the same tokens and R is 1."""
    twin = type(pair)(pair.card, pair.target, pair.target, pair.device)
    law = LAW.model_copy(update={"cfg": cfg})
    method = Cspd(variant=variant, gamma=1, prefill=0.0)
    decoded = decode(twin, law, method, *_inputs(3))
    assert decoded.drafts.accepted.all()
    assert decoded.drafts.log_ratio.abs().max() < 1e-2
    assert torch.allclose(decoded.tokens, decode(twin, law, Plain(), *_inputs(3)).tokens, atol=1e-3)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_block_context_is_why_cspd_is_not_exact(pair, variant):
    """With draft == target a valid scheme accepts everything; cspd does not once a block has several tokens."""
    twin = type(pair)(pair.card, pair.target, pair.target, pair.device)
    decoded = decode(twin, LAW, Cspd(variant=variant, gamma=8, prefill=0.0, inner_temperature=1.0), *_inputs(8))
    assert decoded.drafts.accepted.float().mean() < 1.0
    assert Cspd(variant=variant).guarantee is Guarantee.NONE


def test_released_calls_do_not_depend_on_acceptance(pair):
    strict, lenient = (decode(pair, LAW, Cspd(gamma=4, inner_temperature=t), *_inputs(3)) for t in (1e-3, 1e6))
    assert strict.drafts.accepted.float().mean() < lenient.drafts.accepted.float().mean()
    assert strict.counts == lenient.counts
    assert torch.equal(strict.rounds, lenient.rounds)


def test_paper_stops_at_the_first_refusal(pair):
    """Of each image's round at most one test, the last, is a rejection; the places run 0, 1, 2, ... without a gap."""
    twin = type(pair)(pair.card, pair.target, pair.target, pair.device)
    method = Cspd(variant="paper", gamma=5, prefill=0.0, inner_temperature=1.0)
    decoded = decode(twin, LAW, method, *_inputs(4))
    drafts = decoded.drafts
    assert 0.1 < drafts.accepted.float().mean() < 0.9, "the test needs both outcomes"
    for image in range(4):
        mine = drafts.image == image
        tests = list(zip(drafts.draft_index[mine].tolist(), drafts.accepted[mine].tolist(), strict=True))
        for (place, accepted), (following, _) in itertools.pairwise(tests):
            assert following == (place + 1 if accepted and place < 4 else 0)
        made = sum(1 for _ in tests)
        assert made == pair.card.target.seq_len  # each test makes exactly one token: accepted or resampled
    assert len(set(decoded.rounds.tolist())) > 1, "images of a batch should advance independently"


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.05, 4), (0.15, 10), (1.0, 64)])
def test_prefill_iterations(share, expected):
    assert prefill_iterations(Cspd(prefill=share), 64) == expected


def test_prefill_of_everything_is_plain_decoding(pair):
    whole = decode(pair, LAW, Cspd(prefill=1.0), *_inputs(2))
    assert torch.equal(whole.tokens, decode(pair, LAW, Plain(), *_inputs(2)).tokens)
    assert "draft_context_calls" not in whole.counts


def test_ragged_forward_equals_one_image_at_a_time(pair):
    model: Mar = pair.target
    length = model.config.seq_len
    counts = torch.tensor([0, 3, length - 1])
    visible = torch.zeros(3, length - 1, dtype=torch.int64)
    for row, count in enumerate(counts):
        visible[row, :count] = torch.randperm(length)[:count].sort().values
    tokens, labels = torch.randn(3, length, model.config.token_dim), torch.tensor([0, 1, -1])
    with torch.inference_mode():
        ragged = model(tokens, visible, labels, counts)
        for row, count in enumerate(counts.tolist()):
            at = slice(row, row + 1)
            alone = model(tokens[at], visible[at, :count], labels[at])
            assert torch.allclose(ragged[at], alone, atol=1e-5)


def test_bfloat16_law_stays_close(pair):
    low = LAW.model_copy(update={"dtype": "bfloat16", "num_iter": 2})
    exact = decode(pair, low.model_copy(update={"dtype": "float32"}), Plain(), *_inputs(2)).tokens
    assert 0 < (decode(pair, low, Plain(), *_inputs(2)).tokens - exact).abs().mean() < 0.3


def test_law_needs_steps_that_fit():
    with pytest.raises(ValueError, match="head_steps"):
        SamplerLaw(head_steps=100, start_level=50)
    assert math.isfinite(SamplerLaw(head_steps=51, start_level=50).start_level)


#: Of the paper's rounds, each with many proposals, the last ones of an image are enough.
PAPER = Cspd(gamma=8, variant="paper", prefill=0.75)


@pytest.mark.parametrize("method", [Plain(), Cspd(gamma=8), PAPER], ids=lambda m: m.name)
def test_an_image_does_not_depend_on_its_company(method):
    """An image alone and among others, on the bundled pair: the same but for the rounding of other products."""
    pair = load_pair("fashion-mar")
    law = pair.card.law.model_copy(update={"num_iter": 8, "head_steps": 4})
    labels, seeds = torch.tensor([0, 1, 2]), torch.arange(3)
    together = decode(pair, law, method, labels, Draws(seeds))
    for image in (0, 2):
        alone = decode(pair, law, method, labels[image : image + 1], Draws(seeds[image : image + 1]))
        assert torch.allclose(alone.tokens[0], together.tokens[image], atol=1e-3)
        accepted = together.drafts.accepted[together.drafts.image == image]
        assert torch.equal(alone.drafts.accepted, accepted)
