"""Class-conditional image model over discrete codes (LlamaGen, Sun et al. 2024, arXiv:2406.06525), and its EAGLE draft.

A pre-norm LLaMA decoder without biases over the sequence [class token, code 0, code 1, ...] in raster order: what is
read at position j, the class or code j - 1, predicts code j. Modules, names and state-dict keys are those of the public
checkpoints.

The rotary table is two-dimensional, and its row for the class token is zero in cosine and sine: there query and key
become zero vectors, so every code attends to the class token with a score of zero. The public weights were trained that
way.

`EagleDraft` (Li et al. 2024, arXiv:2401.15077) predicts the target's next feature from its last one and the next code
with one decoder layer; the target's output layer turns it into codes.

Shape legend: B images, N codes of an image, M positions of one pass, V codes of the codebook, d model dims, H attention
heads, S slots of the cache, T nodes of a draft tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from spd_core.models.grid import ModelConfig
from spd_core.models.kv import KvCache, LayerCache
from spd_core.models.linear import Linear
from spd_core.models.tree import Tree, ancestors, depths

ROPE_BASE = 10_000.0
NORM_EPS = 1e-5


class LlamaGenConfig(ModelConfig):
    """Sizes of a model under the public names."""

    dim: int = Field(768, gt=0, le=65536)
    n_layer: int = Field(12, gt=0, le=1024)
    n_head: int = Field(12, gt=0, le=65536)
    vocab_size: int = Field(16384, gt=1, le=1 << 24, description="codes")
    block_size: int = Field(256, gt=0, le=1 << 16, description="codes of an image, a square")
    num_classes: int = Field(1000, gt=0, le=1_000_000, description="the null class has this id")
    multiple_of: int = Field(256, gt=0, le=65536, description="the feed-forward width is rounded up to this")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.dim % self.n_head or self.dim // self.n_head % 4:
            raise ValueError(f"dim a multiple of 4 n_head = {4 * self.n_head}, got {self.dim}")
        if self.grid**2 != self.block_size:
            raise ValueError(f"block_size a square, got {self.block_size}")
        return self

    @property
    def grid(self) -> int:
        """Codes per image side."""
        return round(self.block_size**0.5)

    @property
    def seq_len(self) -> int:
        return self.block_size

    @property
    def ffn_dim(self) -> int:
        wanted = int(8 * self.dim / 3)
        return -(-wanted // self.multiple_of) * self.multiple_of


#: The released class-conditional models, by the letters of their names.
PRESETS = {
    "B": {"n_layer": 12, "n_head": 12, "dim": 768},
    "L": {"n_layer": 24, "n_head": 16, "dim": 1024},
    "XL": {"n_layer": 36, "n_head": 20, "dim": 1280},
    "XXL": {"n_layer": 48, "n_head": 24, "dim": 1536},
    "3B": {"n_layer": 24, "n_head": 32, "dim": 3200},
}


class EagleConfig(BaseModel):
    """Sizes of an EAGLE draft; width, codes and grid are its target's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    n_head: int = Field(12, gt=0, le=65536)
    multiple_of: int = Field(256, gt=0, le=65536)


def rotary_table(config: LlamaGenConfig) -> Tensor:
    """complex64 [1 + N, d / H / 2]: cos + i sin of each position's angles, half its row's, half its column's."""
    half = config.dim // config.n_head // 2
    rates = ROPE_BASE ** (-torch.arange(0, half, 2, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(config.grid, dtype=torch.float32), rates)  # [G, half / 2]
    rows = angles.repeat_interleave(config.grid, dim=0)
    columns = angles.repeat(config.grid, 1)
    table = torch.polar(torch.ones(config.block_size, half), torch.cat([rows, columns], dim=1))
    return torch.cat([torch.zeros(1, half, dtype=table.dtype), table])


@dataclass(frozen=True)
class Positions:
    """Where the M positions of a pass lie, and what they see."""

    rotary: Tensor  #: complex64 [B, M, 1, 1, d / H / 2]
    slots: Tensor | None = None  #: int64 [B, H, M, d / H] of the cache; None: no cache, the pass is a whole sequence
    mask: Tensor | None = None  #: [B, 1, M, slots read]: 0 where a position sees a slot, else -inf


class RMSNorm(nn.Module):
    """x / rms(x) times a weight, computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)  # one kernel
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + NORM_EPS)).type_as(x) * self.weight


class Attention(nn.Module):
    """Causal attention with rotary positions that can append to a cache."""

    def __init__(self, dim: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.wqkv = Linear(dim, 3 * dim, bias=False)
        self.wo = Linear(dim, dim, bias=False)

    def forward(self, x_BMd: Tensor, at: Positions, cache: LayerCache | None) -> Tensor:
        batch, length, dims = x_BMd.shape
        qkv = self.wqkv(x_BMd).view(batch, length, 3, self.n_head, -1)
        pairs = torch.view_as_complex(qkv[:, :, :2].float().unflatten(-1, (-1, 2)))
        turned = torch.view_as_real(pairs * at.rotary).flatten(-2).type_as(qkv)
        q, k = turned.permute(2, 0, 3, 1, 4)
        v = qkv[:, :, 2].transpose(1, 2)
        if cache is None or at.slots is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = cache.extend(at.slots, k, v)
            out = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=at.mask)
        return self.wo(out.transpose(1, 2).reshape(batch, length, dims))


class FeedForward(nn.Module):
    """w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = Linear(dim, hidden, bias=False)
        self.w3 = Linear(dim, hidden, bias=False)
        self.w2 = Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, residual."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.attention = Attention(config.dim, config.n_head)
        self.feed_forward = FeedForward(config.dim, config.ffn_dim)
        self.attention_norm = RMSNorm(config.dim)
        self.ffn_norm = RMSNorm(config.dim)

    def forward(self, x_BMd: Tensor, at: Positions, cache: LayerCache | None) -> Tensor:
        h = x_BMd + self.attention(self.attention_norm(x_BMd), at, cache)
        return h + self.feed_forward(self.ffn_norm(h))


class ClassEmbedding(nn.Module):
    """The first input of the sequence; the last row is the null class."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, labels_B: Tensor) -> Tensor:
        null = self.embedding_table.num_embeddings - 1
        return self.embedding_table(torch.where(labels_B < 0, null, labels_B))


class CodeReader(nn.Module):
    """What both models share: positions, masks and caches of a stack of blocks."""

    #: the first position that is read; slots of the cache before it stay empty
    earliest = 0

    def __init__(self, config: LlamaGenConfig, layers: int) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config) for _ in range(layers))
        self._rotary: Tensor | None = None

    @property
    def _blocks(self) -> Iterator[Block]:
        for block in self.layers:
            if isinstance(block, Block):
                yield block

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def rotary(self) -> Tensor:
        """`rotary_table` on the model's device; no part of the weights."""
        if self._rotary is None or self._rotary.device != self.device:
            with torch.inference_mode(False):  # a table made while sampling must not bar later training
                self._rotary = rotary_table(self.config).to(self.device)
        return self._rotary

    def cache(self, batch: int, nodes: int = 1, dtype: torch.dtype = torch.float32) -> KvCache:
        """An empty cache for ``batch`` rows and passes of at most ``nodes`` positions.

        Slot = position for what is decided; the nodes of a tree are written at slots first, first + 1, ... where first
        is node 0's position. After the round `KvCache.move` brings accepted nodes to the slots of their positions.
        """
        c = self.config
        slots, layers = c.block_size + nodes, len(self.layers)
        return KvCache(layers, batch, c.n_head, slots, c.dim // c.n_head, dtype, self.device)

    def positions(self, first_B: Tensor, cache: KvCache, tree: Tree, nodes: Sequence[int], reach: int) -> Positions:
        """Of the nodes of a tree whose node 0 lies at ``first_B``, in a pass that reads ``reach`` slots."""
        device = first_B.device
        low, high = nodes[0], nodes[-1] + 1
        depth = depths(tree, device)[low:high]
        slot = (first_B[:, None] + torch.arange(low, high, device=device)).clamp(max=cache.slots - 1)
        position = (first_B[:, None] + depth).clamp(max=self.config.block_size)
        slots = torch.arange(reach, device=device)
        place = slots - first_B[:, None]  # [B, S] node at each slot
        if tree.is_chain:
            sees = place[:, None] <= depth[:, None]
        else:
            known = ancestors(tree, device)[low:high, place.clamp(0, len(tree.parents))].transpose(0, 1)
            sees = (place < 0)[:, None] | (known & (place <= len(tree.parents))[:, None])
        if self.earliest:
            sees = sees & (slots >= self.earliest)
        mask = torch.zeros(sees.shape, dtype=cache.dtype, device=device).masked_fill_(~sees, -torch.inf)
        index = slot[:, None, :, None].expand(cache.index_shape)
        return Positions(self.rotary[position][:, :, None, None], index, mask[:, None])

    def whole(self, length: int) -> Positions:
        """Of the first ``length`` positions, without a cache."""
        return Positions(self.rotary[None, :length, None, None])

    def run(self, x_BMd: Tensor, at: Positions, cache: KvCache | None, reach: int = 0) -> Tensor:
        """Through every block, which are all that differs between positions."""
        layers = [None] * len(self.layers) if cache is None else cache.layers(reach)
        for block, layer in zip(self._blocks, layers, strict=True):
            x_BMd = block(x_BMd, at, layer)
        return x_BMd


class LlamaGen(CodeReader):
    """The model; `forward` gives the features that `logits` reads the next code from."""

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__(config, config.n_layer)
        self.cls_embedding = ClassEmbedding(config.num_classes, config.dim)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.norm = RMSNorm(config.dim)
        self.output = Linear(config.dim, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        previous_BM: Tensor,
        labels_B: Tensor,
        first_B: Tensor | None = None,
        cache: KvCache | None = None,
        tree: Tree | None = None,
        nodes: Sequence[int] | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """Features [B, M, d] of the positions, normalised as `logits` needs them.

        Args:
            previous_BM: int64, for each position the code before it; not read at position 0.
            labels_B: class labels; a negative one stands for "no class".
            first_B: int64, each row's position of node 0; None: 0. Positions past the image's end are padding: their
                features mean nothing.
            cache: holds every row's positions before ``first_B``; gets these. None: there are none, and M <= N.
            tree: how the positions hang together; None: a chain.
            nodes: which of its nodes these are, ascending and without gap; None: all.
            reach: slots of the cache that are read, at least all that these positions see; None: all.
        """
        count = previous_BM.shape[1]
        x = self.tok_embeddings(previous_BM)
        if cache is None or first_B is None:
            first_B = torch.zeros_like(labels_B)
        tree = tree or Tree.chain(count - 1)
        reach = 0 if cache is None else min(reach or cache.slots, cache.slots)
        at = self.whole(count) if cache is None else self.positions(first_B, cache, tree, nodes or range(count), reach)
        if nodes is None or nodes[0] == 0:
            start = torch.where((first_B == 0)[:, None], self.cls_embedding(labels_B), x[:, 0])
            x = torch.cat([start[:, None], x[:, 1:]], dim=1)
        return self.norm(self.run(x, at, cache, reach))

    def logits(self, features: Tensor) -> Tensor:
        """float32 [..., V]."""
        return self.output(features).float()


class EagleDraft(CodeReader):
    """One decoder layer from the target's last feature and the next code to its next feature.

    Args:
        config: of the draft.
        target: sizes of its target.
    """

    earliest = 1

    def __init__(self, config: EagleConfig, target: LlamaGenConfig) -> None:
        super().__init__(target.model_copy(update={"n_head": config.n_head, "multiple_of": config.multiple_of}), 1)
        self.fc = Linear(2 * target.dim, target.dim)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        codes_BMd: Tensor,
        features_BMd: Tensor,
        first_B: Tensor | None = None,
        cache: KvCache | None = None,
        tree: Tree | None = None,
        nodes: Sequence[int] | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """Predicted target features [B, M, d] of positions at least 1.

        Args:
            codes_BMd: the target's embedding of the code before each position.
            features_BMd: the target's features of the position before, or this model's prediction of them.
            first_B, cache, tree, nodes, reach: as for `LlamaGen`; without a cache the positions are 1, 2, ..., M.
        """
        x = self.fc(torch.cat([features_BMd, codes_BMd], dim=-1))
        count = x.shape[1]
        if cache is None or first_B is None:
            whole = self.whole(count + 1)
            return self.run(x, Positions(whole.rotary[:, 1:]), None)
        tree, reach = tree or Tree.chain(count - 1), min(reach or cache.slots, cache.slots)
        return self.run(x, self.positions(first_B, cache, tree, nodes or range(count), reach), cache, reach)
