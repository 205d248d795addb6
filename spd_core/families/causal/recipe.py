"""Recipe of a causal model: every token's diffusion loss given the tokens before it at the hand-off level.

Run it as ``spd train fashion-ar --part target``; output as for the MAR recipe. The context network reads tokens with
just the noise that a token carries when decoding hands it over, drawn anew each step. The noise of a token's diffusion
loss is independent of the noise with which later tokens read it.

Shape legend: B images of a batch, N tokens, D token dims, Z context dims, R trained rows (token, noise level).
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from spd_core.diffusion import TRAIN_STEPS, diffusion, velocity_target
from spd_core.families.causal.model import Causal, CausalConfig
from spd_core.train.loop import TokenRecipe


class CausalRecipe(TokenRecipe):
    """A training run of a causal model; target and draft of a pair need the same hand-off level."""

    model: CausalConfig
    handoff_level: int = Field(
        91, ge=0, lt=TRAIN_STEPS, description="original timestep of the tokens the context reads"
    )
    head_tokens: int = Field(0, ge=0, description="tokens per image that train the head each step; 0: all")

    def build(self) -> Causal:
        return Causal(self.model)

    def loss(self, model: nn.Module, tokens_BND: Tensor, labels_B: Tensor, rng: np.random.Generator) -> Tensor:
        if not isinstance(model, Causal):
            raise TypeError(f"recipe of a Causal, got {type(model).__name__}")
        return loss_of(model, tokens_BND, labels_B, self, rng)


def loss_of(
    model: Causal, tokens_BND: Tensor, labels_B: Tensor, recipe: CausalRecipe, rng: np.random.Generator
) -> Tensor:
    """Mean squared error of the velocity at uniform levels, all randomness from ``rng``."""
    batch, length, dims = tokens_BND.shape
    dropped = torch.from_numpy(rng.random(batch) < recipe.label_drop)
    previous = handed_over(tokens_BND, recipe.handoff_level, rng).roll(1, dims=1)
    z = model(previous, torch.where(dropped, -1, labels_B))
    rows = torch.arange(batch * length)
    if recipe.head_tokens:
        chosen = rng.permuted(np.tile(np.arange(length), (batch, 1)), axis=1)[:, : recipe.head_tokens]
        rows = (torch.from_numpy(chosen) + torch.arange(batch)[:, None] * length).flatten()
    x0, z_rows = (t.flatten(0, 1)[rows].repeat(recipe.head_repeats, 1) for t in (tokens_BND, z))
    # Levels are stratified over the rows of a step: the same uniform law, a less noisy loss.
    t = (
        torch.from_numpy((rng.permutation(len(x0)) + rng.random(len(x0))) * TRAIN_STEPS / len(x0))
        .long()
        .clamp(max=TRAIN_STEPS - 1)
    )
    noise = torch.from_numpy(rng.standard_normal((len(x0), dims), dtype=np.float32))
    signal, sigma = _SIGNAL[t, None], _SIGMA[t, None]
    velocity = model.head(signal * x0 + sigma * noise, t, z_rows).float()
    return (velocity - velocity_target(signal, sigma, x0, noise)).square().mean()


def handed_over(tokens_BND: Tensor, level: int, rng: np.random.Generator) -> Tensor:
    """The tokens at the hand-off level, with fresh noise."""
    noise = torch.from_numpy(rng.standard_normal(tuple(tokens_BND.shape), dtype=np.float32))
    return _SIGNAL[level] * tokens_BND + _SIGMA[level] * noise


_SIGNAL = torch.from_numpy(np.sqrt(diffusion(TRAIN_STEPS).alphas_cumprod)).float()
_SIGMA = torch.from_numpy(np.sqrt(1 - diffusion(TRAIN_STEPS).alphas_cumprod)).float()
