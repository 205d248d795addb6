"""The cache of keys and values of a batch of sequences, allocated once and never copied as a whole.

A large batch on a GPU is bound by reading it. So a pass reads the slots that anything may be in, in steps of `REACH`
slots, and all of its positions share one reading; an image that leaves gives its row to another one; and a smaller
batch is the first rows of the same cache. A CPU is bound by other things and reads all slots: how many there are moves
the last bits of its sums.

Shape legend: L layers, B rows, H attention heads, S slots, M positions of one pass, d model dims.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor

from spd_core import capture

#: Slots that a pass reads are a multiple of this: few shapes, each of which a device records on its own, and at most
#: so many slots too many.
REACH = 32
#: The number of slots is a multiple of this: masks of other widths would be padded, by a copy in every layer.
ALIGNED = 16


def reach_of(slots: int, device: torch.device) -> int:
    """How many slots, or all that there are, a pass reads that must read the first ``slots``."""
    return -(-slots // REACH) * REACH if device.type in capture.RECORDED else sys.maxsize


class LayerCache(NamedTuple):
    """One layer's keys and values, [B, H, S, d / H], and of them what a pass reads, [B, H, reach, d / H]."""

    keys: Tensor
    values: Tensor
    read_keys: Tensor
    read_values: Tensor

    def extend(self, index_BHMd: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the keys and values of a pass to their slots and returns all that it reads."""
        self.keys.scatter_(2, index_BHMd, k.to(self.keys.dtype))
        self.values.scatter_(2, index_BHMd, v.to(self.values.dtype))
        return self.read_keys, self.read_values


class KvCache:
    """Keys and values of every layer, row and slot.

    A pass at position p reads slots 0 to p only. So a row is rolled back by giving the next pass a smaller first
    position: what lies beyond is never read before it is written again. The last slot takes what lies past the image.

    Args:
        layers, rows, heads, slots, dims: L, B, H, S (a GPU has a few more) and d / H.
        dtype, device: of the keys and values.
    """

    def __init__(
        self, layers: int, rows: int, heads: int, slots: int, dims: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        aligned = ALIGNED if device.type in capture.RECORDED else 1
        self.slots = -(-slots // aligned) * aligned
        self._whole = torch.zeros(layers, 2, rows, heads, self.slots, dims, dtype=dtype, device=device)
        self.shrink(rows)

    @property
    def dtype(self) -> torch.dtype:
        return self._whole.dtype

    @property
    def index_shape(self) -> tuple[int, int, int, int]:
        """That of slot indices [B, 1, M, 1] in `LayerCache.extend`, -1 for what they bring."""
        return (-1, self._whole.shape[3], -1, self._whole.shape[5])

    def shrink(self, rows: int) -> None:
        """Leaves the first ``rows`` rows, of those there were at first."""
        self.rows = rows
        self._used = self._whole[:, :, :rows]
        self._read: dict[int, tuple[LayerCache, ...]] = {}

    def layers(self, reach: int) -> tuple[LayerCache, ...]:
        """Every layer for a pass that reads the first ``reach`` slots, or all."""
        if reach not in self._read:
            pairs = [layer.unbind() for layer in self._used.unbind()]
            self._read[reach] = tuple(LayerCache(k, v, k[:, :, :reach], v[:, :, :reach]) for k, v in pairs)
        return self._read[reach]

    def keys(self, layer: int) -> Tensor:
        """[B, H, S, d / H]."""
        return self._used[layer, 0]

    def values(self, layer: int) -> Tensor:
        """[B, H, S, d / H]."""
        return self._used[layer, 1]

    def move(self, source_BM: Tensor, goal_BM: Tensor) -> None:
        """Copies slots ``source_BM`` of every row to ``goal_BM``; all are read before any is written."""
        row = torch.arange(len(source_BM), device=source_BM.device)[:, None]
        self._used[:, :, row, :, goal_BM] = self._used[:, :, row, :, source_BM]

    def put(self, rows_R: Tensor, part: KvCache) -> None:
        """Writes all slots of a smaller cache of R rows to the first slots of ``rows_R``."""
        self._used[:, :, rows_R, :, : part.slots] = part._used

    def copy_rows(self, source_M: Tensor, goal_M: Tensor) -> None:
        """Copies rows ``source_M`` to ``goal_M``, which are others."""
        self._used[:, :, goal_M] = self._used[:, :, source_M]
