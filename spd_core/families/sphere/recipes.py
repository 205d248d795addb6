"""Recipes of the family: a hyperspherical autoencoder, and a model of its tokens.

The data of a model are posteriors, made once by the autoencoder: a row holds a unit vector and its concentration. Every
step draws the tokens from them anew, so the transformer learns to read tokens with the noise that the public model was
trained with.

Shape legend: B images of a batch, C channels, H, W pixels, N tokens, D token dims, R trained rows (token, time).
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
from spd_core.families.sphere.codec import SphereCodec
from spd_core.families.sphere.model import Sphere, SphereConfig
from spd_core.families.sphere.vae import PowerSpherical, SphereVae, SphereVaeConfig
from spd_core.train.loop import RECIPE, Recipe, Runs, TokenRecipe
from spd_core.train.weights import fitted, read_weights


class SphereVaeRecipe(Recipe):
    """A training run of an autoencoder: squared and absolute error, and the KL to the uniform law on the sphere."""

    model: SphereVaeConfig
    absolute: float = Field(0.2, ge=0, description="weight of the absolute error beside the squared one")
    kl: float = Field(1e-4, ge=0, description="weight of a token's KL to the uniform law, nats")

    def build(self) -> SphereVae:
        return SphereVae(self.model)

    def prepared(self, images_nHWC: Tensor, runs: Runs) -> tuple[Self, Tensor]:
        return self, images_nHWC

    def codec(self) -> SphereCodec:
        return SphereCodec(vae=self.model, size=PixelCodec().size)

    def loss(self, model: nn.Module, data_B: Tensor, given_B: Tensor, rng: np.random.Generator) -> Tensor:
        if not isinstance(model, SphereVae):
            raise TypeError(f"recipe of a SphereVae, got {type(model).__name__}")
        x = padded(data_B, self.model.image_size)
        law = model.posterior(x)
        law = PowerSpherical(law.mean.float(), law.kappa.float())
        tokens = law.sample(torch.Generator().manual_seed(int(rng.integers(2**31))))
        error = model.decode(tokens * self.model.latent_dim**0.5).float() - x
        return error.square().mean() + self.absolute * error.abs().mean() + self.kl * law.kl_to_uniform().mean()


def padded(images_BHWC: Tensor, side: int) -> Tensor:
    """Images [B, C, side, side] in [-1, 1] of bytes, with black around."""
    x = images_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    low = (side - x.shape[-1]) // 2
    high = side - x.shape[-1] - low
    return F.pad(x, (low, high, low, high), value=-1.0)


@torch.inference_mode()
def posteriors(recipe: SphereVaeRecipe, weights: Path, images_nHWC: Tensor, batch: int = 250) -> tuple[str, Tensor]:
    """sha256 of a trained autoencoder's weights, and the posteriors float32 [n, N, D + 1] of uint8 images.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold the weights of such an autoencoder.
    """
    sha256, state = read_weights(weights)
    vae = fitted(recipe.build(), state, weights).eval()
    made = []
    for part in images_nHWC.split(batch):
        law = vae.posterior(padded(part, recipe.model.image_size))
        made.append(torch.cat([law.mean, law.kappa[..., None]], dim=-1))
    return sha256, torch.cat(made).clone()


class SphereRecipe(TokenRecipe):
    """A training run of a model: the flow-matching loss of every token given the class and the tokens before it."""

    model: SphereConfig
    tokenizer_sha256: str = Field("", description="of the weights of the autoencoder that made the posteriors")

    def build(self) -> Sphere:
        return Sphere(self.model)

    def prepared(self, images_nHWC: Tensor, runs: Runs) -> tuple[Self, Tensor]:
        tokenizer = SphereVaeRecipe.model_validate_json((runs.folder / "tokenizer" / RECIPE).read_bytes())
        sha256, rows = posteriors(tokenizer, runs.weights("tokenizer"), images_nHWC)
        return self.model_copy(update={"tokenizer_sha256": sha256}), rows

    def loss(self, model: nn.Module, data_B: Tensor, given_B: Tensor, rng: np.random.Generator) -> Tensor:
        if not isinstance(model, Sphere):
            raise TypeError(f"recipe of a Sphere, got {type(model).__name__}")
        law = PowerSpherical(data_B[..., :-1], data_B[..., -1])
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        tokens = law.sample(generator) * self.model.latent_dim**0.5
        dropped = torch.from_numpy(rng.random(len(given_B)) < self.label_drop)
        z = model(tokens.roll(1, dims=1), torch.where(dropped, -1, given_B))
        x1, z_rows = (t.flatten(0, 1).repeat(self.head_repeats, 1) for t in (tokens, z))
        # Times are stratified over the rows of a step: the same uniform law, a less noisy loss.
        t = torch.from_numpy((rng.permutation(len(x1)) + rng.random(len(x1))) / len(x1)).float()
        x0 = torch.from_numpy(rng.standard_normal(tuple(x1.shape), dtype=np.float32))
        velocity = model.head(torch.lerp(x0, x1, t[:, None]), t, z_rows).float()
        return (velocity - (x1 - x0)).square().mean()
