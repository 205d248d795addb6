"""Diffusion head: the small AdaLN MLP that turns noise into one token, conditioned on a context vector z.

Module names and state-dict keys are those of the public MAR code (``diffloss.net.*``).

Shape legend: R rows (tokens being denoised), S diffusion steps, D token dims, Z context dims, W head width.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.diffusion import StepTable, step_table
from spd_core.models.linear import Float32Linear, Linear

if TYPE_CHECKING:
    from spd_core.law import SamplerLaw
    from spd_core.models.variance import PosteriorVariance

LAYER_NORM_EPS = 1e-6
FREQUENCY_DIMS = 256
#: Rows of (step, token) whose modulations are computed by one matrix product; bounds the memory of `modulations`.
MODULATION_ROWS = 2048


def _last_linear(layers: nn.Sequential) -> nn.Linear:
    last = layers[-1]
    if not isinstance(last, nn.Linear):
        raise TypeError(f"expected a Linear at the end, got {type(last).__name__}")
    return last


class TimestepEmbedder(nn.Module):
    """Sinusoid of the original timestep (0..999), cosines first, then a two-layer MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Float32Linear(FREQUENCY_DIMS, width), nn.SiLU(), Float32Linear(width, width))

    @staticmethod
    def frequencies(t_R: Tensor) -> Tensor:
        """Sinusoidal features [R, 256] of timesteps [R], in float32 as the public code computes them."""
        half = FREQUENCY_DIMS // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t_R.device) / half
        angles = t_R[:, None].float() * torch.exp(-math.log(10000.0) * exponents)[None]
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)

    def forward(self, t_R: Tensor) -> Tensor:
        return self.mlp(self.frequencies(t_R))


class ResBlock(nn.Module):
    """LayerNorm -> modulate -> Linear-SiLU-Linear -> gated residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 3 * width))

    def modulation(self, silu_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(gain, bias, gate) for SiLU(time + condition), the LayerNorm's affine folded in."""
        return self.modulation_of(_last_linear(self.adaLN_modulation)(silu_y))

    def modulation_of(self, made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from what the layer made, [R, 3 W]."""
        shift, scale, gate = made.chunk(3, dim=-1)
        gain = 1 + scale.float()
        return gain * self.in_ln.weight, torch.addcmul(shift, gain, self.in_ln.bias), gate


class FinalLayer(nn.Module):
    """Affine-free LayerNorm -> modulate -> Linear to [eps | v]."""

    def __init__(self, width: int, out_dims: int) -> None:
        super().__init__()
        self.linear = Float32Linear(width, out_dims)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def modulation(self, silu_y: Tensor) -> tuple[Tensor, Tensor]:
        """(gain, bias) for SiLU(time + condition)."""
        return self.modulation_of(_last_linear(self.adaLN_modulation)(silu_y))

    def modulation_of(self, made: Tensor) -> tuple[Tensor, Tensor]:
        """The same from what the layer made, [R, 2 W]."""
        shift, scale = made.chunk(2, dim=-1)
        return 1 + scale.float(), shift


@dataclass(frozen=True)
class StepModulation:
    """Everything the head needs at one step that does not depend on the noisy token x.

    ``blocks[j]`` is (gain, bias, gate) of residual block j with the LayerNorm's affine folded in, ``final`` is
    (gain, bias) of the output layer; each tensor is [R, W].
    """

    blocks: tuple[tuple[Tensor, Tensor, Tensor], ...]
    final: tuple[Tensor, Tensor]


class Head(nn.Module):
    """What decoding asks of a network that denoises tokens, step by step along a path of Gaussian steps.

    A call is `apply_step` with the modulation of its step, which is made of (time embedding + condition) rows by
    `fused_modulation` and `split_modulation`.
    """

    in_channels: int  #: token dims D
    out_channels: int  #: 2 D for a learned variance, D for a fixed one
    #: what is known of the errors of its predictions; None: nothing. Not part of the public models.
    variance: PosteriorVariance | None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    @abstractmethod
    def context_dims(self) -> int:
        """Z."""

    @abstractmethod
    def steps(self, law: SamplerLaw) -> StepTable:
        """The constants of the path's steps at a law with a constant number of them, on the head's device."""

    @abstractmethod
    def embeddings(self, steps: StepTable) -> Tensor:
        """[S, W] of the steps; added to a row of `condition` they are the y of `fused_modulation`."""

    @abstractmethod
    def condition(self, z_RZ: Tensor) -> Tensor:
        """[R, W] of contexts."""

    @abstractmethod
    def fused_modulation(self) -> Linear:
        """The one Linear that makes every modulation from SiLU(y)."""

    @abstractmethod
    def split_modulation(self, fused: Tensor) -> StepModulation:
        """The modulation from rows [R, ...] of the fused product."""

    @abstractmethod
    def apply_step(self, x_RD: Tensor, modulation: StepModulation) -> Tensor:
        """The part of the head that reads the state: [R, D] -> [M R, out_channels] for a modulation of M R rows."""


class DiffusionHead(Head):
    """MLP eps/variance predictor of MAR ("SimpleMLPAdaLN" in the public code).

    Args:
        in_channels: token dims D.
        model_channels: width W.
        out_channels: 2 D for learned variance ([eps | v]), D for a fixed variance.
        z_channels: context dims Z.
        num_res_blocks: residual blocks.
    """

    def __init__(
        self, in_channels: int, model_channels: int, out_channels: int, z_channels: int, num_res_blocks: int
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.width = model_channels
        self.variance: PosteriorVariance | None = None
        self.time_embed = TimestepEmbedder(model_channels)
        self.cond_embed = Linear(z_channels, model_channels)
        self.input_proj = Float32Linear(in_channels, model_channels)
        self.res_blocks = nn.ModuleList(ResBlock(model_channels) for _ in range(num_res_blocks))
        self.final_layer = FinalLayer(model_channels, out_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialisation of the public code: modulations and output start at zero, so a block starts as identity."""
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            nn.init.zeros_(module.bias)
            if "adaLN_modulation" in name or name == "final_layer.linear":
                nn.init.zeros_(module.weight)
            elif name.startswith("time_embed"):
                nn.init.normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x_RD: Tensor, t_R: Tensor, z_RZ: Tensor) -> Tensor:
        """[eps | v] of shape [R, out_channels] for rows with timesteps ``t_R`` on the original 0..999 scale."""
        return self.apply_step(x_RD, self._modulate(self.time_embed(t_R) + self.cond_embed(z_RZ)))

    @property
    def _blocks(self) -> Iterator[ResBlock]:
        for block in self.res_blocks:
            if isinstance(block, ResBlock):
                yield block

    @property
    def device(self) -> torch.device:
        return self.cond_embed.weight.device

    @property
    def context_dims(self) -> int:
        return self.cond_embed.in_features

    def steps(self, law: SamplerLaw) -> StepTable:
        return step_table(law.head_steps, law.start_level, self.device)

    def embeddings(self, steps: StepTable) -> Tensor:
        return self.step_embeddings(steps.timesteps)

    def condition(self, z_RZ: Tensor) -> Tensor:
        return self.cond_embed(z_RZ)

    def step_embeddings(self, timesteps: Sequence[int] | Tensor) -> Tensor:
        """Embeddings [S, W] of timesteps; added to a row of `cond_embed` they are the y of `fused_modulation`."""
        return self.time_embed(torch.as_tensor(timesteps, device=self.cond_embed.weight.device))

    def fused_modulation(self) -> Linear:
        """The one Linear, W -> (3 blocks + 2) W, that makes every modulation from SiLU(y).

        Each gain, bias and gate is affine in SiLU(y), the LayerNorms' own affine included, so all of them fit into one
        matrix: a dozen small products and sums a call become one. Up to rounding the results are those of `forward`.
        In bfloat16 the matrix holds the layers as they are, for what is rounded must be what `forward` rounds: near
        pure noise a step's mean is moved by hundreds of times an error of the head.
        """
        layers = [*(_last_linear(block.adaLN_modulation) for block in self._blocks)]
        layers.append(_last_linear(self.final_layer.adaLN_modulation))
        weights: list[Tensor] = [layer.weight for layer in layers]
        biases: list[Tensor] = [layer.bias for layer in layers]
        if weights[0].dtype is not torch.bfloat16:
            weights, biases = self._folded(layers)
        with torch.device("meta"):
            fused = Linear(self.width, sum(map(len, biases)))
        fused.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        fused.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
        return fused

    def _folded(self, layers: Sequence[nn.Linear]) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases that give gain, bias and gate where the layers give shift, scale and gate."""
        weights, biases = [], []
        for block, layer in zip(self._blocks, layers[:-1], strict=True):
            gain, offset = block.in_ln.weight, block.in_ln.bias
            (shift_w, scale_w, gate_w), (shift_b, scale_b, gate_b) = layer.weight.chunk(3), layer.bias.chunk(3)
            weights += [gain[:, None] * scale_w, shift_w + offset[:, None] * scale_w, gate_w]
            biases += [gain * (1 + scale_b), shift_b + offset * (1 + scale_b), gate_b]
        (shift_w, scale_w), (shift_b, scale_b) = layers[-1].weight.chunk(2), layers[-1].bias.chunk(2)
        return [*weights, scale_w, shift_w], [*biases, 1 + scale_b, shift_b]

    def split_modulation(self, fused: Tensor) -> StepModulation:
        """The modulation from rows [R, (3 blocks + 2) W] of the fused product."""
        if fused.dtype is torch.bfloat16:
            *parts, last = fused.split([*[3 * self.width] * len(self.res_blocks), 2 * self.width], dim=-1)
            blocks = tuple(block.modulation_of(part) for block, part in zip(self._blocks, parts, strict=True))
            return StepModulation(blocks, self.final_layer.modulation_of(last))
        *parts, gain, bias = fused.split(self.width, dim=-1)
        blocks = tuple((parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3))
        return StepModulation(blocks, (gain, bias))

    def _modulate(self, y_RW: Tensor) -> StepModulation:
        silu_y = F.silu(y_RW)
        return StepModulation(
            tuple(block.modulation(silu_y) for block in self._blocks), self.final_layer.modulation(silu_y)
        )

    def modulations(self, z_RZ: Tensor, timesteps: Sequence[int] | Tensor) -> Iterator[StepModulation]:
        """Step modulations for every timestep in turn.

        They depend on z and t only, never on x, so whole runs of steps are computed by one matrix product: a hundred
        sequential steps then cost only the narrow x path.

        Args:
            z_RZ: context vectors.
            timesteps: original timesteps in the order in which the steps will run.
        """
        rows = z_RZ.shape[0]
        c_RW = self.cond_embed(z_RZ)
        t_SW = self.step_embeddings(timesteps)
        chunk = max(1, MODULATION_ROWS // max(1, rows))
        for start in range(0, len(timesteps), chunk):
            y = t_SW[start : start + chunk, None] + c_RW[None]
            steps = y.shape[0]
            stacked = self._modulate(y.reshape(steps * rows, self.width))
            for s in range(steps):
                at = slice(s * rows, (s + 1) * rows)
                yield StepModulation(
                    tuple((gain[at], bias[at], gate[at]) for gain, bias, gate in stacked.blocks),
                    (stacked.final[0][at], stacked.final[1][at]),
                )

    def apply_step(self, x_RD: Tensor, modulation: StepModulation) -> Tensor:
        """The x path of the head: [R, D] -> [M R, out_channels] for a modulation of M R rows.

        M = 2 under guidance: conditional and null rows share x. The output layer runs in float32: at the noisiest
        step an eps error of 1e-3 moves the mean by 0.3 standard deviations.
        """
        width = (self.width,)
        h = self.input_proj(x_RD)
        copies = len(modulation.final[0]) // max(1, len(h))
        h = h.repeat(copies, 1) if copies > 1 else h
        for block, (gain, bias, gate) in zip(self._blocks, modulation.blocks, strict=True):
            u = torch.addcmul(bias, F.layer_norm(h, width, eps=LAYER_NORM_EPS), gain)
            h = torch.addcmul(h, gate, block.mlp(u))
        gain, bias = modulation.final
        with torch.autocast(device_type=h.device.type, enabled=False):
            u = torch.addcmul(bias.float(), F.layer_norm(h.float(), width, eps=LAYER_NORM_EPS), gain.float())
            return self.final_layer.linear(u)
