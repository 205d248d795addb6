"""Contexts of a SphereAR head among real images, for training what follows its predictions and tuning windows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spd_core.families.sphere.model import Sphere
from spd_core.families.sphere.tokens import SpherePath, null_first
from spd_core.law import SamplerLaw


def token_contexts(
    model: Sphere, law: SamplerLaw, count: int, tokens: Tensor, labels: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Contexts and guidance weights of random tokens; arguments as of `HeadFamily.token_contexts`.

    In the place of a null branch's own first token stands that of another image. The tokens carry the noise that the
    autoencoder gives them, which is more than a hand-off's.
    """
    batch, length, _ = tokens.shape
    previous = tokens.roll(1, dims=1)
    z = [model(previous, labels)]
    if law.cfg != 1.0:
        if null_first(law):
            previous = previous.clone()
            previous[:, 1] = tokens[:, 0].roll(1, dims=0)
        z.append(model(previous, torch.full_like(labels, -1)))
    token = torch.from_numpy(rng.permuted(np.tile(np.arange(length), (batch, 1)), axis=1)[:, :count])
    image = torch.arange(batch)[:, None]
    scale = SpherePath(law, length).scale(token.flatten())
    return torch.cat([of[image, token].flatten(0, 1) for of in z]), scale
