"""The deepened target: same law, more work."""

from __future__ import annotations

import copy

import torch

from spd_core.draws import Draws
from spd_core.families.causal import deepen
from spd_core.families.causal.deepen import deepened
from spd_core.families.causal.tokens import decode_causal_plain
from tests.tiny_causal import LAW, tiny_causal

INPUTS = (LAW, torch.arange(4) % 3, Draws(torch.arange(4)))


@torch.inference_mode()
def test_tokens_are_the_same_and_the_pass_is_deeper():
    model = tiny_causal()
    deep = deepened(model, 3)
    torch.testing.assert_close(decode_causal_plain(deep, *INPUTS).tokens, decode_causal_plain(model, *INPUTS).tokens)
    assert len(deep.blocks) == deep.config.depth == 4 * model.config.depth
    assert len(model.blocks) == model.config.depth
    assert all(bool(block.qkv.weight.any()) for block in deep.blocks), "the extra blocks do real work"
    deep.blocks[0].proj.weight.zero_()
    assert bool(model.blocks[0].proj.weight.any()), "no shared weights"


@torch.inference_mode()
def test_a_block_that_adds_something_is_seen(monkeypatch):
    monkeypatch.setattr(deepen, "idle", copy.deepcopy)
    model = tiny_causal()
    deep, plain = (decode_causal_plain(m, *INPUTS).tokens for m in (deepened(model, 1), model))
    assert (deep - plain).abs().max() > 0.05
