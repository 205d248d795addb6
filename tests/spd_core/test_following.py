"""Predictions that follow the noise drawn: fewer head calls, the same law, and the mutant that must fail."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from torch import nn

from spd_core.decode.head_speculation import speculate_head
from spd_core.decode.path import BoundHead, HeadDraws, LawHead, PathNoise
from spd_core.draws import Draws
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.causal.tokens import PathLaw, decode_causal_plain
from spd_core.families.causal.verification import draft_walk, held_predictions
from spd_core.law import SamplerLaw, Speculative
from spd_core.models.head import DiffusionHead
from spd_core.models.variance import PosteriorVariance
from tests.tiny_causal import LAW, fitted_causal
from tests.two_samples import energy_p_value, marginal_p_value

FINE = LAW.model_copy(update={"head_steps": 16})
IMAGES = 4000


def _random_variance(seed):
    """One that moves predictions far, in axes of its own."""
    generator = torch.Generator().manual_seed(seed)
    variance = PosteriorVariance(2, 16, 8)
    for parameter in variance.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return variance.requires_grad_(False)


@pytest.fixture(scope="module")
def following():
    models = fitted_causal(0, 200), fitted_causal(1, 150)
    for seed, model in enumerate(models):
        model.head.variance = _random_variance(seed)
    return models


@torch.inference_mode()
def _plain(model, windows=(), seed=0):
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    draws = Draws(torch.arange(IMAGES) + seed * 10**6)
    return decode_causal_plain(model, FINE, labels, draws, windows).tokens.flatten(1)


@torch.inference_mode()
def _speculative(models, method):
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    return decode_speculative(*models, FINE, method, labels, Draws(torch.arange(IMAGES) + 10**6))


def test_windows_keep_the_law_whatever_the_variance(following):
    plain, fast = _plain(following[0]), _plain(following[0], (5, 3), seed=1)
    assert marginal_p_value(plain, fast) > 1e-3
    assert energy_p_value(plain[:2000], fast[:2000]) > 1e-2


@pytest.mark.parametrize("windows", [(), (5, 3)], ids=["walk", "windows"])
def test_drafts_keep_the_law_whatever_the_variance(following, windows):
    decoded = _speculative(following, Speculative(gamma=3, stride=4, head_window=windows))
    assert 0.2 < decoded.drafts.accepted.float().mean() < 0.95
    plain, fast = _plain(following[0]), decoded.tokens.flatten(1)
    assert marginal_p_value(plain, fast) > 1e-3
    assert energy_p_value(plain[:2000], fast[:2000]) > 1e-2


def test_a_residual_that_forgets_how_the_draft_followed_is_caught(following):
    def held(self, row, k, x0, states):
        return x0[:, None].expand_as(states)

    with patch.object(BoundHead, "followed", held):
        wrong = _speculative(following, Speculative(gamma=3, stride=4, proposals=1)).tokens.flatten(1)
    assert marginal_p_value(_plain(following[0]), wrong) < 1e-4


@torch.inference_mode()
def test_on_its_own_path_the_draft_predicts_what_it_predicted(following):
    path, draft = PathLaw(FINE, 4), following[1]
    noise = PathNoise(torch.randn(5, 2), torch.randn(5, path.above, 2), path.handoff + 1)
    bound = LawHead(draft.head, FINE).bind(torch.randn(5, 16), 1.0)
    trace = draft_walk(bound, noise.start, path, noise, 4).trace
    torch.testing.assert_close(held_predictions(bound, trace.states, path, 4), trace.x0, rtol=1e-3, atol=1e-4)
    assert (trace.x0[:, 1:4] - trace.x0[:, :1]).abs().max() > 0.05, "the predictions moved"


class _Gaussian(LawHead):
    """Velocity of data N(0.5, 1) in each dim; its embedding of a step is abar."""

    def __init__(self, law, variance):
        super().__init__(DiffusionHead(2, 1, 2, 1, 1).requires_grad_(False), law)
        nn.init.zeros_(self.head.cond_embed.weight)
        self.variance = variance
        self.step_embeddings = self.level_embeddings = self.table.signal.square()[:, None]

    def modulate(self, embedding):
        return embedding

    def evaluate(self, y, abar):
        eps = (1 - abar).sqrt() * (y - abar.sqrt() * 0.5)
        return (eps - (1 - abar).sqrt() * y) / abar.sqrt()


class _Known(PosteriorVariance):
    """The posterior variance of such data over the noise variance: 1 at every level."""

    def __init__(self):
        super().__init__(2, 1)
        self.axes.data = torch.eye(2)

    def relative(self, embedding):
        return torch.ones(*embedding.shape[:-1], 2)

    def condition(self, z):
        return torch.zeros(len(z), 1)


@torch.inference_mode()
def test_a_known_variance_saves_head_calls():
    law, rows = SamplerLaw(head_steps=100), 64
    calls = {}
    torch.manual_seed(0)
    for variance in (None, _Known()):
        index, zeros = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)
        noise = PathNoise(torch.randn(rows, 2), torch.randn(rows, 100, 2))
        bound = _Gaussian(law, variance).bind(torch.zeros(rows, 1), 1.0)
        head_draws = HeadDraws(Draws(index), index, zeros, zeros, 100)
        path, _ = speculate_head(bound, 99, 10, noise, head_draws, (30,))
        calls[variance is None] = path.calls
    assert calls[True] >= 2 * calls[False], calls
