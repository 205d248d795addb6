"""Exactness on the bundled causal pair: its methods against plain decoding, at the pair's own law.

Each sample is 2,000 images of all classes; statistics are the energy distance over all token values of an image, and
Kolmogorov-Smirnov tests of single values and their sums. A decoder that is wrong in a known way must fail them.
"""

from __future__ import annotations

from functools import lru_cache
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from spd_core.decode import decode, speculative
from spd_core.draws import Draws
from spd_core.law import Plain, Speculative
from spd_core.pairs.pair import Pair, load_pair
from tests.spd_core.test_speculative import MUTANTS
from tests.two_samples import energy_p_value, marginal_p_value

IMAGES, SLOTS = 2000, 64

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("fashion-ar")


def _tokens(pair: Pair, method: Plain | Speculative, seed: int) -> Tensor:
    """[n, N, D]; every sample has the same labels and draws of its own."""
    seeds = torch.arange(IMAGES) + seed * 10**6
    return decode(pair, pair.card.law, method, torch.arange(IMAGES) % 10, Draws(seeds), SLOTS).tokens


@lru_cache(maxsize=1)
def _plain(pair: Pair) -> Tensor:
    return _tokens(pair, Plain(), 0)


def _p_values(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Energy distance over whole images; the smallest of the marginal tests over five tokens' first value and mean."""
    at = torch.tensor([9, 20, 27, 36, 50])
    few = [torch.cat([of[:, at, 0], of[:, at].mean(dim=-1)], dim=1) for of in (x, y)]
    return energy_p_value(x.flatten(1), y.flatten(1)), marginal_p_value(*few)


METHODS = {
    "windows": lambda windows: Plain(head_window=windows),
    "speculative": lambda windows: Speculative(gamma=8),
    "speculative with windows": lambda windows: Speculative(gamma=8, head_window=windows),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_method_samples_the_targets_law(pair, name):
    made = _tokens(pair, METHODS[name](pair.card.windows[0]), 1 + list(METHODS).index(name))
    energy, marginal = _p_values(_plain(pair), made)
    assert energy > 0.01, (energy, marginal)
    assert marginal > 1e-3, (energy, marginal)


def test_a_mutant_is_rejected_with_as_many_images(pair):
    with patch.object(speculative, *MUTANTS["each token accepted for itself"]):
        wrong = _tokens(pair, Speculative(gamma=8, head_window=pair.card.windows[0]), 9)
    energy, marginal = _p_values(_plain(pair), wrong)
    assert min(energy, marginal) < 0.01, (energy, marginal)
