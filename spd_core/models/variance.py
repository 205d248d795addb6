"""How uncertain a head's prediction is: the posterior covariance of a clean token, given its context and noise level.

A diffusion head predicts x0 = E[token | y]. Each step's noise n is news about the token, and the prediction follows it:
to first order (Tweedie's formula, Efron 2011) it moves by ``C (c_x0 / s) n`` with C the covariance of the token given
the state. Whoever holds a prediction over several steps can therefore let it follow the noise that was drawn, without
calling the head: the update of a Kalman filter. C = A diag(variances) A^T with axes A that are the same for all tokens
and levels, and variances that depend on the context and the level alone, so that all steps of a token are known at
once. There are more axes than dims: single dims keep their own noise at the end of a path, mixtures matter before.
What a path's very first prediction will be, the token's mean given the context, is learned beside it.

Shape legend: R rows, S levels, D token dims, M axes, Z context dims, W hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.models.head import FREQUENCY_DIMS, Head, TimestepEmbedder
from spd_core.models.linear import Float32Linear


class PosteriorVariance(nn.Module):
    """Variances of the clean token along learned axes, in units of the level's noise variance.

    Args:
        dims: token dims D.
        context: context dims Z.
        width: hidden width W.
    """

    def __init__(self, dims: int, context: int, width: int = 64) -> None:
        super().__init__()
        #: [D, M], M = 2 D
        self.axes = nn.Parameter(torch.cat([torch.eye(dims), nn.init.orthogonal_(torch.empty(dims, dims))], dim=1))
        self.context = Float32Linear(context, width)
        self.time = Float32Linear(FREQUENCY_DIMS, width, bias=False)
        self.hidden = Float32Linear(width, width)
        self.out = Float32Linear(width, 2 * dims)
        self.prior = nn.Sequential(Float32Linear(context, width), nn.SiLU(), Float32Linear(width, dims))
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, -2.7)

    @classmethod
    def of(cls, head: Head) -> Self:
        """One of the head's sizes, not trained."""
        return cls(head.in_channels, head.context_dims)

    def level_embeddings(self, timesteps: Sequence[int] | Tensor) -> Tensor:
        """[S, W] of original timesteps, to be added to `condition` rows."""
        return self.time(TimestepEmbedder.frequencies(torch.as_tensor(timesteps, device=self.axes.device)))

    def condition(self, z_RZ: Tensor) -> Tensor:
        """[R, W] of contexts."""
        return self.context(z_RZ)

    def prior_mean(self, z_RZ: Tensor) -> Tensor:
        """[R, D]: the head's prediction at pure noise, about."""
        return self.prior(z_RZ)

    def relative(self, embedding: Tensor) -> Tensor:
        """Variances [..., M] over the noise variance 1 - abar, of (level embedding + condition) rows [..., W]."""
        return F.softplus(self.out(F.silu(self.hidden(F.silu(embedding)))))
