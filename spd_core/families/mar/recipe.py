"""Recipe of a MAR model: masked-token training with the diffusion loss, EMA, label dropout, resumable.

Run it as ``spd train fashion-mar --part target``; the loss curve, a checkpoint and, at the end, float16 EMA weights
land in the output folder.

Shape legend: B images of a batch, N tokens, D token dims, V visible tokens, M masked tokens.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from pydantic import Field
from scipy.stats import truncnorm
from torch import Tensor, nn

from spd_core.diffusion import TRAIN_STEPS, TrainingLoss
from spd_core.families.mar.model import Mar, MarConfig
from spd_core.train.loop import TokenRecipe, train

__all__ = ["MarRecipe", "train"]


class MarRecipe(TokenRecipe):
    """A training run of a MAR model."""

    model: MarConfig
    mask_min: float = Field(0.7, gt=0, le=1, description="lowest mask ratio; the ratio is normal(1, 0.25) truncated")
    head_tokens: int = Field(0, ge=0, description="masked tokens per image that train the head each step; 0: all")

    def build(self) -> Mar:
        return Mar(self.model)

    def loss(self, model: nn.Module, tokens_BND: Tensor, labels_B: Tensor, rng: np.random.Generator) -> Tensor:
        if not isinstance(model, Mar):
            raise TypeError(f"recipe of a Mar, got {type(model).__name__}")
        return loss_of(model, tokens_BND, labels_B, self, rng)


def mask_split(recipe: MarRecipe, tokens: int, batch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Visible [B, V] (ascending) and masked [B, M] raster indices; one mask ratio for the whole batch."""
    low = (recipe.mask_min - 1.0) / 0.25
    ratio = truncnorm.rvs(low, 0, loc=1.0, scale=0.25, random_state=rng)
    masked = math.ceil(tokens * ratio)
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(tokens), (batch, 1)), axis=1))
    return order[:, masked:].sort(dim=1).values, order[:, :masked]


def loss_of(model: Mar, tokens_BND: Tensor, labels_B: Tensor, recipe: MarRecipe, rng: np.random.Generator) -> Tensor:
    """Training loss of one batch, all randomness from ``rng``."""
    batch, length, dims = tokens_BND.shape
    visible, masked = mask_split(recipe, length, batch, rng)
    dropped = torch.from_numpy(rng.random(batch) < recipe.label_drop)
    z = model(tokens_BND, visible, torch.where(dropped, -1, labels_B))
    if recipe.head_tokens:
        masked = masked[:, : recipe.head_tokens]
    rows = [t.gather(1, masked[..., None].expand(-1, -1, t.shape[-1])).flatten(0, 1) for t in (tokens_BND, z)]
    x0, z_rows = (r.repeat(recipe.head_repeats, 1) for r in rows)
    t = torch.from_numpy(rng.integers(0, TRAIN_STEPS, len(x0)))
    noise = torch.from_numpy(rng.standard_normal((len(x0), dims), dtype=np.float32))
    terms = _LOSS(x0, x_t := _LOSS.noised(x0, t, noise), t, noise, model.head(x_t, t, z_rows).float())
    return (terms.mse + terms.vb).mean()


_LOSS = TrainingLoss()
