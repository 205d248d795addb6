"""A reader runs a model's context network at a law: here are its labels, its cache, and the rows of the slots.

An image has one row or, under guidance, two: with its class and without. They lie next to each other, so that the rows
of the first slots are the first rows.

Shape legend: A slots, G rows per image, M positions of one pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spd_core.decode.slots import Change, moved
from spd_core.law import SamplerLaw
from spd_core.models.kv import KvCache


class CachedReader:
    """Labels and cache of the slots. Both keep their memory addresses, for recorded graphs hold them.

    Args:
        law: what is sampled.
        labels_A: class labels; below 0: no class.
        cache: makes one of so many rows and a type.
    """

    def __init__(self, law: SamplerLaw, labels_A: Tensor, cache: Callable[[int, torch.dtype], KvCache]) -> None:
        self.low_precision = law.dtype == "bfloat16"
        self.copies = 1 + (law.cfg != 1.0)
        self.cache = cache(self.copies * len(labels_A), torch.bfloat16 if self.low_precision else torch.float32)
        self._labels_AG = labels_A.new_full((len(labels_A), self.copies), -1)
        self.start(labels_A)

    def start(self, labels_A: Tensor) -> None:
        """Gives every slot to an image, which begins at position 0; older entries of the cache are never read."""
        self._labels_AG[:, 0] = labels_A
        self.labels = self._labels_AG  # [A, G]
        self.cache.shrink(self.labels.numel())

    def change(self, change: Change, labels: Tensor) -> None:
        """Gives slots to other images, of ``labels`` [newcomers], and moves or gives up slots."""
        self.restart(change.taken, labels)
        self.labels = moved(self.labels, change)
        if len(change.source):
            self.cache.copy_rows(self._rows(change.source), self._rows(change.goal))
        self.cache.shrink(self.labels.numel())

    def restart(self, slots: Tensor, labels: Tensor) -> None:
        """Gives ``slots`` to images of other labels."""
        self.labels[slots, 0] = labels

    def of_rows(self, of_slots: Tensor) -> Tensor:
        """Repeats values of the slots for each of their rows."""
        if self.copies == 1:
            return of_slots
        return of_slots[:, None].expand(-1, self.copies, *of_slots.shape[1:]).flatten(0, 1)

    def of_copies(self, of_rows: Tensor) -> Tensor:
        """[G, A, ...] of values of the rows."""
        return of_rows.unflatten(0, (-1, self.copies)).transpose(0, 1)

    def _rows(self, slots: Tensor) -> Tensor:
        return (slots[:, None] * self.copies + torch.arange(self.copies, device=slots.device)).flatten()
