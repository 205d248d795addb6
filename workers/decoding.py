"""Images decoded in threads, some ahead of the network that they are for."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from workers.machine import usable_cpus

#: Pillow turns these into white or noise instead of their values.
_NOT_BYTES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def rgb(data: bytes) -> Tensor:
    """Pixels uint8 [H, W, 3] of an encoded image; grey becomes three equal channels, transparency is left out.

    Raises:
        ValueError: the bytes are not a whole image of 8 bits a channel.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode in _NOT_BYTES:
                raise ValueError(f"its pixels are of mode {picture.mode}, allowed: 8 bits a channel")
            return torch.from_numpy(np.array(picture.convert("RGB")))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image does not decode: {' '.join(str(error).split())}") from error


def in_batches(calls: Iterable[Callable[[], Tensor]], at_once: int) -> Iterator[list[Tensor]]:
    """What the calls return, in their order, so many at a time; those of the next batch are under way meanwhile."""
    ahead: deque[list[Future[Tensor]]] = deque()
    with ThreadPoolExecutor(usable_cpus()) as pool:
        waiting = iter(calls)
        while batch := list(islice(waiting, at_once)):
            ahead.append([pool.submit(call) for call in batch])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]
