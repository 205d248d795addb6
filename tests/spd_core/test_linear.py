"""The oneDNN Linear gives what nn.Linear gives, and steps aside where it must."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spd_core.models import linear
from spd_core.models.linear import Linear


@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_same_result_as_torch(rows, bias):
    ours, theirs = Linear(128, 96, bias=bias), nn.Linear(128, 96, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, rows, 128)
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


@pytest.mark.skipif(linear._ONEDNN is None, reason="this torch was built without oneDNN")
def test_large_inference_uses_onednn_and_training_does_not(monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args[0].shape)
        return torch.ops.mkldnn._linear_pointwise(*args)

    monkeypatch.setattr(linear, "_ONEDNN", counted)
    layer, x = Linear(128, 128), torch.randn(512, 128)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode():
        layer(x[:1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
        assert not calls
        layer(x)
    assert calls == [x.shape]


@pytest.mark.skipif(linear._ONEDNN is None, reason="this torch was built without oneDNN")
def test_a_kept_weight_follows_the_weight():
    ours, theirs, x = Linear(256, 256), nn.Linear(256, 256), torch.randn(9, 256)
    for _ in range(2):
        with torch.no_grad():
            for old, new in zip(ours.parameters(), theirs.parameters(), strict=True):
                old.copy_(new)
        with torch.inference_mode():
            assert torch.allclose(ours(x), theirs(x), atol=1e-5)
        nn.init.normal_(theirs.weight)
    assert ours in linear._PREPACKED
    ours.load_state_dict(theirs.state_dict(), assign=True)
    with torch.inference_mode():
        assert torch.allclose(ours(x), theirs(x), atol=1e-4)
