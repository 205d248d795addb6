"""The causal model, its cache and its plain decoder."""

from __future__ import annotations

import pytest
import torch

from spd_core.diffusion import diffusion, handoff_step, step_table
from spd_core.draws import Draws
from spd_core.families.causal.model import CausalConfig
from spd_core.families.causal.tokens import PathLaw, decode_causal_plain
from spd_core.law import SamplerLaw
from tests.tiny_causal import LAW, tiny_causal
from tests.two_samples import energy_p_value, marginal_p_value

CONFIG = CausalConfig(
    img_size=6, vae_stride=1, patch_size=2, vae_embed_dim=1, class_num=3,
    embed_dim=16, depth=2, num_heads=2, head_depth=2, head_width=16,
)  # fmt: skip
GUIDED = LAW.model_copy(update={"cfg": 2.0, "temperature": 0.9})


@pytest.fixture(scope="module")
def model():
    return tiny_causal(CONFIG)


def _inputs(count, first=0):
    return torch.arange(first, first + count) % 3, Draws(torch.arange(first, first + count) + 100)


@torch.inference_mode()
def test_cached_passes_equal_one_full_pass_ragged_and_after_a_roll_back(model):
    tokens, labels = torch.randn(3, 9, 4), torch.tensor([0, 2, -1])
    previous = tokens.roll(1, dims=1)
    whole = model(previous, labels)
    cache = model.cache(3)
    first, seen = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 9, 16)
    garbage = torch.randn(3, 12, 4)
    generator = torch.Generator().manual_seed(0)
    while (first < 9).any():
        # A pass over three positions of which only some are kept, the rest having read tokens that are then replaced.
        keep = torch.randint(1, 4, (3,), generator=generator)
        at = first[:, None] + torch.arange(3)
        block = torch.where(
            (torch.arange(3) < keep[:, None])[..., None],
            previous[torch.arange(3)[:, None], at.clamp(max=8)],
            garbage[:, :3],
        )
        z = model(block, labels, first, cache)
        for row in range(3):
            count = min(int(keep[row]), 9 - int(first[row]))
            if count > 0:
                seen[row, first[row] : first[row] + count] = z[row, :count]
        first = (first + keep).clamp(max=9)
    assert torch.allclose(seen, whole, atol=1e-5)


@torch.inference_mode()
def test_a_context_reads_nothing_after_its_position(model):
    tokens, labels = torch.randn(1, 9, 4), torch.tensor([1])
    changed = tokens.clone()
    changed[:, 5:] += 1.0
    before, after = model(tokens, labels), model(changed, labels)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_steps_of_a_held_prediction_are_linear():
    process, table = diffusion(12, 999), step_table(12, 999, torch.device("cpu"))
    assert table.carry[3, 6] == pytest.approx(float(table.c_x[3] * table.c_x[4] * table.c_x[5]), rel=1e-5)
    assert table.carry[4, 4] == 1
    assert table.carry[5, 4] == 0
    assert float(table.fixed_std[7]) ** 2 == pytest.approx(process.posterior_variance[7], rel=1e-5)


def test_the_hand_off_is_the_nearest_level():
    assert handoff_step(100, 999, 91) == 9
    assert handoff_step(100, 999, 0) == 0
    assert PathLaw(SamplerLaw(head_steps=100, handoff_level=91), 64).above == 90
    with pytest.raises(ValueError, match="handoff_level"):
        SamplerLaw(start_level=500, head_steps=10, handoff_level=500)


@torch.inference_mode()
@pytest.mark.parametrize("law", [LAW, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("windows", [(), (4, 2)], ids=["walk", "windows"])
def test_an_image_does_not_depend_on_its_batch(model, law, windows):
    together = decode_causal_plain(model, law, *_inputs(5), windows).tokens
    alone = torch.cat([decode_causal_plain(model, law, *_inputs(1, i), windows).tokens for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-3)
    assert torch.isfinite(together).all()


@torch.inference_mode()
def test_counts_of_plain_decoding(model):
    decoded = decode_causal_plain(model, GUIDED, *_inputs(2))
    path = PathLaw(GUIDED, 9)
    assert decoded.counts["target_context_calls"] == 9
    assert decoded.counts["target_head_calls"] == 9 * path.above
    assert decoded.counts["target_head_rows"] == 9 * path.above * 2 * 2
    assert decoded.counts["finish_head_calls"] == path.handoff + 1
    windowed = decode_causal_plain(model, GUIDED, *_inputs(2), (4, 2))
    assert windowed.counts["target_head_calls"] < decoded.counts["target_head_calls"]


@torch.inference_mode()
def test_head_self_speculation_keeps_the_law():
    tiny, count = tiny_causal(), 4000
    labels = torch.zeros(count, dtype=torch.int64)
    plain = decode_causal_plain(tiny, LAW, labels, Draws(torch.arange(count))).tokens.flatten(1)
    windowed = decode_causal_plain(tiny, LAW, labels, Draws(torch.arange(count) + count), (3, 2)).tokens.flatten(1)
    assert marginal_p_value(plain, windowed) > 1e-3
    assert energy_p_value(plain[:2000], windowed[:2000]) > 1e-3
