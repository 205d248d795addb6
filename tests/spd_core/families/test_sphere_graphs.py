"""SphereAR's decoders from recorded graphs make the tokens that they make without; measured calls cover a decoding."""

from __future__ import annotations

import math

import pytest
import torch

from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.law import Plain, Speculative
from spd_core.pairs.pair import load_pair
from tests.cpu_graph import cpu_graphs
from tests.tiny_sphere import HANDOFF, PUBLIC, make_tiny_sphere_pair

LABELS, SEEDS = torch.arange(5) % 3, torch.arange(5)
DRAFTED = Speculative(gamma=2, stride=1, head_window=(3, 2))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return load_pair(str(make_tiny_sphere_pair(tmp_path_factory.mktemp("pairs") / "spheres")))


@pytest.mark.parametrize(
    ("law", "method"),
    [(PUBLIC, Plain()), (PUBLIC, Plain(head_window=(4, 2))), (HANDOFF, Plain()), (HANDOFF, DRAFTED)],
    ids=["public", "public, windows", "hand-off", "drafted"],
)
def test_tokens_from_graphs(pair, law, method):
    directly = decode(pair, law, method, LABELS, Draws(SEEDS), 3)
    with cpu_graphs() as recorded:
        replayed = decode(pair, law, method, LABELS, Draws(SEEDS), 3)
        again = decode(pair, law, method, LABELS, Draws(SEEDS), 3)
    assert recorded
    for made in (replayed, again):
        assert float((made.tokens - directly.tokens).abs().amax(dim=-1).quantile(0.85)) < 1e-3
        assert torch.equal(made.rounds, directly.rounds)


@pytest.mark.parametrize(("law", "method"), [(PUBLIC, Plain(head_window=(4, 2))), (HANDOFF, DRAFTED)])
def test_every_call_is_measured(pair, law, method):
    times = pair.card.of.call_times(pair, law, method, LABELS, Draws(SEEDS))
    found = {name: value for name, value in vars(times).items() if isinstance(value, float)}
    assert all(math.isfinite(value) and value >= 0 for value in found.values())
    assert times.context > 0 and times.head > 0
