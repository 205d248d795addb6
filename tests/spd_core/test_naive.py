"""The direct loop gives plain decoding's tokens; that is what makes its time a fair measure."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from spd_core.decode import naive
from spd_core.draws import Draws
from spd_core.families.causal.naive import decode_causal_naive
from spd_core.families.causal.tokens import decode_causal_plain
from spd_core.families.mar.naive import decode_mar_naive
from spd_core.families.mar.plain import decode_plain
from tests.tiny_causal import LAW as CAUSAL_LAW
from tests.tiny_causal import tiny_causal
from tests.tiny_pair import LAW as MAR_LAW
from tests.tiny_pair import tiny_config, tiny_mar

GUIDED = {"cfg": 2.0, "temperature": 0.8}


def _inputs(count=3):
    return torch.arange(count) % 3, Draws(torch.arange(count) + 5)


def _same_work(plain, direct):
    for name in ("target_context_calls", "target_head_calls", "target_head_rows", "finish_head_calls"):
        assert plain.counts.get(name) == direct.counts.get(name)
    assert torch.equal(plain.rounds, direct.rounds)


@pytest.mark.parametrize("changes", [{}, GUIDED], ids=["bare", "guided"])
@torch.inference_mode()
def test_mar(changes):
    target, law = tiny_mar(tiny_config(2)), MAR_LAW.model_copy(update={**changes, "head_steps": 12, "start_level": 960})
    plain, direct = decode_plain(target, law, *_inputs()), decode_mar_naive(target, law, *_inputs())
    torch.testing.assert_close(direct.tokens, plain.tokens, rtol=1e-3, atol=1e-3)
    _same_work(plain, direct)


@pytest.mark.parametrize("changes", [{}, GUIDED], ids=["bare", "guided"])
@torch.inference_mode()
def test_causal(changes):
    target, law = tiny_causal(), CAUSAL_LAW.model_copy(update=changes)
    plain, direct = decode_causal_plain(target, law, *_inputs()), decode_causal_naive(target, law, *_inputs())
    torch.testing.assert_close(direct.tokens, plain.tokens, rtol=1e-3, atol=1e-3)
    _same_work(plain, direct)


@torch.inference_mode()
def test_a_wrong_schedule_is_seen():
    target, extract = tiny_causal(), naive._extract

    def shifted(schedule, k, like):
        return extract(schedule, (k + 1).clamp(max=len(schedule) - 1), like)

    with patch.object(naive, "_extract", shifted):
        wrong = decode_causal_naive(target, CAUSAL_LAW, *_inputs()).tokens
    right = decode_causal_plain(target, CAUSAL_LAW, *_inputs()).tokens
    assert (wrong - right).abs().max() > 0.05
