"""The flow sampler as a path of Gaussian steps whose standard deviations are fixed numbers.

Time runs from 0 (noise) to 1 (data). S stochastic Euler steps of dt = 0.96 / S, then one noiseless step of 0.04:

    x[k+1] ~ N((1 - dt) x[k] + (1 + t[k]) dt v(x[k], t[k]), 2 (1 - t[k]) dt),    sample = x[S] + 0.04 v(x[S], 0.96)

The velocity v predicts the data, x1 = x + (1 - t) v; in that form a step's mean is c_x x + c_x1 x1, and the last step
gives x1 itself. No std depends on x, the class, guidance or the model, so two models of one S differ in means only.

Shape legend: S stochastic steps, R rows, D token dims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

LAST_STEP = 0.04


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
