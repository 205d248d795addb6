"""The precision of a law: what is rounded, what stays, how often, and what it does to the tokens."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from spd_core.decode import decode
from spd_core.decode.naive import decode_naive
from spd_core.draws import Draws
from spd_core.law import Cspd, Plain, SamplerLaw, Speculative
from spd_core.models.linear import Float32Linear, Linear
from spd_core.pairs.pair import BUNDLED, Pair, bundled_pairs, load_card, load_pair
from spd_core.precision import arithmetic, at_precision
from tests.precision import measured

SEEDS = torch.arange(2)
LABELS = torch.tensor([3, 7])
#: Few iterations and head steps: what a precision does shows in any number of them.
SHORT = {"fashion-mar": {"num_iter": 6, "head_steps": 12}, "fashion-ar": {"head_steps": 12, "handoff_level": 100}}


def law(pair: Pair, dtype: str, **changes) -> SamplerLaw:
    return pair.card.law.model_copy(update={"dtype": dtype, **changes})


@pytest.fixture(scope="module", params=["fashion-mar", "fashion-ar"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return load_pair(request.param)


def test_a_twin_is_made_once_and_made_anew_if_the_weights_change():
    model = nn.Sequential(Linear(4, 4), nn.LayerNorm(4), Float32Linear(4, 2)).requires_grad_(False)
    twin = at_precision(model, "bfloat16")
    assert twin is at_precision(model, "bfloat16")
    assert at_precision(twin, "bfloat16") is twin and at_precision(twin[0], "bfloat16") is twin[0]
    assert [p.dtype for p in twin.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 4
    assert at_precision(model, "float32") is model and at_precision(model, "tf32") is model
    model[0].weight.add_(1)
    assert at_precision(model, "bfloat16") is not twin


def test_the_head_keeps_its_projections_and_rounds_its_blocks(pair: Pair):
    head = at_precision(pair.target, "bfloat16").head
    assert head.final_layer.linear.weight.dtype is torch.float32 is head.input_proj.weight.dtype
    assert head.res_blocks[0].mlp[0].weight.dtype is torch.bfloat16
    x, z = torch.randn(3, head.in_channels), torch.randn(3, head.cond_embed.in_features)
    exact = pair.target.head(x, torch.tensor([999, 500, 0]), z)
    got = head(x, torch.tensor([999, 500, 0]), z)
    assert got.dtype is torch.float32
    assert 0 < float((got - exact).abs().max()) < 0.1 * float(exact.abs().max())


@pytest.mark.parametrize("method", ["plain", "windows", "draft"])
def test_every_decoder_with_a_head_decodes_in_bfloat16(pair: Pair, method: str):
    name = {"fashion-mar": Cspd(gamma=4), "fashion-ar": Speculative(gamma=4)}[pair.card.name]
    chosen = {"plain": Plain(), "windows": Plain(head_window=(4, 2)), "draft": name}[method]
    short = SHORT[pair.card.name]
    exact = decode(pair, law(pair, "float32", **short), chosen, LABELS, Draws(SEEDS)).tokens
    low = decode(pair, law(pair, "bfloat16", **short), chosen, LABELS, Draws(SEEDS)).tokens
    assert low.dtype is torch.float32 and bool(low.isfinite().all())
    assert not torch.equal(low, exact)
    same = decode(pair, law(pair, "tf32", **short), chosen, LABELS, Draws(SEEDS)).tokens
    assert torch.equal(same, exact)  # a CPU has no TF32


def test_plain_and_the_public_sampler_agree_in_bfloat16(pair: Pair):
    here = law(pair, "bfloat16", num_iter=4, head_steps=10)
    ours = decode(pair, here, Plain(), LABELS, Draws(SEEDS)).tokens
    naive = decode_naive(pair, here, LABELS, Draws(SEEDS)).tokens
    assert float((ours - naive).abs().median()) < 0.02


def test_arithmetic_is_set_and_put_back():
    products = torch.backends.cuda.matmul
    before = products.allow_tf32, torch.backends.cudnn.allow_tf32
    with arithmetic("tf32"):
        assert products.allow_tf32 and torch.backends.cudnn.allow_tf32
        with arithmetic("float32"):
            assert not products.allow_tf32 and not torch.backends.cudnn.allow_tf32
        assert products.allow_tf32
    assert (products.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_the_codec_of_a_float32_law_is_ieee_and_of_any_other_tf32(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(Pair, "_decoded", lambda self, tokens: seen.append(torch.backends.cudnn.allow_tf32) or tokens)
    for precision in ("float32", "tf32", "bfloat16"):
        pair.images(torch.zeros(1), precision)
    assert seen == [False, True, True]


def test_the_table_of_rounding_speaks_of_every_bundled_pair_and_of_what_is_measured():
    """`python -m tests.precision` makes the table; an image of each pair stays near it."""
    table = json.loads((BUNDLED / "rounding.json").read_bytes())
    assert sorted(table) == bundled_pairs()
    assert all(of["target"] == load_card(name).sha256["target"] for name, of in table.items())
    for name in ("fashion-mar", "fashion-vq"):
        small = load_pair(name, draft=False)
        here = small.card.law.model_copy(update={"dtype": "bfloat16", "num_iter": 8})
        found = float(measured(small, here, images=1).mean())
        # A CPU without products of bfloat16 sums them in float32, and rounds less.
        assert table[name]["bfloat16"]["mean"] / 100 < found < 10 * table[name]["bfloat16"]["mean"]
