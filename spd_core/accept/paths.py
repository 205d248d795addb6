"""Densities of denoising paths: log ratios of two laws of a path, and couplings of single Gaussian steps.

Shape legend: R tested draft tokens, K steps of a path, D token dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Rounding error of a path's log ratio in float32. It is four times the largest that was seen where the draft is the
#: target itself and every ratio should be 1.
ROUNDING = 2.0**-14


@dataclass(frozen=True)
class Gaussian:
    """Diagonal Gaussians, one per row."""

    mean: Tensor  #: [R, D]
    std: Tensor  #: [R, D]

    def log_density(self, x: Tensor) -> Tensor:
        """[...] of x [..., D], the constant -D/2 log 2 pi left out."""
        return -(0.5 * ((x - self.mean) / self.std).square() + self.std.log()).sum(dim=-1)

    def at(self, rows: Tensor) -> Gaussian:
        return Gaussian(self.mean[rows], self.std[rows])


def path_log_ratio(noise_RKD: Tensor, shift_RKD: Tensor) -> Tensor:
    """log [R] of another law's density of paths over the density of the law that made them, their own law.

    Both laws have the same stds and the same start, so each step with noise n adds (|n|^2 - |n + shift|^2) / 2.

    Args:
        noise_RKD: n = (state after - own mean) / std of each step.
        shift_RKD: (own mean - other mean) / std.
    """
    return -(shift_RKD * (noise_RKD + 0.5 * shift_RKD)).sum(dim=(-2, -1))


def change_noise(noise: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """A sample y of one Gaussian, its own law, as a sample of another.

    Args:
        noise: (y - own mean) / own std.
        shift: (own mean - other mean) / own std.
        log_scale: log of own std / other std.

    Returns:
        (y - other mean) / other std [..., D], and log [...] of the other density of y over its own.
    """
    result = log_scale.exp() * (noise + shift)
    return result, (0.5 * (noise.square() - result.square()) + log_scale).sum(dim=-1)


def reflect(noise_RD: Tensor, shift_RD: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """Reflection-maximal coupling of N(m_q, s) and N(m_p, s), exact for equal stds only.

    Args:
        noise_RD: (y - m_q) / s of the draft y.
        shift_RD: (m_q - m_p) / s.
        uniform_R: of the test.

    Returns:
        accepted bool [R], and the noise [R, D] such that m_p + s * noise is the result: of the draft itself where it is
        accepted, else of the draft's mirror image.
    """
    log_ratio = -(shift_RD * (noise_RD + 0.5 * shift_RD)).sum(dim=-1)
    accepted = uniform_R.log() <= log_ratio
    square = shift_RD.square().sum(dim=-1, keepdim=True)
    along = (shift_RD * noise_RD).sum(dim=-1, keepdim=True) / square.clamp(min=torch.finfo(square.dtype).tiny)
    return accepted, torch.where(accepted[..., None], noise_RD + shift_RD, noise_RD - 2 * along * shift_RD)
