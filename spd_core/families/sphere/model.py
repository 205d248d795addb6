"""The transformer of SphereAR: class positions and tokens on a sphere in raster order give each next token's context.

Modules, names and state-dict keys are those of the public checkpoints. The rotary table is no part of them.

Shape legend: B images, N tokens of an image, M positions of one pass, C class positions, D token dims, d model dims.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from spd_core.families.sphere.blocks import Block, Positions, RMSNorm, feed_forward_dims, rotary_table
from spd_core.families.sphere.head import FlowHead
from spd_core.models.grid import ModelConfig
from spd_core.models.kv import KvCache
from spd_core.models.linear import Linear
from spd_core.models.sequence import SequenceModel


class SphereConfig(ModelConfig):
    """Sizes of a model; the defaults are SphereAR-B."""

    dim: int = Field(768, gt=0)
    n_layer: int = Field(24, gt=0)
    n_head: int = Field(12, gt=0)
    diff_dim: int = Field(768, gt=0, description="width of the flow head")
    diff_layers: int = Field(6, gt=0, description="residual blocks of the flow head")
    diff_adanln_layers: int = Field(2, gt=0, description="modulations of the flow head, shared by consecutive blocks")
    latent_dim: int = Field(16, gt=1, description="token dims")
    resolution: int = Field(256, gt=0, description="pixels of an image side")
    patch_size: int = Field(16, gt=0, description="pixels of a token's side")
    cls_token_num: int = Field(16, gt=0, description="positions that a class takes")
    num_classes: int = Field(1000, gt=0, description="the null class has this id")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.dim % self.n_head or self.dim // self.n_head % 4:
            raise ValueError(f"dim a multiple of 4 n_head = {4 * self.n_head}, got {self.dim}")
        if self.resolution % self.patch_size:
            raise ValueError(f"resolution a multiple of patch_size = {self.patch_size}, got {self.resolution}")
        if self.diff_layers % self.diff_adanln_layers:
            wanted = self.diff_adanln_layers
            raise ValueError(f"diff_layers a multiple of diff_adanln_layers = {wanted}, got {self.diff_layers}")
        return self

    @property
    def grid(self) -> int:
        """Tokens per image side."""
        return self.resolution // self.patch_size

    @property
    def seq_len(self) -> int:
        return self.grid**2

    @property
    def token_dim(self) -> int:
        return self.latent_dim

    @property
    def embed_dim(self) -> int:
        """Dims of what the head reads of a token."""
        return self.dim

    @property
    def prefix(self) -> int:
        """Class positions before the one that token 0 is read at."""
        return self.cls_token_num - 1


#: The released models, by the letters of their names.
PRESETS = {
    "B": {"dim": 768, "n_layer": 24, "n_head": 12, "diff_dim": 768, "diff_layers": 6, "diff_adanln_layers": 2},
    "L": {"dim": 1024, "n_layer": 32, "n_head": 16, "diff_dim": 1024, "diff_layers": 8, "diff_adanln_layers": 2},
    "H": {"dim": 1280, "n_layer": 40, "n_head": 20, "diff_dim": 1280, "diff_layers": 12, "diff_adanln_layers": 3},
}


class Sphere(SequenceModel):
    """The model; `forward` gives what the head reads at every position it is asked for."""

    config: SphereConfig
    head: FlowHead

    def __init__(self, config: SphereConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.cls_embedding = nn.Embedding(c.num_classes + 1, c.cls_token_num * c.dim)
        self.proj_in = Linear(c.latent_dim, c.dim)
        self.emb_norm = RMSNorm(c.dim)
        self.layers = nn.ModuleList(Block(c.dim, c.n_head, feed_forward_dims(c.dim)) for _ in range(c.n_layer))
        self.norm = RMSNorm(c.dim)
        self.pos_for_diff = nn.Embedding(c.seq_len, c.dim)
        self.head = FlowHead(c.latent_dim, c.diff_dim, c.dim, c.diff_layers, c.diff_adanln_layers)
        self._rotary: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def rotary(self) -> Tensor:
        """`rotary_table` of class positions and tokens, on the model's device."""
        if self._rotary is None or self._rotary.device != self.device:
            c = self.config
            with torch.inference_mode(False):  # a table made while sampling must not bar later training
                self._rotary = rotary_table(c.cls_token_num, c.grid, c.dim // c.n_head).to(self.device)
        return self._rotary

    def cache(self, batch: int, dtype: torch.dtype = torch.float32) -> KvCache:
        """An empty cache for ``batch`` rows: the class positions, the tokens, and one slot for what lies past them.

        A pass that begins at token p reads the slots before it only, so a row is rolled back by a smaller first token.
        """
        c = self.config
        return KvCache(c.n_layer, batch, c.n_head, c.prefix + c.seq_len + 1, c.dim // c.n_head, dtype, self.device)

    def begin(self, cache: KvCache, rows_R: Tensor, labels_R: Tensor) -> None:
        """Gives rows of a cache to new images: writes the class positions before the one that token 0 is read at."""
        c, before = self.config, self.config.prefix
        if not before:
            return
        part = KvCache(c.n_layer, len(rows_R), c.n_head, before, c.dim // c.n_head, cache.dtype, self.device)
        slots = torch.arange(before, device=self.device).expand(len(rows_R), -1)
        self._run(self.emb_norm(self._classes(labels_R)[:, :-1]), slots, part)
        cache.put(rows_R, part)

    def forward(
        self,
        previous_BMD: Tensor,
        labels_B: Tensor,
        first_B: Tensor | None = None,
        cache: KvCache | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """What the head reads, [B, M, d], of tokens first, first + 1, ...

        Args:
            previous_BMD: for each token the one before it, of norm sqrt(D); not read for token 0.
            labels_B: class labels; a negative one is the null class.
            first_B: int64, each row's first token; None: 0. Tokens past the image's end are padding.
            cache: holds the class positions (`begin`) and every row's tokens before ``first_B``; gets these. None:
                there are none, and M <= N.
            reach: slots of the cache that are read, at least all that tokens of the image see; None: all.
        """
        return self.placed(self.contexts(previous_BMD, labels_B, first_B, cache, reach), first_B)

    def contexts(
        self,
        previous_BMD: Tensor,
        labels_B: Tensor,
        first_B: Tensor | None = None,
        cache: KvCache | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """`forward` without the table of positions that only the head reads."""
        count, before = previous_BMD.shape[1], self.config.prefix
        classes, tokens = self._classes(labels_B), self.proj_in(previous_BMD)
        if cache is None:
            x = torch.cat([classes, tokens[:, 1:]], dim=1)
            return self._run(self.emb_norm(x))[:, before:]
        first = torch.zeros_like(labels_B) if first_B is None else first_B
        place = first[:, None] + torch.arange(count, device=labels_B.device)
        x = torch.where((place == 0)[..., None], classes[:, -1:], tokens)
        return self._run(self.emb_norm(x), before + place.clamp(max=self.config.seq_len), cache, reach)

    def placed(self, context_BMd: Tensor, first_B: Tensor | None = None) -> Tensor:
        """Contexts of tokens first, first + 1, ... with their positions added."""
        place = torch.arange(context_BMd.shape[1], device=context_BMd.device)
        place = place if first_B is None else first_B[:, None] + place
        return context_BMd + self.pos_for_diff(place.clamp(max=self.config.seq_len - 1))

    def _classes(self, labels_B: Tensor) -> Tensor:
        """[B, C, d]."""
        c = self.config
        ids = torch.where(labels_B < 0, c.num_classes, labels_B)
        return self.cls_embedding(ids).view(-1, c.cls_token_num, c.dim)

    def _run(
        self, x_BMd: Tensor, slots_BM: Tensor | None = None, cache: KvCache | None = None, reach: int | None = None
    ) -> Tensor:
        """Through every block and the last norm; ``slots_BM`` are positions in the whole sequence."""
        if cache is None or slots_BM is None:
            at = Positions(self.rotary[None, : x_BMd.shape[1], None, None], causal=True)
            for block in self._blocks:
                x_BMd = block(x_BMd, at)
            return self.norm(x_BMd)
        reach = min(reach or cache.slots, cache.slots)
        unseen = torch.arange(reach, device=x_BMd.device) > slots_BM[..., None]
        mask = torch.zeros(unseen.shape, dtype=cache.dtype, device=x_BMd.device).masked_fill_(unseen, -torch.inf)
        at = Positions(self.rotary[slots_BM][:, :, None, None], slots=slots_BM, mask=mask[:, None])
        for block, layer in zip(self._blocks, cache.layers(reach), strict=True):
            x_BMd = block(x_BMd, at, layer)
        return self.norm(x_BMd)

    @property
    def _blocks(self) -> Iterator[Block]:
        for block in self.layers:
            if isinstance(block, Block):
                yield block
