"""Rows of features of which only some are in memory: a tensor, or a temporary file for sets of any size.

Shape legend: n images of a set, D features.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from spd_core.quality.frechet import Moments, frechet_distance, frechet_of_features

#: Rows read at once where all of them are needed.
BLOCK = 2048
_ITEM = 4  # bytes of a float32


class Rows(Protocol):
    """Features float32 [n, D], read piece by piece."""

    @property
    def dims(self) -> int:
        """D."""
        ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        """Rows from ``start`` to before ``stop``."""
        ...

    def take(self, index: Tensor) -> Tensor:
        """Rows of these numbers, in their order."""
        ...


class TensorRows:
    """Rows that are in memory."""

    def __init__(self, rows_nD: Tensor) -> None:
        self._rows = rows_nD

    @property
    def dims(self) -> int:
        return self._rows.shape[1]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> Tensor:
        return self._rows[start:stop]

    def take(self, index: Tensor) -> Tensor:
        return self._rows[index]


class FileRows:
    """Rows in a temporary file without a name, which goes when they are let go of."""

    def __init__(self, dims: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="spd-features-")  # noqa: SIM115 - it lives as long as the rows
        self._dims, self._count = dims, 0

    @property
    def dims(self) -> int:
        return self._dims

    def __len__(self) -> int:
        return self._count

    def append(self, rows_nD: Tensor) -> None:
        """Adds rows at the end.

        Raises:
            ValueError: rows of another width.
        """
        if rows_nD.dim() != 2 or rows_nD.shape[1] != self._dims:
            raise ValueError(f"features: got {list(rows_nD.shape)}, allowed: [n, {self._dims}]")
        self._file.write(np.ascontiguousarray(rows_nD.float().numpy()).tobytes())
        self._file.flush()
        self._count += len(rows_nD)

    def read(self, start: int, stop: int) -> Tensor:
        stop = min(stop, self._count)
        width = self._dims * _ITEM
        raw = bytearray(os.pread(self._file.fileno(), max(0, stop - start) * width, start * width))
        return torch.frombuffer(raw, dtype=torch.float32).view(-1, self._dims) if raw else torch.zeros(0, self._dims)

    def take(self, index: Tensor) -> Tensor:
        parts = [self.read(row, row + 1) for row in index.tolist()]
        return torch.cat(parts) if parts else torch.zeros(0, self._dims)


def as_rows(rows: Rows | Tensor) -> Rows:
    """A tensor as rows; rows as they are."""
    return TensorRows(rows) if isinstance(rows, Tensor) else rows


def blocks(rows: Rows, size: int = BLOCK) -> Iterator[Tensor]:
    """All rows in order, so many at a time."""
    for start in range(0, len(rows), size):
        yield rows.read(start, min(start + size, len(rows)))


class RunningMoments:
    """Moments of rows that pass by; one D x D matrix is held."""

    def __init__(self, dims: int) -> None:
        self._count = 0
        self._sum = torch.zeros(dims, dtype=torch.float64)
        self._outer = torch.zeros(dims, dims, dtype=torch.float64)

    def add(self, rows_nD: Tensor) -> None:
        """Takes in some rows."""
        x = rows_nD.double()
        self._count += len(x)
        self._sum += x.sum(dim=0)
        # In place: a new D x D matrix for every block would cost more than its sums.
        self._outer.addmm_(x.T, x)

    def moments(self) -> Moments:
        """Of the rows so far; they must not be added to afterwards."""
        return Moments(self._count, self._sum, self._outer)


def moments(rows: Rows) -> Moments:
    """Moments of all rows, block by block."""
    total = RunningMoments(rows.dims)
    for block in blocks(rows):
        total.add(block)
    return total.moments()


def frechet_of_rows(rows: Rows, reference: Moments) -> float:
    """Frechet distance of rows to a reference, the faster way for their number.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(rows) <= rows.dims:
        return frechet_of_features(rows.read(0, len(rows)), reference)
    return frechet_distance(moments(rows), reference)
