"""Recipes of a model of codes and of the two kinds of draft that follow it.

Run them as ``spd train fashion-vq --part target``, then ``--part draft`` and ``--part eagle``; output as for the other
recipes. The data are codes, made once by the tokenizer.

The small draft is fitted to the target's own distributions, not to the data: what counts is the share of codes on which
both agree, 1 - TV(p, q), which is the acceptance of the lossless rule. The EAGLE draft (arXiv:2401.15077, section 3.2)
is fitted to the target's features and, with a small weight, to its distributions.

Shape legend: B images of a batch, N codes of an image, V codes of the codebook, d model dims.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from spd_core.families.llamagen.model import EagleConfig, EagleDraft, LlamaGen, LlamaGenConfig
from spd_core.families.llamagen.vq_recipe import VqRecipe, codes_of
from spd_core.train.loop import RECIPE, Recipe, Runs
from spd_core.train.weights import fitted, read_weights


class CodeRecipe(Recipe):
    """A training run of a model of codes."""

    tokenizer_sha256: str = Field("", description="of the weights of the tokenizer that made the codes")

    #: Where every position sees those before it, plain matrix products compute twice what is needed.
    attention: ClassVar[SDPBackend] = SDPBackend.FLASH_ATTENTION
    label_drop: float = Field(0.1, ge=0, lt=1, description="share of images whose class is dropped (for guidance)")

    def prepared(self, images_nHWC: Tensor, runs: Runs) -> tuple[Self, Tensor]:
        tokenizer = VqRecipe.model_validate_json((runs.folder / "tokenizer" / RECIPE).read_bytes())
        sha256, codes = codes_of(tokenizer, runs.weights("tokenizer"), images_nHWC)
        return self.model_copy(update={"tokenizer_sha256": sha256}), codes

    def dropped(self, labels_B: Tensor, rng: np.random.Generator) -> Tensor:
        """The labels, some of them "no class"."""
        return torch.where(torch.from_numpy(rng.random(len(labels_B)) < self.label_drop), -1, labels_B)


class LlamaGenRecipe(CodeRecipe):
    """A training run of a target: the log loss of every code given the class and the codes before it."""

    model: LlamaGenConfig
    token_drop: float = Field(0.1, ge=0, lt=1, description="share of the codes that are read as another, random code")

    def build(self) -> LlamaGen:
        return LlamaGen(self.model)

    def loss(self, model: nn.Module, data_B: Tensor, given_B: Tensor, rng: np.random.Generator) -> Tensor:
        if not isinstance(model, LlamaGen):
            raise TypeError(f"recipe of a LlamaGen, got {type(model).__name__}")
        previous = data_B.roll(1, dims=1)
        wrong = torch.from_numpy(rng.integers(0, self.model.vocab_size, previous.shape))
        previous = torch.where(torch.from_numpy(rng.random(previous.shape) < self.token_drop), wrong, previous)
        logits = model.logits(model(previous, self.dropped(given_B, rng)))
        return F.cross_entropy(logits.flatten(0, 1), data_B.flatten())


class FollowerRecipe(CodeRecipe):
    """A training run of a draft given its target; `given` adds the target's weights, whose hash belongs to the run."""

    target: LlamaGenConfig
    target_sha256: str = Field("", description="of the target's weights")

    _target: LlamaGen | None = PrivateAttr(None)

    def given(self, target: Path) -> Self:
        """The recipe with the weights of its target.

        Raises:
            OSError: the file cannot be read.
            ValueError: it does not hold the weights of such a model.
        """
        sha256, weights = read_weights(target)
        recipe = self.model_copy(update={"target_sha256": sha256})
        recipe._target = fitted(LlamaGen(self.target), weights, target).eval().requires_grad_(False)
        return recipe

    def given_runs(self, runs: Runs) -> Self:
        return self.given(runs.target)

    @property
    def leader(self) -> LlamaGen:
        """The target.

        Raises:
            ValueError: `given` was not called.
        """
        if self._target is None:
            raise ValueError("recipe: got no weights of the target, allowed: a recipe made by given()")
        return self._target

    def loss(self, model: nn.Module, data_B: Tensor, given_B: Tensor, rng: np.random.Generator) -> Tensor:
        previous, labels = data_B.roll(1, dims=1), self.dropped(given_B, rng)
        with torch.no_grad():
            features = self.leader(previous, labels)
        return self.follow(model, previous, labels, features)

    @abstractmethod
    def follow(self, model: nn.Module, previous_BN: Tensor, labels_B: Tensor, features_BNd: Tensor) -> Tensor:
        """Training loss given the target's features."""


class DraftRecipe(FollowerRecipe):
    """A training run of a small draft: KL(p || q) + TV(p, q), from scratch."""

    model: LlamaGenConfig

    def build(self) -> LlamaGen:
        return LlamaGen(self.model)

    def follow(self, model: nn.Module, previous_BN: Tensor, labels_B: Tensor, features_BNd: Tensor) -> Tensor:
        if not isinstance(model, LlamaGen):
            raise TypeError(f"recipe of a LlamaGen, got {type(model).__name__}")
        logits = model.logits(model(previous_BN, labels_B))
        return divergence(self.leader.logits(features_BNd), logits, tv=1.0)


class EagleRecipe(FollowerRecipe):
    """A training run of an EAGLE draft: SmoothL1 on the features, plus a weight times KL(p || q) on the codes."""

    model: EagleConfig
    code_weight: float = Field(0.1, ge=0, description="weight of the distribution's part")
    feature_noise: float = Field(
        0.1,
        ge=0,
        description="half width of the uniform noise on the features read; drafting reads predicted ones",
    )

    def build(self) -> EagleDraft:
        return EagleDraft(self.model, self.target)

    def follow(self, model: nn.Module, previous_BN: Tensor, labels_B: Tensor, features_BNd: Tensor) -> Tensor:
        if not isinstance(model, EagleDraft):
            raise TypeError(f"recipe of an EagleDraft, got {type(model).__name__}")
        leader = self.leader
        noise = (torch.rand_like(features_BNd) - 0.5) * (2 * self.feature_noise)
        predicted = model(leader.tok_embeddings(previous_BN[:, 1:]), (features_BNd + noise)[:, :-1])
        truth = features_BNd[:, 1:]
        codes = divergence(leader.logits(truth), leader.logits(predicted), tv=0.0)
        return F.smooth_l1_loss(predicted.float(), truth.float()) + self.code_weight * codes


def divergence(target_logits: Tensor, draft_logits: Tensor, tv: float) -> Tensor:
    """Mean over positions of KL(p || q) + ``tv`` times TV(p, q); logits [..., V]."""
    log_p, log_q = F.log_softmax(target_logits.float(), -1), F.log_softmax(draft_logits.float(), -1)
    p = log_p.exp()
    kl = (p * (log_p - log_q)).sum(-1).mean()
    return kl + tv * 0.5 * (p - log_q.exp()).abs().sum(-1).mean() if tv else kl
