"""Recipe of a posterior variance: how far a head's prediction moves with each step's noise, learned from its own paths.

A frozen model is asked along plain paths of its law, ``y_{k-1} = mean + T s_k n``, with the data's own tokens around
the one that is made. From one step to the next its prediction moves, in part with the noise n:

    x0(y_{k-1}) - x0(y_k) ~ A diag(g_k) A^T n,    g_k = T (c_x0[k] / s_k) (1 - abar_k) v(z, t_k)

with the axes A and the variances v that are learned (`spd_core.models.variance`). What is left over shifts the mean of
step k - 1 by so many stds, D = |x0(y_{k-1}) - x0(y_k) - A diag(g_k) A^T n| c_x0[k-1] / (T s_{k-1}), and step k - 1 made
with the followed prediction is rejected with probability 1 - 2 Phi(-D / 2), a learned variance taken for the fixed one.
The loss is the mean of these probabilities: it weighs the steps by what they cost, and it is bounded. Steps after which
nothing is tested are left out.

Shape legend: n paths, B of a batch, N tokens of an image, D token dims, Z context dims, K steps that count, R rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field, PrivateAttr, SerializeAsAny, field_validator
from torch import Tensor, nn

from spd_core.decode.head_speculation import SINGULAR
from spd_core.decode.path import BoundHead, LawHead, Trace
from spd_core.diffusion import step_table
from spd_core.families.head_family import HeadFamily, head_of
from spd_core.families.registry import config_from, family_of_config, head_family
from spd_core.law import SamplerLaw
from spd_core.models.grid import ModelConfig
from spd_core.models.variance import PosteriorVariance
from spd_core.progress import told
from spd_core.train.loop import Recipe, Runs, train
from spd_core.train.weights import fitted, read_weights

#: Images whose contexts are computed at once.
IMAGES = 32
_CPU = torch.device("cpu")


class VarianceRecipe(Recipe):
    """The fit of a frozen model's posterior variance; a row of the data is a token's path with all its steps."""

    steps: int = Field(3000, gt=0, description="optimiser steps")
    batch: int = Field(64, gt=0, description="paths per step")
    lr: float = Field(1e-2, gt=0, description="peak learning rate, AdamW, linear warm-up then cosine decay to zero")
    warmup: int = Field(50, ge=0, description="warm-up steps")
    weight_decay: float = Field(0.0, ge=0)
    ema: float = Field(0.99, ge=0, lt=1, description="decay per step, shortened at the start")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    bf16: bool = Field(False, description="autocast to bfloat16")

    model: SerializeAsAny[ModelConfig] = Field(description="of the frozen model")
    law: SamplerLaw = Field(description="whose paths are walked")
    draft: bool = Field(False, description="the frozen model is a draft that stops at the hand-off")
    images: int = Field(1024, gt=0, description="images whose tokens are walked to, each in a context of its own")
    tokens: int = Field(16, gt=0, description="tokens an image")
    model_sha256: str = Field("", description="of the frozen model's weights")

    _model: nn.Module | None = PrivateAttr(None)

    @field_validator("model", mode="before")
    @classmethod
    def _sizes(cls, value: Any) -> Any:
        return value if isinstance(value, ModelConfig) else config_from(value)

    @property
    def family(self) -> HeadFamily:
        """Of the frozen model.

        Raises:
            ValueError: one without a diffusion head.
        """
        return head_family(family_of_config(self.model))

    def given(self, weights: Path) -> Self:
        """The recipe with the weights of the frozen model.

        Raises:
            OSError: the file cannot be read.
            ValueError: it does not hold the weights of such a model.
        """
        sha256, tensors = read_weights(weights)
        recipe = self.model_copy(update={"model_sha256": sha256})
        recipe._model = fitted(self.family.build(self.model), tensors, weights).eval().requires_grad_(False)
        return recipe

    def given_runs(self, runs: Runs) -> Self:
        if not self.draft:
            return self.given(runs.target)
        last = "distil" if (runs.folder / "distil").is_dir() else "draft"
        return self.given(runs.draft_file or runs.weights(last))

    @property
    def frozen(self) -> nn.Module:
        """The model whose predictions are followed.

        Raises:
            ValueError: if the recipe was not `given` it.
        """
        if self._model is None:
            raise ValueError("weights: got none, allowed: a recipe that was `given` them")
        return self._model

    def fit(self, tokens_nND: Tensor, labels_n: Tensor, out: Path, save_every: int = 500) -> Path:
        """Walks paths among the images, trains on them (`spd_core.train.loop.train`), returns the weights' path."""
        paths = walk_paths(self, tokens_nND, labels_n, np.random.default_rng([self.seed, 3]))
        steps = torch.stack([paths.moved, paths.noise], dim=2)
        first = paths.first[:, None, None].expand(-1, 1, 2, -1)
        return train(self, torch.cat([first, steps], dim=1), paths.z, out, save_every)

    def build(self) -> PosteriorVariance:
        return PosteriorVariance.of(head_of(self.frozen))

    def loss(self, model: nn.Module, data_B: Tensor, given_B: Tensor, rng: np.random.Generator) -> Tensor:
        if not isinstance(model, PosteriorVariance):
            raise TypeError(f"recipe of a PosteriorVariance, got {type(model).__name__}")
        moved, noise = data_B[:, 1:].unbind(dim=2)
        paths = Paths(given_B, data_B[:, 0, 0], moved, noise)
        return rejection(shifts(model, self, paths)).mean() + rejection(first_shifts(model, self, paths)).mean()


def load_variance(recipe: VarianceRecipe, path: Path) -> PosteriorVariance:
    """The posterior variance that a finished run left at ``path``, in eval mode.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold weights of such sizes.
    """
    return fitted(recipe.build(), read_weights(path)[1], path).eval().requires_grad_(False)


def counted_steps(recipe: VarianceRecipe) -> Tensor:
    """int64 [K]: the steps whose noise moves a prediction that is tested, downwards.

    The state after step k is left by step k - 1; step 0 is noiseless and always the model's own. Above `SINGULAR` no
    prediction is held.
    """
    law = recipe.law
    table = step_table(law.head_steps, law.start_level, _CPU)
    last = recipe.family.last_step(law) if recipe.draft else 1
    k = torch.arange(law.head_steps - 1, last, -1)
    with torch.device("meta"):
        head = head_of(recipe.family.build(recipe.model))
    return k[table.sqrt_recip[k] < SINGULAR] if LawHead(head, law).learned_variance else k


@dataclass(frozen=True)
class Paths:
    """What n paths of a head show."""

    z: Tensor  #: [n, Z] contexts, under guidance those with the class
    first: Tensor  #: [n, D] the first prediction that is held
    moved: Tensor  #: [n, K, D] of the prediction over each step that counts
    noise: Tensor  #: [n, K, D] of these steps


@dataclass(frozen=True)
class Images:
    """Tokens [n, N, D] of images, and their labels [n]."""

    tokens: Tensor
    labels: Tensor


@torch.no_grad()
def walk_paths(recipe: VarianceRecipe, tokens_nND: Tensor, labels_n: Tensor, rng: np.random.Generator) -> Paths:
    """Plain paths from pure noise, `tokens` for each of `images` random images, all randomness from ``rng``."""
    chosen = torch.from_numpy(rng.permutation(len(tokens_nND))[: recipe.images])
    at_law = LawHead(head_of(recipe.frozen), recipe.law)
    parts = [
        _walk(at_law, counted_steps(recipe), z, scale, rng)
        for z, scale in token_contexts(
            recipe.family, recipe.frozen, recipe.law, recipe.tokens, Images(tokens_nND[chosen], labels_n[chosen]), rng
        )
    ]
    return Paths(*(torch.cat(column) for column in zip(*parts, strict=True)))


def token_contexts(
    family: HeadFamily, model: nn.Module, law: SamplerLaw, count: int, images: Images, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """`HeadFamily.token_contexts`, some images at a time."""
    parts = list(zip(images.tokens.split(IMAGES), images.labels.split(IMAGES), strict=True))
    for tokens, labels in told(parts, "batches"):
        yield family.token_contexts(model, law, count, tokens, labels, rng)


def _walk(
    at_law: LawHead, counted_K: Tensor, z: Tensor, scale: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, rows = at_law.law.head_steps - 1, len(scale)
    trace = plain_paths(at_law.bind(z, scale), rows, first, int(counted_K[-1]) - 1, rng)
    at = first - counted_K
    return z[:rows], trace.x0[:, int(at[0])], trace.x0[:, at + 1] - trace.x0[:, at], trace.noise[:, at]


def plain_paths(head: BoundHead, rows: int, first: int, last: int, rng: np.random.Generator) -> Trace:
    """Paths of any head from pure noise through step ``last``, one call a step, all randomness from ``rng``."""
    row, dims, made = torch.arange(rows), head.at_law.head.in_channels, []

    def normals() -> Tensor:
        return torch.from_numpy(rng.standard_normal((rows, dims), dtype=np.float32))

    y = normals()
    for step in range(first, last - 1, -1):
        k = torch.full_like(row, step)
        prediction, noise = head.predict(row, k, y), normals()
        made.append((y, prediction.x0, noise))
        y = head.mean(k, prediction.x0, y) + head.std(k, prediction.v) * noise
    return Trace(*(torch.stack(column, dim=1) for column in zip(*made, strict=True)))


def shifts(model: PosteriorVariance | None, recipe: VarianceRecipe, paths: Paths) -> Tensor:
    """D [n, K] in stds of the next step; None: of predictions that are held and do not follow the noise."""
    at_law, k = LawHead(head_of(recipe.frozen), recipe.law), counted_steps(recipe)
    left = paths.moved
    if model is not None:
        levels = model.level_embeddings(torch.tensor(at_law.table.timesteps)[k])
        gains = at_law.gains(model, k, levels + model.condition(paths.z)[:, None])
        left = left - (paths.noise @ model.axes * gains) @ model.axes.T
    # A norm has no gradient at 0.
    return at_law.shift_per_x0[k - 1] * left.square().sum(dim=-1).add(1e-12).sqrt()


def first_shifts(model: PosteriorVariance, recipe: VarianceRecipe, paths: Paths) -> Tensor:
    """D [n, K] in stds of each step, were the error of the prior mean to stay: what the first window meets."""
    shift_per_x0 = LawHead(head_of(recipe.frozen), recipe.law).shift_per_x0[counted_steps(recipe)]
    error = (model.prior_mean(paths.z) - paths.first).square().sum(dim=-1, keepdim=True).add(1e-12).sqrt()
    return shift_per_x0 * error


def rejection(shift: Tensor) -> Tensor:
    """Chance that a step is rejected whose mean is ``shift`` stds off: the total variation of the two Gaussians."""
    return torch.erf(shift / math.sqrt(8))


@dataclass(frozen=True)
class Following:
    """What a posterior variance is worth over a band of steps, on paths that it was not trained on."""

    levels: tuple[int, int]  #: timesteps, first and last
    explained: float  #: share of the predictions' squared movement, in stds of the next step
    held: float  #: mean chance that the next step is rejected if the prediction is held
    followed: float  #: the same if it follows the noise


@torch.inference_mode()
def followings(model: PosteriorVariance, recipe: VarianceRecipe, paths: Paths, bands: int) -> list[Following]:
    """By equal bands of the steps, noisiest first."""
    level = torch.tensor(LawHead(head_of(recipe.frozen), recipe.law).table.timesteps)
    columns = (level[counted_steps(recipe)], shifts(None, recipe, paths).T, shifts(model, recipe, paths).T)
    return [
        Following(
            levels=(int(at[0]), int(at[-1])),
            explained=1.0 - float(followed.square().mean() / held.square().mean()),
            held=float(rejection(held).mean()),
            followed=float(rejection(followed).mean()),
        )
        for at, held, followed in zip(*(column.tensor_split(bands) for column in columns), strict=True)
    ]
