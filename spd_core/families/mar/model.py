"""Masked autoregressive image model (MAR): masked encoder-decoder over continuous tokens with a diffusion head.

Modules, names and state-dict keys are those of the public MAR checkpoints (Li et al. 2024, arXiv:2406.11838).

Shape legend: B images, N tokens of an image (raster order), D token dims, d transformer dims, U buffer positions,
V visible tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.models.grid import TokenGrid
from spd_core.models.head import DiffusionHead
from spd_core.models.linear import Linear


class MarConfig(TokenGrid):
    """Constructor arguments of the public model classes, under their names."""

    encoder_embed_dim: int = Field(768, gt=0, le=65536)
    encoder_depth: int = Field(12, ge=0, le=1024)
    encoder_num_heads: int = Field(12, gt=0, le=65536)
    decoder_embed_dim: int = Field(768, gt=0, le=65536)
    decoder_depth: int = Field(12, ge=0, le=1024)
    decoder_num_heads: int = Field(12, gt=0, le=65536)
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    class_num: int = Field(1000, gt=0, le=1_000_000)
    buffer_size: int = Field(64, gt=0, le=65536, description="copies of the class embedding put before the tokens")
    diffloss_d: int = Field(6, gt=0, le=1024, description="residual blocks of the diffusion head")
    diffloss_w: int = Field(1024, gt=0, le=65536, description="width of the diffusion head")
    num_sampling_steps: int = Field(100, gt=0, le=1000, description="head steps the checkpoint is usually sampled with")
    norm_eps: float = Field(1e-6, gt=0)
    attn_dropout: float = Field(0.0, ge=0, lt=1, description="training only")
    proj_dropout: float = Field(0.0, ge=0, lt=1, description="training only")


def preset(name: str) -> MarConfig:
    """Configuration of a public model: ``base``, ``large`` or ``huge``.

    Raises:
        ValueError: for another name.
    """
    sizes = {
        "base": (768, 12, 12, 6, 1024),
        "large": (1024, 16, 16, 8, 1280),
        "huge": (1280, 20, 16, 12, 1536),
    }
    if name not in sizes:
        raise ValueError(f"MAR preset: got {name!r}, allowed: {', '.join(sizes)}")
    dims, depth, heads, head_depth, head_width = sizes[name]
    sides: dict[str, Any] = {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("embed_dim", dims), ("depth", depth), ("num_heads", heads))
    }
    return MarConfig(**sides, diffloss_d=head_depth, diffloss_w=head_width)


def _positions(x: Tensor, at_BQ: Tensor) -> Tensor:
    """[B, Q, ...] of x [B, length, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None], at_BQ]


class Attention(nn.Module):
    """Multi-head self-attention, full and bidirectional; qkv rows are [q | k | v]."""

    def __init__(self, dims: int, heads: int, attn_dropout: float, proj_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attn_dropout = attn_dropout
        self.proj_dropout = proj_dropout
        self.qkv = Linear(dims, 3 * dims)
        self.proj = Linear(dims, dims)

    def forward(self, x: Tensor, keys: Tensor | None = None, wanted_BQ: Tensor | None = None) -> Tensor:
        batch, length, dims = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, dims // self.heads).permute(2, 0, 3, 1, 4)
        if wanted_BQ is not None:
            q = _positions(q.transpose(1, 2), wanted_BQ).transpose(1, 2)
        dropout = self.attn_dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=dropout)
        out = self.proj(out.transpose(1, 2).reshape(batch, -1, dims))
        return F.dropout(out, self.proj_dropout, self.training)


class Mlp(nn.Module):
    """Linear - GELU (erf) - Linear."""

    def __init__(self, dims: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = Linear(dims, hidden)
        self.fc2 = Linear(hidden, dims)

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(h), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm vision-transformer block with exact (erf) GELU."""

    def __init__(self, dims: int, heads: int, config: MarConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims, eps=config.norm_eps)
        self.attn = Attention(dims, heads, config.attn_dropout, config.proj_dropout)
        self.norm2 = nn.LayerNorm(dims, eps=config.norm_eps)
        self.mlp = Mlp(dims, int(dims * config.mlp_ratio), config.proj_dropout)

    def forward(self, x: Tensor, keys: Tensor | None = None, wanted_BQ: Tensor | None = None) -> Tensor:
        """Same shape as x, or [B, Q, d] of the positions ``wanted``: they still attend to all.

        ``keys`` [B, 1, 1, length] (bool) leaves positions out of the attention.
        """
        attended = self.attn(self.norm1(x), keys, wanted_BQ)
        x = attended + (x if wanted_BQ is None else _positions(x, wanted_BQ))
        return x + self.mlp(self.norm2(x))


class DiffLoss(nn.Module):
    """Holds the head under the public key prefix ``diffloss.net``."""

    def __init__(self, net: DiffusionHead) -> None:
        super().__init__()
        self.net = net


class Mar(nn.Module):
    """The masked encoder-decoder; `forward` gives the context vector z of every token position."""

    def __init__(self, config: MarConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        length = c.buffer_size + c.seq_len
        self.class_emb = nn.Embedding(c.class_num, c.encoder_embed_dim)
        self.fake_latent = nn.Parameter(torch.zeros(1, c.encoder_embed_dim))
        self.z_proj = Linear(c.token_dim, c.encoder_embed_dim)
        self.z_proj_ln = nn.LayerNorm(c.encoder_embed_dim, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, length, c.encoder_embed_dim))
        self.encoder_blocks = nn.ModuleList(
            Block(c.encoder_embed_dim, c.encoder_num_heads, c) for _ in range(c.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(c.encoder_embed_dim, eps=c.norm_eps)
        self.decoder_embed = Linear(c.encoder_embed_dim, c.decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.decoder_embed_dim))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, length, c.decoder_embed_dim))
        self.decoder_blocks = nn.ModuleList(
            Block(c.decoder_embed_dim, c.decoder_num_heads, c) for _ in range(c.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(c.decoder_embed_dim, eps=c.norm_eps)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, c.seq_len, c.decoder_embed_dim))
        self.diffloss = DiffLoss(
            DiffusionHead(c.token_dim, c.diffloss_w, 2 * c.token_dim, c.decoder_embed_dim, c.diffloss_d)
        )
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for name, parameter in self.named_parameters():
            if name.startswith("diffloss."):
                continue
            if name.endswith("_learned") or name in ("class_emb.weight", "fake_latent", "mask_token"):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def head(self) -> DiffusionHead:
        return self.diffloss.net

    @property
    def device(self) -> torch.device:
        return self.mask_token.device

    def class_embedding(self, labels_B: Tensor) -> Tensor:
        """Class embeddings [B, d]; a negative label stands for "no class" and gives the learned null embedding."""
        null = (labels_B < 0)[:, None]
        return torch.where(null, self.fake_latent, self.class_emb(labels_B.clamp(min=0)))

    def encode(
        self, tokens_BND: Tensor, visible_BV: Tensor, class_Bd: Tensor, counts_B: Tensor | None = None
    ) -> Tensor:
        """Encoder output [B, U + V, d] over the buffer and the visible tokens.

        Args:
            tokens_BND: tokens in raster order; values at positions that are not visible are never read.
            visible_BV: raster indices of the visible tokens, ascending within each image.
            class_Bd: output of `class_embedding`.
            counts_B: how many of an image's V indices are real, the rest being padding; None: all of them.
        """
        buffer = self.config.buffer_size
        keys = None
        if counts_B is not None:
            real = torch.arange(visible_BV.shape[1], device=counts_B.device) < counts_B[:, None]
            keys = F.pad(real, (buffer, 0), value=True)[:, None, None]
        visible = tokens_BND.gather(1, visible_BV[..., None].expand(-1, -1, tokens_BND.shape[-1]))
        x = torch.cat([class_Bd[:, None].expand(-1, buffer, -1).to(tokens_BND.dtype), self.z_proj(visible)], dim=1)
        pos = self.encoder_pos_embed_learned[0]
        pos_buffer = pos[:buffer].expand(len(visible_BV), -1, -1)
        x = self.z_proj_ln(x + torch.cat([pos_buffer, pos[buffer:][visible_BV]], dim=1))
        for block in self.encoder_blocks:
            x = block(x, keys)
        return self.encoder_norm(x)

    def decode(
        self,
        encoded: Tensor,
        visible_BV: Tensor,
        counts_B: Tensor | None = None,
        wanted_BQ: Tensor | None = None,
    ) -> Tensor:
        """Context vectors z [B, N, d], or [B, Q, d] of the ``wanted`` tokens only, from the encoder's output."""
        buffer, length = self.config.buffer_size, self.config.seq_len
        x = self.decoder_embed(encoded)
        # One place more than the image has: padded rows are written there and cut off.
        canvas = self.mask_token.to(x.dtype).expand(len(x), length + 1, -1)
        if counts_B is not None:
            real = torch.arange(visible_BV.shape[1], device=counts_B.device) < counts_B[:, None]
            visible_BV = visible_BV.where(real, length)
        index = visible_BV[..., None].expand(-1, -1, x.shape[-1])
        x = torch.cat([x[:, :buffer], canvas.scatter(1, index, x[:, buffer:])[:, :length]], dim=1)
        x = x + self.decoder_pos_embed_learned
        *blocks, last = self.decoder_blocks
        for block in blocks:
            x = block(x)
        # No other position looks at the last block's result.
        x = self.decoder_norm(last(x, wanted_BQ=None if wanted_BQ is None else buffer + wanted_BQ))
        if wanted_BQ is None:
            return x[:, buffer:] + self.diffusion_pos_embed_learned
        return x + self.diffusion_pos_embed_learned[0, wanted_BQ]

    def forward(
        self,
        tokens_BND: Tensor,
        visible_BV: Tensor,
        labels_B: Tensor,
        counts_B: Tensor | None = None,
        wanted_BQ: Tensor | None = None,
    ) -> Tensor:
        """Context vectors z [B, N, d], or [B, Q, d] of the ``wanted`` tokens (raster indices) only.

        Other arguments as for `encode`, labels below 0 meaning "no class".
        """
        encoded = self.encode(tokens_BND, visible_BV, self.class_embedding(labels_B), counts_B)
        return self.decode(encoded, visible_BV, counts_B, wanted_BQ)
