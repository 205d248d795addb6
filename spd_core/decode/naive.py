"""The public MAR sampler as a direct loop: plain decoding is measured against it, so as to be no straw man.

A translation of ``DiffLoss.sample`` and ``GaussianDiffusion.p_sample_loop`` of the public code (arXiv:2406.11838; the
diffusion part is that of arXiv:2102.09672): every step copies its entries of the schedule from numpy to the device one
by one, runs the whole head including its modulations, and works under guidance on both halves of the stacked rows.
Weights, law and random numbers are those of plain decoding, so the tokens are too, up to rounding. The loop around the
sampler is the family's, and calls the transformers as plain decoding calls them: only the sampler is naive.

Shape legend: B images, N tokens of an image, R rows (tokens being made), R' head rows (R, under guidance 2 R: with the
class, without), S head steps, D token dims, Z context dims.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spd_core.decode.log import Decoded, DraftRecords, Meter
from spd_core.diffusion import Float64, diffusion
from spd_core.draws import Draws
from spd_core.law import SamplerLaw
from spd_core.models.head import DiffusionHead
from spd_core.precision import arithmetic

if TYPE_CHECKING:
    from spd_core.pairs.pair import Pair


def _extract(schedule: Float64, k_R: Tensor, like: Tensor) -> Tensor:
    """Entries ``k_R`` of a schedule in the shape of ``like`` (the public ``_extract_into_tensor``)."""
    entries = torch.from_numpy(np.ascontiguousarray(schedule)).to(k_R.device)[k_R].float()
    return entries[:, None] + torch.zeros_like(like)


class NaiveSampler:
    """The public diffusion sampler for a head at a law; a learned variance is MAR's, a fixed one the causal family's.

    Args:
        head: predicts eps and the variance, or with a fixed variance the velocity.
        law: head steps, start level, guidance, temperature.
    """

    def __init__(self, head: DiffusionHead, law: SamplerLaw) -> None:
        self.head = head
        self.law = law
        self.process = diffusion(law.head_steps, law.start_level)

    def __call__(
        self, y_RD: Tensor, z: Tensor, scale: float | Tensor, noise_RKD: Tensor, first: int, last: int
    ) -> Tensor:
        """States [R, D] after step ``last`` of paths at ``y_RD`` before step ``first``.

        Args:
            y_RD: states.
            z: contexts [R', Z].
            scale: guidance weight, one number or one per row [R, 1].
            noise_RKD: standard normals; entry k - last belongs to step k.
            first, last: respaced steps, descending.
        """
        copies = len(z) // len(y_RD)
        y = torch.cat([y_RD] * copies)
        for step in range(first, last - 1, -1):
            k = torch.tensor([step] * len(y), device=y.device)
            noise = torch.cat([noise_RKD[:, step - last]] * copies)
            y = self._step(y, k, z, scale, noise)
        return y[: len(y_RD)]

    def _step(self, y: Tensor, k: Tensor, z: Tensor, scale: float | Tensor, noise: Tensor) -> Tensor:
        p, dims = self.process, y.shape[1]
        out = self._head(y, torch.tensor(p.timesteps, device=k.device)[k], z, scale)
        if out.shape[1] == 2 * dims:
            eps, v = out.split(dims, dim=1)
            small, large = _extract(p.posterior_log_variance_clipped, k, y), _extract(p.log_betas, k, y)
            share = (v + 1) / 2
            log_variance = share * large + (1 - share) * small
            x0 = _extract(p.sqrt_recip_alphas_cumprod, k, y) * y - _extract(p.sqrt_recipm1_alphas_cumprod, k, y) * eps
        else:
            log_variance = _extract(p.posterior_log_variance_clipped, k, y)
            signal, sigma = np.sqrt(p.alphas_cumprod), np.sqrt(1 - p.alphas_cumprod)
            x0 = _extract(signal, k, y) * y - _extract(sigma, k, y) * out
        mean = _extract(p.posterior_mean_coef1, k, y) * x0 + _extract(p.posterior_mean_coef2, k, y) * y
        noisy = (k != 0).float()[:, None]
        return mean + noisy * torch.exp(0.5 * log_variance) * noise * self.law.temperature

    def _head(self, y: Tensor, t: Tensor, z: Tensor, scale: float | Tensor) -> Tensor:
        """The head's output for all rows, under guidance with the guided prediction in both halves."""
        if self.law.cfg == 1.0:
            return self.head(y, t, z)
        dims = y.shape[1]
        out = self.head(torch.cat([y[: len(y) // 2]] * 2), t, z)
        cond, null = out[:, :dims].chunk(2)
        guided = null + scale * (cond - null)
        return torch.cat([torch.cat([guided, guided]), out[:, dims:]], dim=1)


@torch.inference_mode()
def decode_naive(pair: Pair, law: SamplerLaw, labels_B: Tensor, draws: Draws) -> Decoded:
    """Samples a batch of images from a pair's target at ``law`` by the direct loop; its time is what matters.

    Args:
        pair: whose target is sampled.
        law: what is sampled.
        labels_B: int64 class labels; below 0: no class.
        draws: the images' random numbers.

    Raises:
        TypeError: a pair whose tokens no head denoises.
    """
    with arithmetic(law.dtype):
        return pair.card.of.decode_naive(pair.target, law, labels_B, draws)


def decoded_naively(tokens: Tensor, rounds: int, meter: Meter) -> Decoded:
    """The result of a direct loop, which drafts nothing."""
    passes, none = torch.full((len(tokens),), rounds), DraftRecords.concatenate([])
    return Decoded(tokens, passes, none, dict(meter.counts), meter.seconds())
