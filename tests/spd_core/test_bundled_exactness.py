"""Exactness on the bundled causal pair: its methods against plain decoding, at the pair's own law (about 25 minutes).

Each sample is 2,000 images of all classes; statistics are the energy distance over all token values of an image, and
Kolmogorov-Smirnov tests of single values and their sums. A decoder that is wrong in a known way must fail them.
"""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from spd_core.codec import PixelCodec
from spd_core.decode import decode, head_speculation
from spd_core.draws import Draws, image_seed
from spd_core.law import Acceptance, Plain, Speculative
from spd_core.pairs.pair import Pair, load_pair
from spd_core.quality.evaluate import QualityFigures, evaluate
from spd_core.quality.features import FeatureExtractor
from spd_core.quality.labels import label_agreement
from tests.two_samples import energy_p_value, marginal_p_value

IMAGES, SLOTS = 2000, 64

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("fashion-ar")


def _tokens(pair: Pair, method: Plain | Speculative, seed: int) -> Tensor:
    """[n, N, D]; every sample has the same labels and draws of its own."""
    seeds = torch.arange(IMAGES) + seed * 10**6
    return decode(pair, pair.card.law, method, torch.arange(IMAGES) % 10, Draws(seeds), SLOTS).tokens


@pytest.fixture(scope="module")
def plain(pair: Pair) -> Tensor:
    return _tokens(pair, Plain(), 0)


def _p_values(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Energy distance over whole images; the smallest of the marginal tests over five tokens' first value and mean."""
    at = torch.tensor([9, 20, 27, 36, 50])
    few = [torch.cat([of[:, at, 0], of[:, at].mean(dim=-1)], dim=1) for of in (x, y)]
    return energy_p_value(x.flatten(1), y.flatten(1)), marginal_p_value(*few)


def _quality(tokens: Tensor) -> QualityFigures:
    labels = torch.arange(IMAGES) % 10
    parts = []
    for some, at in zip(tokens.split(200), labels.split(200), strict=True):
        images = PixelCodec().decode(some)
        parts.append((FeatureExtractor("cpu")(images), label_agreement(images, at, "fashion-mnist")))
    features, agrees = (torch.cat(column) for column in zip(*parts, strict=True))
    return evaluate(features, labels, agrees, "fashion-mnist")


def _overlap(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    assert one is not None and other is not None
    return one[0] <= other[1] and other[0] <= one[1]


@pytest.mark.parametrize("name", ["windows", "speculative"])
def test_the_method_samples_the_targets_law(pair, plain, name):
    windows = pair.card.windows[0]
    method = Plain(head_window=windows) if name == "windows" else Speculative(gamma=4, head_window=windows)
    made = _tokens(pair, method, 1 + (name == "windows"))
    energy, marginal = _p_values(plain, made)
    own, right = _quality(made), _quality(plain)
    print(f"\n{name}: p {energy:.3f} (energy), {marginal:.3f} (marginals)")
    for label, of in ((name, own), ("plain", right)):
        print(
            f"{label}: n {of.n}, distance {of.frechet:.1f} {of.frechet_interval}, floor {of.floor:.1f}, "
            f"label agreement {of.label_agreement:.4f} {of.label_agreement_interval}"
        )
    assert energy > 0.01
    assert marginal > 1e-3
    assert _overlap(own.frechet_interval, right.frechet_interval)
    assert _overlap(own.label_agreement_interval, right.label_agreement_interval)


def test_accepting_every_step_of_a_window_is_rejected(pair, plain):
    """Power: the mutant lets the held predictions make the path, as a fast sampler without a test would."""

    def all_stand(noise: Tensor, shift: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(uniform, dtype=torch.bool), noise + shift

    with patch.object(head_speculation, "reflect", all_stand):
        wrong = _tokens(pair, Plain(head_window=pair.card.windows[0]), 9)
    energy, marginal = _p_values(plain, wrong)
    print(f"\nmutant: p {energy:.3f} (energy), {marginal:.2g} (marginals)")
    assert energy < 0.01


def test_clean_tokens_of_the_coupled_rule_lie_beyond_its_radius(pair):
    """The radius bounds each token's hand-off state given the tokens before it, not clean tokens or images.

    Compared with plain decoding on the same noise; a radius of 0 keeps no draft and gives the same images.
    """
    windows, labels = pair.card.windows[0], torch.arange(40) % 10
    draws = Draws(torch.tensor([image_seed(0, f"{i:08d}") for i in range(40)]))
    plain = decode(pair, pair.card.law, Plain(head_window=windows), labels, draws).tokens

    def distances(radius: float) -> Tensor:
        rule = Acceptance(rule="coupled", radius=radius)
        method = Speculative(gamma=8, stride=15, head_window=windows, acceptance=rule)
        tokens = decode(pair, pair.card.law, method, labels, draws).tokens
        return torch.linalg.vector_norm(tokens - plain, dim=-1)

    assert distances(0.0).max() < 0.01
    far = distances(0.3)
    assert 0.2 < (far > 0.3).float().mean() < 0.35
    assert far.max() > 5
