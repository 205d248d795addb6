"""Causal image model over continuous tokens: a decoder-only transformer with a diffusion head.

Tokens are made in raster order. The context network reads the tokens before a position at the *hand-off level*, a small
amount of noise, and gives the context vector z of that position; the head turns noise into the token given z. One pass
over several drafted tokens therefore gives the exact conditional of each of them.

The head predicts the velocity sqrt(abar) eps - sqrt(1 - abar) x0. Its error reaches x0 with a factor of at most one at
every level, where an eps prediction's is multiplied by 1/sqrt(abar), without bound at the noisy end: there the means of
two models would differ by many standard deviations however well they agree, and no path of one would pass for the
other's. The variance is the posterior's, fixed, so that two heads differ in their means only.

Shape legend: B images, N tokens of an image (raster order), M positions of one pass, D token dims, d transformer dims,
H attention heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.models.grid import TokenGrid
from spd_core.models.head import DiffusionHead
from spd_core.models.kv import KvCache, LayerCache
from spd_core.models.linear import Linear
from spd_core.models.sequence import SequenceModel


class CausalConfig(TokenGrid):
    """Sizes of a causal model."""

    class_num: int = Field(1000, gt=0, le=1_000_000)
    embed_dim: int = Field(256, gt=0, le=65536, description="width of the transformer and of z")
    depth: int = Field(6, gt=0, le=1024, description="transformer blocks")
    num_heads: int = Field(4, gt=0, le=65536)
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    head_depth: int = Field(3, gt=0, le=1024, description="residual blocks of the diffusion head")
    head_width: int = Field(192, gt=0, le=65536, description="width of the diffusion head")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim a multiple of num_heads = {self.num_heads}, got {self.embed_dim}")
        return self


class CausalBlock(nn.Module):
    """Pre-norm transformer block with a causal attention that can append to a cache."""

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        dims, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.heads = config.num_heads
        self.norm1 = nn.LayerNorm(dims)
        self.qkv = Linear(dims, 3 * dims)
        self.proj = Linear(dims, dims)
        self.norm2 = nn.LayerNorm(dims)
        self.mlp = nn.Sequential(Linear(dims, hidden), nn.GELU(), Linear(hidden, dims))

    def forward(
        self, x_BMd: Tensor, cache: LayerCache | None, index_BHMd: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Same shape as x; with a cache, writes x's own keys and values at ``index_BHMd`` and adds ``mask``."""
        batch, length, dims = x_BMd.shape
        q, k, v = self.qkv(self.norm1(x_BMd)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None and index_BHMd is not None:
            k, v = cache.extend(index_BHMd, k, v)
            out = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask)
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x_BMd + self.proj(out.transpose(1, 2).reshape(batch, length, dims))
        return x + self.mlp(self.norm2(x))


class Causal(SequenceModel):
    """The model; `forward` gives the context vector z of every position it is asked for."""

    config: CausalConfig
    head: DiffusionHead

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.start = nn.Parameter(torch.zeros(c.embed_dim))
        #: the last row is the null class
        self.class_emb = nn.Embedding(c.class_num + 1, c.embed_dim)
        self.input_proj = Linear(c.token_dim, c.embed_dim)
        self.position_emb = nn.Parameter(torch.zeros(c.seq_len, c.embed_dim))
        self.blocks = nn.ModuleList(CausalBlock(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.embed_dim)
        self.head = DiffusionHead(c.token_dim, c.head_width, c.token_dim, c.embed_dim, c.head_depth)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("head."):
                continue
            if name in ("start", "position_emb", "class_emb.weight"):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def device(self) -> torch.device:
        return self.start.device

    @property
    def _blocks(self) -> Iterator[CausalBlock]:
        for block in self.blocks:
            if isinstance(block, CausalBlock):
                yield block

    def cache(self, batch: int, dtype: torch.dtype = torch.float32) -> KvCache:
        """An empty cache for ``batch`` rows."""
        c = self.config
        return KvCache(c.depth, batch, c.num_heads, c.seq_len + 1, c.embed_dim // c.num_heads, dtype, self.device)

    def forward(
        self,
        previous_BMD: Tensor,
        labels_B: Tensor,
        first_B: Tensor | None = None,
        cache: KvCache | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """Context vectors z [B, M, d] of positions first, first + 1, ..., first + M - 1.

        Args:
            previous_BMD: for each position the token before it, at the hand-off level; not read at position 0.
            labels_B: class labels; a negative one stands for "no class".
            first_B: int64, each row's first position; None: 0. Positions past the image's end are padding: their z
                means nothing.
            cache: holds every row's positions before ``first_B``; gets these. None: there are none, and M <= N.
            reach: slots of the cache that are read, at least all that positions of the image see; None: all.
        """
        count = previous_BMD.shape[1]
        length = self.config.seq_len
        if first_B is None:
            first_B = torch.zeros_like(labels_B)
        position_BM = first_B[:, None] + torch.arange(count, device=labels_B.device)
        slots_BM = position_BM.clamp(max=length)
        x = torch.where((position_BM == 0)[..., None], self.start, self.input_proj(previous_BMD))
        classes = self.class_emb(torch.where(labels_B < 0, self.config.class_num, labels_B))
        x = x + self.position_emb[slots_BM.clamp(max=length - 1)] + classes[:, None]
        if cache is None:
            for block in self._blocks:
                x = block(x, None, None, None)
        else:
            reach = min(reach or cache.slots, cache.slots)
            unseen = torch.arange(reach, device=x.device) > slots_BM[..., None]
            mask = torch.zeros(unseen.shape, dtype=cache.dtype, device=x.device).masked_fill_(unseen, -torch.inf)
            index = slots_BM[:, None, :, None].expand(cache.index_shape)
            for block, layer in zip(self._blocks, cache.layers(reach), strict=True):
                x = block(x, layer, index, mask[:, None])
        return self.norm(x)
