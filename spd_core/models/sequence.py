"""What decoders ask of a model that makes an image's tokens one after another, whatever family it is of."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch
from torch import Tensor, nn

from spd_core.models.head import Head
from spd_core.models.kv import KvCache


class SequenceConfig(Protocol):
    """Sizes of such a model."""

    @property
    def seq_len(self) -> int: ...

    @property
    def token_dim(self) -> int: ...

    @property
    def embed_dim(self) -> int: ...


class SequenceModel(nn.Module):
    """A context network with a cache, called as ``model(previous, labels, first, cache, reach)``, and a head."""

    config: SequenceConfig
    head: Head

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @abstractmethod
    def cache(self, batch: int, dtype: torch.dtype = torch.float32) -> KvCache:
        """An empty cache for ``batch`` rows."""

    @abstractmethod
    def forward(
        self,
        previous_BMD: Tensor,
        labels_B: Tensor,
        first_B: Tensor | None = None,
        cache: KvCache | None = None,
        reach: int | None = None,
    ) -> Tensor:
        """Context vectors [B, M, Z] of tokens first, first + 1, ...; each position reads the token before it."""
