"""Captured functions: what is recorded, when it is recorded anew, and what a caller may rely on."""

from __future__ import annotations

import pytest
import torch

from spd_core.capture import Captured
from tests.cpu_graph import cpu_graphs


def _power(x, y, times=1):
    for _ in range(times):
        x = x * y
    return x, x.sum(dim=0)


def test_a_replay_computes_with_the_values_of_its_call():
    power = Captured(_power, "power")
    with cpu_graphs() as recorded:
        for seed in range(3):
            x, y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed))
            made, total = power(x, y, times=3)
            assert torch.equal(made, x * y * y * y)
            assert torch.equal(total, (x * y * y * y).sum(dim=0))
    assert recorded == ["power"]


def test_shapes_dtypes_and_constants_have_graphs_of_their_own():
    power = Captured(_power, "power")
    x = torch.ones(2, 2)
    with cpu_graphs() as recorded:
        for _ in range(2):
            power(x, x)
            power(x, x, times=2)
            power(x[:1], x[:1])
            power(x.double(), x.double())
    assert len(recorded) == 4


def test_results_stay_until_the_next_call_of_the_same_key():
    power = Captured(_power, "power")
    x = torch.full((2,), 2.0)
    with cpu_graphs():
        first = power(x, x)[0]
        power(x, x, times=2)
        assert torch.equal(first, x * x)
        power(3 * x, x)
        assert torch.equal(first, 3 * x * x)


def test_more_keys_than_its_most_are_called_directly():
    power = Captured(_power, "power", most=1)
    with cpu_graphs() as recorded:
        for rows in (1, 2, 3):
            assert torch.equal(power(torch.ones(rows), torch.ones(rows))[0], torch.ones(rows))
    assert len(recorded) == 1


def test_on_a_cpu_nothing_is_recorded():
    power = Captured(_power, "power")
    made = power(torch.ones(2), torch.ones(2))[0]
    power(torch.zeros(2), torch.ones(2))
    assert torch.equal(made, torch.ones(2))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: (x * x.sum().item(),),
        lambda x: (x[x > 0],),
        lambda x: (x.nonzero(),),
    ],
    ids=["item", "boolean index", "nonzero"],
)
def test_a_function_that_waits_for_the_device_cannot_be_captured(waits):
    with cpu_graphs(), pytest.raises(RuntimeError, match="inside a captured function"):
        Captured(waits, "waits")(torch.ones(3))
