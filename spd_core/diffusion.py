"""Gaussian diffusion of one token: cosine schedule, respacing, learned-range variance, training loss.

Formulas: Nichol & Dhariwal 2021 (arXiv:2102.09672); conventions of the public MAR code (mar.md 1.6). Constants are kept
in float64 and enter float32 arithmetic as scalars.

A *path* runs over respaced steps k = S-1 ... 0. Step k maps state y_k to y_{k-1}; every step but k = 0 is a Gaussian
with a known mean and std once the head has been evaluated, and step 0 adds no noise.

Shape legend: R rows (tokens), D token dims.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TRAIN_STEPS = 1000
MAX_BETA = 0.999
#: Half-width of a discretisation bin in the variance term at t = 0 (8-bit images on [-1, 1]).
BIN_HALF_WIDTH = 1.0 / 255.0

Float64 = NDArray[np.float64]


def cosine_betas(steps: int = TRAIN_STEPS, offset: float = 0.008) -> Float64:
    """Betas [steps] of the cosine schedule, clipped at 0.999."""
    t = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return np.asarray(np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], MAX_BETA))


def respaced_timesteps(steps: int, start: int = TRAIN_STEPS - 1) -> list[int]:
    """The original timesteps kept when the 1000-step process is sampled with ``steps`` steps, ascending.

    Args:
        steps: how many.
        start: the last of them, where sampling starts. At 999 the mean is near-singular (an eps error is multiplied by
            316 standard deviations); a lower start costs a little signal and takes that away.

    Raises:
        ValueError: if ``steps`` is not in 2..start+1.
    """
    if not 2 <= steps <= start + 1:
        raise ValueError(f"head_steps: got {steps}, allowed: 2..{start + 1}")
    # The public code adds the stride up; stride * k would round to a neighbour wherever the sum misses a half.
    stride = start / (steps - 1)
    return [round(at) for at in itertools.accumulate([0.0] + [stride] * (steps - 1))]


@dataclass(frozen=True)
class StepCoefficients:
    """Scalars of one respaced step.

    ``mean = x_scale * x - eps_scale * eps``; ``log std = v_scale * v + log_std_mid`` (learned-range variance);
    ``x0 = sqrt_recip * x - sqrt_recipm1 * eps``; ``mean = c_x0 * x0 + c_x * x``.
    """

    k: int
    timestep: int
    x_scale: float
    eps_scale: float
    v_scale: float
    log_std_mid: float
    sqrt_recip: float
    sqrt_recipm1: float
    c_x0: float
    c_x: float

    @property
    def noiseless(self) -> bool:
        return self.k == 0


class Diffusion:
    """A respaced diffusion process with ``steps`` steps from timestep ``start`` down; immutable."""

    def __init__(self, steps: int = 100, start: int = TRAIN_STEPS - 1) -> None:
        self.timesteps = respaced_timesteps(steps, start)
        abar_full = np.cumprod(1 - cosine_betas())
        abar = abar_full[self.timesteps]
        self.alphas_cumprod = abar
        self.alphas_cumprod_prev = np.append(1.0, abar[:-1])
        self.betas = 1 - abar / self.alphas_cumprod_prev
        self.sqrt_recip_alphas_cumprod = np.sqrt(1 / abar)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1 / abar - 1)
        self.posterior_variance = self.betas * (1 - self.alphas_cumprod_prev) / (1 - abar)
        clipped = np.append(self.posterior_variance[1], self.posterior_variance[1:])
        self.posterior_log_variance_clipped = np.log(clipped)
        self.log_betas = np.log(self.betas)
        self.posterior_mean_coef1 = self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - abar)
        self.posterior_mean_coef2 = (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - abar)

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @cached_property
    def path(self) -> tuple[StepCoefficients, ...]:
        """Coefficients in execution order: k = S-1 first, k = 0 last."""
        return tuple(self._coefficients(k) for k in reversed(range(self.steps)))

    def _coefficients(self, k: int) -> StepCoefficients:
        c_x0, c_x = float(self.posterior_mean_coef1[k]), float(self.posterior_mean_coef2[k])
        recip, recipm1 = float(self.sqrt_recip_alphas_cumprod[k]), float(self.sqrt_recipm1_alphas_cumprod[k])
        large, small = float(self.log_betas[k]), float(self.posterior_log_variance_clipped[k])
        return StepCoefficients(
            k=k,
            timestep=self.timesteps[k],
            x_scale=c_x0 * recip + c_x,
            eps_scale=c_x0 * recipm1,
            v_scale=(large - small) / 4,
            log_std_mid=(large + small) / 4,
            sqrt_recip=recip,
            sqrt_recipm1=recipm1,
            c_x0=c_x0,
            c_x=c_x,
        )


@lru_cache(maxsize=256)
def diffusion(steps: int, start: int = TRAIN_STEPS - 1) -> Diffusion:
    """The process with ``steps`` steps from ``start`` (cached: it is a constant)."""
    return Diffusion(steps, start)


class StepTable:
    """The constants of a process as float32 tensors indexed by the respaced step k, for rows at different steps.

    Holding a prediction x0 makes a run of steps linear: with drift_b = c_x0[b] x0 + noise_b and step a below step k,
    ``y_{a-1} = carry[a, k] c_x[k] y_k + sum over b in a..k of carry[a, b] drift_b``.
    """

    def __init__(self, process: Diffusion, device: torch.device) -> None:
        def column(values: Float64) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).float().to(device)

        large, small = process.log_betas, process.posterior_log_variance_clipped
        self.timesteps = process.timesteps
        self.path = process.path
        self.c_x0 = column(process.posterior_mean_coef1)
        self.c_x = column(process.posterior_mean_coef2)
        self.sqrt_recip = column(process.sqrt_recip_alphas_cumprod)
        self.sqrt_recipm1 = column(process.sqrt_recipm1_alphas_cumprod)
        self.signal = column(np.sqrt(process.alphas_cumprod))
        self.noise = column(np.sqrt(1 - process.alphas_cumprod))
        self.v_scale = column((large - small) / 4)
        self.log_std_mid = column((large + small) / 4)
        #: std of the posterior q(y_{k-1} | y_k, x0): the fixed variance
        self.fixed_std = column(np.exp(small / 2))
        #: 1 where a step adds noise, 0 at the last one
        self.noisy = column((np.arange(process.steps) > 0).astype(np.float64))
        self.carry = column(carry_of(process.posterior_mean_coef2))


def carry_of(c_x: Float64) -> Float64:
    """[S, S]: entry (a, b) is the product of c_x over steps a..b-1; 0 where b < a."""
    steps = len(c_x)
    carry = np.zeros((steps, steps))
    for a in range(steps):
        carry[a, a:] = np.cumprod(np.append(1.0, c_x[a:-1]))
    return carry


@lru_cache(maxsize=256)
def step_table(steps: int, start: int, device: torch.device) -> StepTable:
    """The tables of `diffusion(steps, start)` on a device (cached: they are constants)."""
    return StepTable(diffusion(steps, start), device)


def handoff_step(steps: int, start: int, level: int) -> int:
    """The respaced step k whose timestep is nearest to ``level``: a token is handed over as the state y_k."""
    timesteps = respaced_timesteps(steps, start)
    return min(range(steps - 1), key=lambda k: abs(timesteps[k] - level))


def velocity_target(signal: Tensor, sigma: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """What a velocity head learns, sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans & Ho 2022, arXiv:2202.00512)."""
    return signal * noise - sigma * x0


def step_mean(step: StepCoefficients, x_RD: Tensor, eps_RD: Tensor) -> Tensor:
    """Mean [R, D] of the transition out of step k; x0 is not clipped."""
    return torch.sub(x_RD * step.x_scale, eps_RD, alpha=step.eps_scale)


def step_log_std(step: StepCoefficients, v_RD: Tensor) -> Tensor:
    """log std [R, D] of the transition out of step k before temperature; (v+1)/2 is not clamped."""
    return v_RD * step.v_scale + step.log_std_mid


def guide(head_out: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """Classifier-free guidance of a stacked head output.

    Args:
        head_out: [2R, 2D], conditional rows first, null rows second.
        scale: guidance weight w, one number or one per row [R, 1].

    Returns:
        guided eps [R, D] = eps_null + w (eps_cond - eps_null), and the unguided v [R, D] of the conditional rows.
    """
    cond, null = head_out.chunk(2, dim=0)
    eps_cond, v = cond.chunk(2, dim=-1)
    eps_null = null.chunk(2, dim=-1)[0]
    return torch.lerp(eps_null, eps_cond, scale), v


def _approx_normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3))))


def _discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    inv_std = torch.exp(-log_std)
    cdf_plus = _approx_normal_cdf(inv_std * (x - mean + BIN_HALF_WIDTH))
    cdf_minus = _approx_normal_cdf(inv_std * (x - mean - BIN_HALF_WIDTH))
    log_plus = torch.log(cdf_plus.clamp(min=1e-12))
    log_one_minus = torch.log((1.0 - cdf_minus).clamp(min=1e-12))
    log_middle = torch.log((cdf_plus - cdf_minus).clamp(min=1e-12))
    return torch.where(x < -0.999, log_plus, torch.where(x > 0.999, log_one_minus, log_middle))


@dataclass(frozen=True)
class TrainingTerms:
    """Per-row loss terms [R]: ``mse`` of eps, and ``vb``, the variational term in bits per dim (trains only v)."""

    mse: Tensor
    vb: Tensor


class TrainingLoss:
    """Hybrid loss of learned-variance diffusion: MSE of eps plus the variational bound on a detached eps."""

    def __init__(self) -> None:
        process = diffusion(TRAIN_STEPS)
        columns = (
            np.sqrt(process.alphas_cumprod),
            np.sqrt(1 - process.alphas_cumprod),
            process.sqrt_recip_alphas_cumprod,
            process.sqrt_recipm1_alphas_cumprod,
            process.posterior_mean_coef1,
            process.posterior_mean_coef2,
            process.posterior_log_variance_clipped,
            process.log_betas,
        )
        self._table = torch.from_numpy(np.stack(columns, axis=1)).float()

    def noised(self, x0_RD: Tensor, t_R: Tensor, noise_RD: Tensor) -> Tensor:
        """y_t [R, D] = sqrt(abar) x0 + sqrt(1 - abar) noise."""
        table = self._table[t_R]
        return table[:, 0:1] * x0_RD + table[:, 1:2] * noise_RD

    def __call__(
        self, x0_RD: Tensor, x_t_RD: Tensor, t_R: Tensor, noise_RD: Tensor, head_out_R2D: Tensor
    ) -> TrainingTerms:
        eps, v = head_out_R2D.chunk(2, dim=-1)
        mse = (noise_RD - eps).square().mean(dim=1)
        _, _, recip, recipm1, c_x0, c_x, small, large = self._table[t_R].unsqueeze(-1).unbind(dim=1)
        posterior_mean = c_x0 * x0_RD + c_x * x_t_RD
        x0_pred = recip * x_t_RD - recipm1 * eps.detach()
        mean = c_x0 * x0_pred + c_x * x_t_RD
        fraction = (v + 1) / 2
        log_var = fraction * large + (1 - fraction) * small
        kl = 0.5 * (
            -1.0 + log_var - small + torch.exp(small - log_var) + (posterior_mean - mean).square() * torch.exp(-log_var)
        )
        nll = -_discretised_log_likelihood(x0_RD, mean, 0.5 * log_var)
        vb = torch.where((t_R == 0)[:, None], nll, kl).mean(dim=1) / math.log(2.0)
        return TrainingTerms(mse, vb)
