"""Flow-matching head: state x at time t and a context give the velocity, data minus noise.

Module names and state-dict keys are those of the public checkpoints (``head.net.*``).

Shape legend: R rows (tokens being made), S steps, D token dims, Z context dims, W head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.diffusion import StepTable
from spd_core.families.sphere.flow import FlowTable, flow_table
from spd_core.models.head import Head, StepModulation
from spd_core.models.linear import Float32Linear, Linear

if TYPE_CHECKING:
    from spd_core.law import SamplerLaw

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
        self.mlp = nn.Sequential(Float32Linear(2 * FREQUENCIES, width), nn.SiLU(), Float32Linear(width, width))

    def forward(self, t_R: Tensor) -> Tensor:
        return self.mlp(time_features(t_R))


class ResBlock(nn.Module):
    """LayerNorm, modulation, gated MLP, gated residual; the gain is one plus the scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(1.5 * width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.w1 = Linear(width, 2 * hidden)
        self.w2 = Linear(hidden, width)

    def forward(self, x: Tensor, gain: Tensor, shift: Tensor, gate: Tensor) -> Tensor:
        first, second = self.w1(torch.addcmul(shift, self.norm(x), gain)).chunk(2, dim=-1)
        return torch.addcmul(x, gate, self.w2(F.silu(first) * second))


class FinalLayer(nn.Module):
    """LayerNorm without affine, modulation, Linear to the velocity."""

    def __init__(self, width: int, out_dims: int) -> None:
        super().__init__()
        self.ada_ln_modulation = Linear(width, 2 * width)
        self.linear = Float32Linear(width, out_dims)

    def forward(self, x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        return self.linear(torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS), gain))


class FlowNet(nn.Module):
    """The network; see `FlowHead`."""

    def __init__(self, dims: int, width: int, context_dims: int, blocks: int, maps: int) -> None:
        super().__init__()
        self.shared = blocks // maps
        self.time_embed = TimeEmbedder(width)
        self.cond_embed = Linear(context_dims, width)
        self.input_proj = Float32Linear(dims, width)
        self.res_blocks = nn.ModuleList(ResBlock(width) for _ in range(blocks))
        self.ada_ln_blocks = nn.ModuleList(Linear(width, 3 * width) for _ in range(maps))
        self.final_layer = FinalLayer(width, dims)


class FlowHead(Head):
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
        self.in_channels = self.out_channels = dims
        self.width = width
        self.variance = None
        self.net = FlowNet(dims, width, context_dims, blocks, maps)

    def forward(self, x_RD: Tensor, t_R: Tensor, z_RZ: Tensor) -> Tensor:
        """Velocity [R, D] of states at times 0 (noise) to 1 (data)."""
        return self.apply_step(x_RD, self.modulation(self.net.time_embed(t_R) + self.condition(z_RZ)))

    @property
    def device(self) -> torch.device:
        return self.net.cond_embed.weight.device

    @property
    def context_dims(self) -> int:
        return self.net.cond_embed.in_features

    def steps(self, law: SamplerLaw) -> FlowTable:
        return flow_table(law.head_steps, self.device)

    def embeddings(self, steps: StepTable) -> Tensor:
        if not isinstance(steps, FlowTable):
            raise TypeError(f"steps: got a {type(steps).__name__}, allowed: FlowTable")
        return self.net.time_embed(torch.tensor(steps.times, device=self.device))

    def condition(self, z_RZ: Tensor) -> Tensor:
        return self.net.cond_embed(z_RZ)

    def modulation(self, embedding_RW: Tensor) -> StepModulation:
        """Of the sum of time and context embedding; it does not depend on the state, so steps share one product."""
        y = F.silu(embedding_RW)
        maps = [layer(y).chunk(3, dim=-1) for layer in self.net.ada_ln_blocks]
        scale, shift = self.net.final_layer.ada_ln_modulation(y).chunk(2, dim=-1)
        return self._per_block([(1 + s.float(), b, g) for s, b, g in maps], (1 + scale.float(), shift))

    def fused_modulation(self) -> Linear:
        """The one Linear, W -> (3 maps + 2) W, that makes every map from SiLU(y).

        In float32 its biases hold the one that a gain adds to its scale; in bfloat16 the layers are as they are.
        """
        layers = [*self.net.ada_ln_blocks, self.net.final_layer.ada_ln_modulation]
        weights, biases = ([getattr(layer, name) for layer in layers] for name in ("weight", "bias"))
        if weights[0].dtype is not torch.bfloat16:
            biases = [torch.cat([bias[: self.width] + 1, bias[self.width :]]) for bias in biases]
        with torch.device("meta"):
            fused = Linear(self.width, sum(map(len, biases)))
        fused.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        fused.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
        return fused

    def split_modulation(self, fused: Tensor) -> StepModulation:
        *parts, gain, shift = fused.split(self.width, dim=-1)
        if fused.dtype is torch.bfloat16:
            parts[::3], gain = [1 + scale.float() for scale in parts[::3]], 1 + gain.float()
        maps = [(parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]
        return self._per_block(maps, (gain, shift))

    def _per_block(self, maps: list[tuple[Tensor, Tensor, Tensor]], final: tuple[Tensor, Tensor]) -> StepModulation:
        """Each map (gain, shift, gate) for its run of blocks; the blocks' own LayerNorms come before it."""
        return StepModulation(tuple(of for of in maps for _ in range(self.net.shared)), final)

    def apply_step(self, x_RD: Tensor, modulation: StepModulation) -> Tensor:
        """The part of the head that depends on the state; the output layer runs in float32."""
        h = self.net.input_proj(x_RD)
        copies = len(modulation.final[0]) // max(1, len(h))
        h = h.repeat(copies, 1) if copies > 1 else h
        for block, (gain, shift, gate) in zip(self._blocks, modulation.blocks, strict=True):
            h = block(h, gain, shift, gate)
        with torch.autocast(h.device.type, enabled=False):
            gain, shift = modulation.final
            return self.net.final_layer(h.float(), gain.float(), shift.float())

    @property
    def _blocks(self) -> Iterator[ResBlock]:
        for block in self.net.res_blocks:
            if isinstance(block, ResBlock):
                yield block


def guided(conditional: Tensor, null: Tensor, weight: float | Tensor) -> Tensor:
    """Velocity under guidance: null + weight (conditional - null)."""
    return torch.lerp(null, conditional, weight)
