"""The flow sampler as a path of Gaussian steps whose standard deviations are fixed numbers.

Time runs from 0 (noise) to 1 (data). S stochastic Euler steps of dt = 0.96 / S, then one noiseless step of 0.04:

    x[k+1] ~ N((1 - dt) x[k] + (1 + t[k]) dt v(x[k], t[k]), 2 (1 - t[k]) dt),    sample = x[S] + 0.04 v(x[S], 0.96)

The velocity v predicts the data, x1 = x + (1 - t) v; in that form a step's mean is c_x x + c_x1 x1, and the last step
gives x1 itself. No std depends on x, the class, guidance or the model, so two models of one S differ in means only.

As everywhere, a law counts a token's head calls, ``head_steps = S + 1``, and a step is named by the number k of steps
after it: k = S is the first, k = 0 the noiseless last one. `FlowTable` has the path in that form.

Shape legend: S stochastic steps, R rows, D token dims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from spd_core.diffusion import Float64, StepCoefficients, StepTable, carry_of

LAST_STEP = 0.04
#: Noise level of the state before the last step, in thousandths.
LAST_LEVEL = 40


@dataclass(frozen=True)
class FlowPath:
    """Constants of a sampler with S stochastic steps."""

    t: tuple[float, ...]  #: [S + 1] times as the network reads them: float32 sums of dt; the last is 0.96
    mean_x: tuple[float, ...]  #: [S + 1] factor of the state
    mean_v: tuple[float, ...]  #: [S + 1] factor of the velocity
    std: tuple[float, ...]  #: [S + 1]; 0 at the last step

    @property
    def steps(self) -> int:
        """Head evaluations of a token."""
        return len(self.t)

    def data(self, k: int, x: Tensor, v: Tensor) -> Tensor:
        """The data that a velocity at step k predicts."""
        return x + (1.0 - self.t[k]) * v

    @property
    def c_x1(self) -> tuple[float, ...]:
        """[S + 1] factor of the predicted data in a step's mean."""
        return tuple(v / (1.0 - t) for v, t in zip(self.mean_v, self.t, strict=True))

    @property
    def c_x(self) -> tuple[float, ...]:
        """[S + 1] factor of the state beside `c_x1`."""
        return tuple(x - c for x, c in zip(self.mean_x, self.c_x1, strict=True))


@lru_cache(maxsize=64)
def flow_path(steps: int) -> FlowPath:
    """The path with ``steps`` stochastic steps.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"head_steps: got {steps} stochastic steps, allowed: at least 1")
    dt = (1.0 - LAST_STEP) / steps
    exact = np.arange(steps) * dt
    summed = np.concatenate([[0.0], np.full(steps - 1, dt)]).astype(np.float32).cumsum(dtype=np.float32)
    return FlowPath(
        t=(*(float(t) for t in summed), 1.0 - LAST_STEP),
        mean_x=(*[1.0 - dt] * steps, 1.0),
        mean_v=(*((1.0 + exact) * dt), LAST_STEP),
        std=(*np.sqrt(2.0 * (1.0 - exact) * dt), 0.0),
    )


class FlowTable(StepTable):
    """The constants of a path as decoding reads them: in the place of x0 stands the predicted data x1.

    The head gives a velocity, and x1 = x + (1 - t) v, so ``signal`` is 1 and ``noise`` is -(1 - t).

    Args:
        path: of S stochastic steps.
        device: of the tensors.
    """

    def __init__(self, path: FlowPath, device: torch.device) -> None:
        def column(values: tuple[float, ...] | Float64) -> Tensor:
            return torch.from_numpy(np.array(values)[::-1].copy()).float().to(device)

        left = 1.0 - np.array(path.t)
        self.times = list(reversed(path.t))  #: [S + 1] as the network reads them
        self.timesteps = [round(1000 * noise) for noise in reversed(left.tolist())]
        self.path = tuple(_coefficients(path, k) for k in range(path.steps))
        self.c_x0, self.c_x = column(path.c_x1), column(path.c_x)
        self.signal, self.noise = column(np.ones(path.steps)), column(-left)
        self.sqrt_recip, self.sqrt_recipm1 = self.signal, self.noise
        # The last step has no noise; a std that divides differences which nobody reads.
        self.fixed_std = column((*path.std[:-1], path.std[-2]))
        self.noisy = column((*[1.0] * (path.steps - 1), 0.0))
        self.v_scale = self.log_std_mid = torch.zeros_like(self.signal)  # no head has learned its variance
        self.carry = torch.from_numpy(carry_of(np.array(path.c_x)[::-1])).float().to(device)


def _coefficients(path: FlowPath, place: int) -> StepCoefficients:
    left, c_x1, c_x = 1.0 - path.t[place], path.c_x1[place], path.c_x[place]
    return StepCoefficients(
        k=path.steps - 1 - place, timestep=round(1000 * left), x_scale=c_x1 + c_x, eps_scale=-c_x1 * left, v_scale=0.0,
        log_std_mid=0.0, sqrt_recip=1.0, sqrt_recipm1=-left, c_x0=c_x1, c_x=c_x,
    )  # fmt: skip


@lru_cache(maxsize=256)
def flow_table(head_steps: int, device: torch.device) -> FlowTable:
    """The table of a law with so many head steps (cached: it is a constant)."""
    with torch.inference_mode(False):
        return FlowTable(flow_path(head_steps - 1), device)


@lru_cache(maxsize=256)
def handoff_step(head_steps: int, level: int) -> int:
    """The step k whose state is nearest to a noise level in thousandths: a token is handed over before that step.

    The clean token has level 0; it is the state after step 0, and so "before step -1". The state before the last step
    has level 40.
    """
    return min(range(-1, head_steps - 1), key=lambda k: abs(1000 * noise_left(head_steps, k) - level))


def noise_left(head_steps: int, k: int) -> float:
    """1 - t, the share of noise in the state before step k; 0 in the clean token, before step -1."""
    return 0.0 if k < 0 else 1.0 - flow_path(head_steps - 1).t[head_steps - 1 - k]


def step(path: FlowPath, k: int, x: Tensor, v: Tensor, noise: Tensor) -> Tensor:
    """The state after step k; the last step reads no noise."""
    mean = path.mean_x[k] * x + path.mean_v[k] * v
    return mean if path.std[k] == 0 else mean + path.std[k] * noise


def guidance(cfg: float, schedule: str, position: int, tokens: int) -> float:
    """Guidance weight of a token; 1 and less: none. Linear: from 1 at the first token, never reaching ``cfg``."""
    if cfg <= 1:
        return 1.0
    return 1.0 + (cfg - 1.0) * position / tokens if schedule == "linear" else cfg


def sample(path: FlowPath, velocity: Callable[[int, Tensor], Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
    """The loop of the public sampler.

    Args:
        path: of S stochastic steps.
        velocity: (k, x [R, D]) -> v [R, D].
        noise: [S + 1, R, D]; entry 0 is the state at time 0, entry k + 1 belongs to step k.

    Returns:
        States [S + 1, R, D] after each step (the last is the sample, not normalised) and velocities [S + 1, R, D].
    """
    x, states, velocities = noise[0], [], []
    for k in range(path.steps):
        v = velocity(k, x)
        x = step(path, k, x, v, noise[min(k + 1, len(noise) - 1)])
        states.append(x)
        velocities.append(v)
    return torch.stack(states), torch.stack(velocities)
