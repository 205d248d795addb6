"""Recipe of a distillation: a draft is fitted to its target's predictions, so that more of its paths are accepted.

The acceptance of a drafted token depends on the path KL, the expected log ratio of its path under the two models:

    KL = E sum_k w_k |x0_p(y_k) - x0_q(y_a)|^2 / 2 over the steps k above the hand-off,    w_k = (c_x0[k] / s_k)^2,

with p the target, q the draft and y_a the *anchor*, the last state at which the draft called its head: it holds its
prediction for ``stride`` steps. w_k is what step k adds to the signal-to-noise ratio. As far as the target's
predictions are posterior means, they are a martingale down the path, E[x0_p(y_k) | y_a] = x0_p(y_a), and

    KL = const + E sum_a W_a |x0_p(y_a) - x0_q(y_a)|^2 / 2,    W_a = sum of w_k over the steps of anchor a.

So both models are asked at the same anchors, states of data tokens with the data's own tokens before them at the
hand-off level. Anchors are drawn in proportion to W_a; the loss is then a plain mean, in nats. The constant is the cost
of holding predictions, and is left out. Independent training has the same minimum if the target is perfect. Here the
draft learns from predictions instead of single noisy tokens, and learns the target's errors too.

Shape legend: B images of a batch, N tokens, D token dims, A anchors, R rows (token, anchor).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from spd_core.diffusion import handoff_step, step_table
from spd_core.families.causal.model import Causal, CausalConfig
from spd_core.families.causal.recipe import handed_over
from spd_core.law import SamplerLaw
from spd_core.train.loop import Runs, TokenRecipe
from spd_core.train.weights import fitted, read_weights

_CPU = torch.device("cpu")


class DistilRecipe(TokenRecipe):
    """A distillation of a causal draft; `given` adds both models' weights, whose hashes belong to the run.

    Guidance is not applied: with the class and without it, the draft is fitted to the target's prediction.
    """

    model: CausalConfig = Field(description="of the draft")
    target: CausalConfig
    law: SamplerLaw = Field(description="whose steps above the hand-off make the path")
    stride: int = Field(
        15,
        ge=1,
        description="steps for which the draft will hold each prediction; it is fitted where it is then asked, "
        "1: at every step",
    )
    target_sha256: str = Field("", description="of the target's weights")
    initial_sha256: str = Field("", description="of the weights the draft starts from")

    _target: Causal | None = PrivateAttr(None)
    _draft: Causal | None = PrivateAttr(None)

    def given(self, target: Path, initial: Path) -> Self:
        """The recipe with the weights of its target and those its draft starts from.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file does not hold the weights of such a model.
        """
        target_sha256, weights = read_weights(target)
        initial_sha256, start = read_weights(initial)
        recipe = self.model_copy(update={"target_sha256": target_sha256, "initial_sha256": initial_sha256})
        recipe._target = fitted(Causal(self.target), weights, target).eval().requires_grad_(False)
        recipe._draft = fitted(Causal(self.model), start, initial)
        return recipe

    def given_runs(self, runs: Runs) -> Self:
        return self.given(runs.target, runs.draft_file or runs.weights("draft"))

    def build(self) -> Causal:
        return copy.deepcopy(self._given(self._draft))

    def loss(self, model: nn.Module, tokens_BND: Tensor, labels_B: Tensor, rng: np.random.Generator) -> Tensor:
        if not isinstance(model, Causal):
            raise TypeError(f"recipe of a Causal, got {type(model).__name__}")
        return loss_of(model, self._given(self._target), tokens_BND, labels_B, self, rng)

    def _given(self, model: Causal | None) -> Causal:
        if model is None:
            raise ValueError("weights: got none, allowed: a recipe that was `given` them")
        return model


def anchors(law: SamplerLaw, stride: int) -> tuple[Tensor, Tensor]:
    """The steps at which a draft calls its head: their k, int64 [A], and W [A], the sum of w_k until the next call."""
    table = step_table(law.head_steps, law.start_level, _CPU)
    last = handoff_step(law.head_steps, law.start_level, law.handoff_level) + 1
    k = torch.arange(law.head_steps - 1, last - 1, -1)
    weight = (table.c_x0[k] / (table.fixed_std[k] * law.temperature)).square()
    return k[::stride], torch.stack([held.sum() for held in weight.split(stride)])


def loss_of(
    draft: Causal, target: Causal, tokens_BND: Tensor, labels_B: Tensor, recipe: DistilRecipe, rng: np.random.Generator
) -> Tensor:
    """The path KL in nats a token, without what holding a prediction costs; all randomness from ``rng``."""
    law, (batch, _, dims) = recipe.law, tokens_BND.shape
    table = step_table(law.head_steps, law.start_level, _CPU)
    k_A, weight_A = anchors(law, recipe.stride)
    dropped = torch.from_numpy(rng.random(batch) < recipe.label_drop)
    labels = torch.where(dropped, -1, labels_B)
    handoff = handoff_step(law.head_steps, law.start_level, law.handoff_level)
    previous = handed_over(tokens_BND, table.timesteps[handoff], rng).roll(1, dims=1)
    x0 = tokens_BND.flatten(0, 1).repeat(recipe.head_repeats, 1)
    # Stratified over the rows of a step: the same anchors' shares, a less noisy loss.
    share = torch.from_numpy((rng.permutation(len(x0)) + rng.random(len(x0))) / len(x0))
    upto_A = weight_A.double().cumsum(0) / weight_A.double().sum()
    k = k_A[torch.searchsorted(upto_A, share).clamp(max=len(k_A) - 1)]
    noise = torch.from_numpy(rng.standard_normal((len(x0), dims), dtype=np.float32))
    timestep, signal, sigma = torch.tensor(table.timesteps)[k], table.signal[k, None], table.noise[k, None]
    y = signal * x0 + sigma * noise

    def velocity(model: Causal) -> Tensor:
        z = model(previous, labels).flatten(0, 1).repeat(recipe.head_repeats, 1)
        return model.head(y, timestep, z).float()

    with torch.inference_mode():
        wanted = velocity(target)
    # x0 = signal y - sigma velocity, and y is the same.
    gap = sigma * (velocity(draft) - wanted)
    return 0.5 * weight_A.sum() * gap.square().sum(dim=-1).mean()
