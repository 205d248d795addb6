"""Contexts of a causal model's head among real images, for training what follows its predictions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spd_core.diffusion import step_table
from spd_core.families.causal.model import Causal
from spd_core.families.causal.recipe import handed_over
from spd_core.families.causal.tokens import PathLaw
from spd_core.law import SamplerLaw

_CPU = torch.device("cpu")


def token_contexts(
    model: Causal, law: SamplerLaw, count: int, tokens: Tensor, labels: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Contexts and guidance weights of random tokens; arguments as of `HeadFamily.token_contexts`."""
    batch, length, _ = tokens.shape
    path = PathLaw(law, length)
    table = step_table(law.head_steps, law.start_level, _CPU)
    previous = handed_over(tokens, table.timesteps[path.handoff], rng).roll(1, dims=1)
    z = [model(previous, labels)] + [model(previous, torch.full_like(labels, -1))] * (law.cfg != 1.0)
    token = torch.from_numpy(rng.permuted(np.tile(np.arange(length), (batch, 1)), axis=1)[:, :count])
    image = torch.arange(batch)[:, None]
    return torch.cat([of[image, token].flatten(0, 1) for of in z]), path.scale(token.flatten())
