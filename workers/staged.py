"""A shard between its two halves: decoded on the device, not yet encoded on the host.

Shape legend: n images of the shard, B images of a batch, H, W pixels, C channels.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spd_core.decode import Decoded

#: What was measured of some images for the quality figures: rows by name, by the key of what measured them.
Measured = dict[str, dict[str, Tensor]]


class HostCopy:
    """A tensor on its way to the host. From a GPU it goes into pinned memory while the GPU works on.

    Args:
        source: on any device; one on the CPU is taken as it is.
    """

    def __init__(self, source: Tensor) -> None:
        self._host, self._done = source, None
        if source.device.type == "cuda":
            self._host = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._host.copy_(source, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def wait(self) -> Tensor:
        """The tensor on the CPU, once it is all there."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


@dataclass
class DecodedShard:
    """What the device made of a shard, and what the host has made of that so far."""

    labels: Tensor  #: int64 [n] on the CPU
    decoded: Decoded
    finite: HostCopy  #: whether all its tokens are numbers
    copies: deque[HostCopy]  #: uint8 images [B, H, W, C], batch by batch, those that are not encoded yet
    features: list[NDArray[np.float16]]  #: [B, 1280], batch by batch
    measured: list[Measured]  #: for the quality figures, batch by batch
    seconds: defaultdict[str, float]  #: at work, by span; of encoding, summed over its threads
    started: str  #: UTC, ISO 8601
    began: float  #: `time.perf_counter` of this process when decoding started
    encoded: list[bytes] = field(default_factory=list)
    agrees: list[Tensor] = field(default_factory=list)  #: bool [B], batch by batch


@contextmanager
def timed(seconds: defaultdict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds spent inside to those of a span."""
    began = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - began


def joined(parts: Sequence[Measured]) -> Measured:
    """What was measured of batches, one after the other."""
    if not parts:
        return {}
    return {
        key: {name: torch.cat([part[key][name] for part in parts]) for name in rows} for key, rows in parts[0].items()
    }
