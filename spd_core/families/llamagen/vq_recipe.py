"""Recipe of a VQ tokenizer: reconstruction, commitment, and an entropy term that keeps every code in use.

Run it as ``spd train fashion-vq --part tokenizer``; output as for the other recipes. Losses as in LlamaGen's tokenizer
(arXiv:2406.06525, section 2.1) without the adversarial and perceptual terms.

Shape legend: B images of a batch, C channels, H, W pixels, h, w cells, R = B * h * w vectors, V codes, E code dims.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.codec import PixelCodec
from spd_core.families.llamagen.vq import Vq, VqCodec, VqConfig
from spd_core.train.loop import Recipe, Runs
from spd_core.train.weights import fitted, read_weights


class VqRecipe(Recipe):
    """A training run of a tokenizer; its data are uint8 images [B, H, W, C] and nothing is given."""

    model: VqConfig
    padded: int = Field(32, gt=0, description="side after padding with black, pixels")
    absolute: float = Field(0.2, ge=0, description="weight of the absolute error beside the squared one")
    commitment: float = Field(0.25, ge=0, description="weight of the encoder's pull to its code")
    entropy: float = Field(0.02, ge=0, description="weight of (mean entropy of a vector's code - entropy of the mean)")
    sharpness: float = Field(0.05, gt=0, description="temperature of the soft assignment in the entropy term")

    def build(self) -> Vq:
        return Vq(self.model)

    def prepared(self, images_nHWC: Tensor, runs: Runs) -> tuple[Self, Tensor]:
        return self, images_nHWC

    def codec(self) -> VqCodec:
        return VqCodec(vq=self.model, size=PixelCodec().size, padded=self.padded)

    def loss(self, model: nn.Module, data_B: Tensor, given_B: Tensor, rng: np.random.Generator) -> Tensor:
        if not isinstance(model, Vq):
            raise TypeError(f"recipe of a Vq, got {type(model).__name__}")
        return loss_of(model, data_B, self)


def codes_of(recipe: VqRecipe, weights: Path, images_nHWC: Tensor) -> tuple[str, Tensor]:
    """sha256 of a trained tokenizer's weights, and its codes int64 [n, N] of uint8 images.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold the weights of such a tokenizer.
    """
    sha256, state = read_weights(weights)
    tokenizer = fitted(recipe.build(), state, weights).eval()
    codec = VqCodec(vq=recipe.model, size=images_nHWC.shape[1], padded=recipe.padded)
    return sha256, codec.encode(images_nHWC, tokenizer)


def loss_of(model: Vq, images_BHWC: Tensor, recipe: VqRecipe) -> Tensor:
    """Training loss of one batch; gradients pass the lookup straight through."""
    x = images_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    low = (recipe.padded - x.shape[-1]) // 2
    high = recipe.padded - x.shape[-1] - low
    x = F.pad(x, (low, high, low, high), value=-1.0).contiguous(memory_format=torch.channels_last)
    z = F.normalize(model.project(x).float(), dim=1).permute(0, 2, 3, 1)
    unit = z.flatten(0, 2)
    with torch.autocast("cpu", enabled=False):
        affinity = unit @ model.quantize.vectors.T
        code = model.quantize(affinity.argmax(dim=-1))
        pull = (unit.detach() - code).square().sum(-1).mean()
        commit = (unit - code.detach()).square().sum(-1).mean()
        shares = F.log_softmax(affinity / recipe.sharpness, dim=-1)
        own = -(shares.exp() * shares).sum(-1).mean()
        mean = shares.exp().mean(0)
        entropy = own + (mean * mean.clamp(min=1e-9).log()).sum()
    straight = (unit + (code - unit).detach()).view(z.shape).permute(0, 3, 1, 2)
    error = model.decode(straight).float() - x
    fit = error.square().mean() + recipe.absolute * error.abs().mean()
    return fit + pull + recipe.commitment * commit + recipe.entropy * entropy
