"""Finds repeated ids among any number of them, in little memory and with one temporary file."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BUCKETS = 256
_ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])


class RepeatedIds:
    """Ids that are the same but for their case: they name files, and some file systems do not tell cases apart.

    16-byte hashes are written batch by batch, each batch sorted by bucket; a bucket is then read from all batches and
    sorted by itself.

    Raises:
        OSError: the temporary file cannot be made or written.
    """

    def __enter__(self) -> RepeatedIds:
        self._file: Any = None
        self._ends: list[NDArray[np.int64]] = []  # of the buckets of each batch, in rows of the whole file
        self._rows = 0
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, ids: Sequence[str], first: int) -> None:
        """Takes in the ids of consecutive rows, of which ``first`` is the first."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        hashed = b"".join(hashlib.blake2b(name.lower().encode(), digest_size=16).digest() for name in ids)
        records = np.empty(len(ids), dtype=_ROW)
        pairs = np.frombuffer(hashed, dtype="<u8").reshape(-1, 2)
        records["high"], records["low"] = pairs[:, 0], pairs[:, 1]
        records["row"] = first + np.arange(len(ids))
        bucket = (pairs[:, 0] % _BUCKETS).astype(np.int64)
        self._file.write(records[np.argsort(bucket, kind="stable")].tobytes())
        self._ends.append(self._rows + np.cumsum(np.bincount(bucket, minlength=_BUCKETS)))
        self._rows += len(ids)

    def _bucket(self, number: int) -> NDArray[Any]:
        parts, begin = [], 0
        for ends in self._ends:
            start = int(ends[number - 1]) if number else begin
            self._file.seek(start * _ROW.itemsize)
            parts.append(self._file.read((int(ends[number]) - start) * _ROW.itemsize))
            begin = int(ends[-1])
        return np.frombuffer(b"".join(parts), dtype=_ROW)

    def first_repeated(self) -> tuple[int, int] | None:
        """Both rows of the repetition that ends first; None: all ids are different."""
        found: tuple[int, int] | None = None
        for number in range(_BUCKETS if self._ends else 0):
            records = self._bucket(number)
            records = records[np.lexsort((records["row"], records["low"], records["high"]))]
            same = (records["high"][1:] == records["high"][:-1]) & (records["low"][1:] == records["low"][:-1])
            for at in np.flatnonzero(same):
                both = int(records["row"][at]), int(records["row"][at + 1])
                found = both if found is None or both[1] < found[1] else found
        return found
