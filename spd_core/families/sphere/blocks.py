"""Transformer blocks of the model and its autoencoder: RMSNorm, rotary attention, gated feed-forward, no biases.

Shape legend: B rows, M positions of one pass, d model dims, H attention heads, S slots of a cache, G cells of a side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.models.kv import LayerCache
from spd_core.models.linear import Linear

NORM_EPS = 1e-6
ROPE_BASE = 10_000.0
#: Where the centre of cell (0, 0) lies on each axis: half a cell, and one that keeps it off the origin.
_FIRST_CELL = 1.5


def rotary_table(prefix: int, grid: int, head_dim: int) -> Tensor:
    """complex64 [prefix + G * G, head_dim / 2]: the turn of every pair of dims at every position.

    Prefix positions lie at the origin and are not turned. The first half of the pairs turns with the column, the second
    with the row.
    """
    quarter = head_dim // 4
    rates = ROPE_BASE ** (-2 * torch.arange(quarter, dtype=torch.float32) / (head_dim // 2))
    cells = torch.arange(grid, dtype=torch.float32) + _FIRST_CELL
    columns, rows = cells.repeat(grid), cells.repeat_interleave(grid)
    angles = torch.cat([torch.outer(columns, rates), torch.outer(rows, rates)], dim=1)
    angles = torch.cat([torch.zeros(prefix, 2 * quarter), angles])
    return torch.polar(torch.ones_like(angles), angles)


@dataclass(frozen=True)
class Positions:
    """Where the M positions of a pass lie, and what they see."""

    rotary: Tensor  #: complex64, broadcasts to [B, M, 1, 1, head_dim / 2]
    causal: bool = False  #: without a cache: whether a position sees only those up to itself
    slots: Tensor | None = None  #: int64 [B, M] of the cache; None: no cache
    mask: Tensor | None = None  #: [B, 1, M, S] of the cache's type: 0 for slots that a position sees, else -inf


class RMSNorm(nn.Module):
    """x / rms(x) times a weight, computed in float32."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dims))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, NORM_EPS).type_as(x)


class Attention(nn.Module):
    """Attention with rotary positions that can append to a cache; wqkv rows are [q | k | v]."""

    def __init__(self, dims: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = Linear(dims, 3 * dims, bias=False)
        self.wo = Linear(dims, dims, bias=False)

    def forward(self, x_BMd: Tensor, at: Positions, cache: LayerCache | None = None) -> Tensor:
        batch, length, dims = x_BMd.shape
        qkv = self.wqkv(x_BMd).view(batch, length, 3, self.heads, -1)
        pairs = torch.view_as_complex(qkv[:, :, :2].float().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * at.rotary).flatten(-2).type_as(qkv)
        q, k = turned.permute(2, 0, 3, 1, 4)
        v = qkv[:, :, 2].transpose(1, 2)
        if cache is None or at.slots is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=at.causal)
        else:
            k, v = cache.extend(at.slots[:, None, :, None].expand_as(k), k, v)
            out = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=at.mask)
        return self.wo(out.transpose(1, 2).reshape(batch, length, dims))


class FeedForward(nn.Module):
    """w2(silu(h1) * h2) with [h1 | h2] = w1 x."""

    def __init__(self, dims: int, hidden: int) -> None:
        super().__init__()
        self.w1 = Linear(dims, 2 * hidden, bias=False)
        self.w2 = Linear(hidden, dims, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w1(x).chunk(2, dim=-1)
        return self.w2(F.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, residual."""

    def __init__(self, dims: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(dims, heads)
        self.feed_forward = FeedForward(dims, hidden)
        self.attention_norm = RMSNorm(dims)
        self.ffn_norm = RMSNorm(dims)

    def forward(self, x_BMd: Tensor, at: Positions, cache: LayerCache | None = None) -> Tensor:
        h = x_BMd + self.attention(self.attention_norm(x_BMd), at, cache)
        return h + self.feed_forward(self.ffn_norm(h))


def feed_forward_dims(dims: int) -> int:
    """8/3 of the width, rounded up to a multiple of 256."""
    return -(-int(8 * dims / 3) // 256) * 256


def on_sphere(x: Tensor) -> Tensor:
    """Vectors [..., D] brought to the sphere of radius sqrt(D)."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-7) * x.shape[-1] ** 0.5
