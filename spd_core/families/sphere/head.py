"""Flow-matching head: state x at time t and a context give the velocity, data minus noise.

Module names and state-dict keys are those of the public checkpoints (``head.net.*``).

Shape legend: R rows (tokens being made), S steps, D token dims, Z context dims, W head width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.models.linear import Linear

LAYER_NORM_EPS = 1e-6
FREQUENCIES = 128
TIME_SCALE = 1000.0


def time_features(t_R: Tensor) -> Tensor:
    """Sinusoid [R, 256] of 1000 t in float32, cosines first."""
    rates = torch.exp(
        -math.log(10000.0) * torch.arange(FREQUENCIES, dtype=torch.float32, device=t_R.device) / FREQUENCIES
    )
    angles = (TIME_SCALE * t_R.float())[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedder(nn.Module):
    """`time_features`, then a two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(2 * FREQUENCIES, width), nn.SiLU(), Linear(width, width))

    def forward(self, t_R: Tensor) -> Tensor:
        return self.mlp(time_features(t_R))


class ResBlock(nn.Module):
    """LayerNorm, modulation, gated MLP, gated residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(1.5 * width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.w1 = Linear(width, 2 * hidden)
        self.w2 = Linear(hidden, width)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        first, second = self.w1(torch.addcmul(shift, self.norm(x), 1 + scale)).chunk(2, dim=-1)
        return torch.addcmul(x, gate, self.w2(F.silu(first) * second))


class FinalLayer(nn.Module):
    """LayerNorm without affine, modulation, Linear to the velocity."""

    def __init__(self, width: int, out_dims: int) -> None:
        super().__init__()
        self.ada_ln_modulation = Linear(width, 2 * width)
        self.linear = Linear(width, out_dims)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self.linear(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS), 1 + scale))


class Modulation(NamedTuple):
    """Everything the head needs at one time that does not depend on the state x."""

    maps: tuple[tuple[Tensor, Tensor, Tensor], ...]  #: (scale, shift, gate) of each run of blocks, each [R, W]
    final: tuple[Tensor, Tensor]  #: (scale, shift)


class FlowNet(nn.Module):
    """The network; see `FlowHead`."""

    def __init__(self, dims: int, width: int, context_dims: int, blocks: int, maps: int) -> None:
        super().__init__()
        self.shared = blocks // maps
        self.time_embed = TimeEmbedder(width)
        self.cond_embed = Linear(context_dims, width)
        self.input_proj = Linear(dims, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(blocks))
        self.ada_ln_blocks = nn.ModuleList(Linear(width, 3 * width) for _ in range(maps))
        self.final_layer = FinalLayer(width, dims)


class FlowHead(nn.Module):
    """Velocity of a token's state given its context.

    Args:
        dims: token dims D.
        width: W.
        context_dims: Z.
        blocks: residual blocks.
        maps: modulations; each serves ``blocks / maps`` consecutive blocks.
    """

    def __init__(self, dims: int, width: int, context_dims: int, blocks: int, maps: int) -> None:
        super().__init__()
        self.net = FlowNet(dims, width, context_dims, blocks, maps)

    def forward(self, x_RD: Tensor, t_R: Tensor, z_RZ: Tensor) -> Tensor:
        """Velocity [R, D] of states at times 0 (noise) to 1 (data)."""
        return self.velocity(x_RD, self.modulation(self.net.time_embed(t_R) + self.net.cond_embed(z_RZ)))

    def modulation(self, embedding_RW: Tensor) -> Modulation:
        """Of the sum of time and context embedding; it does not depend on the state, so steps share one product."""
        y = F.silu(embedding_RW)
        maps = tuple((m[0], m[1], m[2]) for m in (layer(y).chunk(3, dim=-1) for layer in self.net.ada_ln_blocks))
        scale, shift = self.net.final_layer.ada_ln_modulation(y).chunk(2, dim=-1)
        return Modulation(maps, (scale, shift))

    def velocity(self, x_RD: Tensor, modulation: Modulation) -> Tensor:
        """The part of the head that depends on the state; the output layer runs in float32."""
        h = self.net.input_proj(x_RD)
        for block, (scale, shift, gate) in zip(self._blocks, self._per_block(modulation), strict=True):
            h = block(h, scale, shift, gate)
        with torch.autocast(h.device.type, enabled=False):
            scale, shift = modulation.final
            return self.net.final_layer(h.float(), scale.float(), shift.float())

    def _per_block(self, modulation: Modulation) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return itertools.chain.from_iterable(itertools.repeat(m, self.net.shared) for m in modulation.maps)

    @property
    def _blocks(self) -> Iterator[ResBlock]:
        for block in self.net.res_blocks:
            if isinstance(block, ResBlock):
                yield block


def guided(conditional: Tensor, null: Tensor, weight: float | Tensor) -> Tensor:
    """Velocity under guidance: null + weight (conditional - null)."""
    return torch.lerp(null, conditional, weight)
