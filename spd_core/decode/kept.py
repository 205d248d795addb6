"""What a device keeps between two decodings: caches of keys and values, and what was recorded on them.

Recording costs as much as decoding some tokens, and graphs hold the addresses of the caches they work on; so both stay
for the next decoding of the same kind. The newest is kept, and its memory is free again before another is made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

import torch

from spd_core import capture

Value = TypeVar("Value")

_KEPT: dict[Hashable, object] = {}


def kept(key: Hashable, device: torch.device, make: Callable[[], Value]) -> Value:
    """What ``make`` makes, or made for the same key the last time; a device that records nothing keeps nothing.

    Args:
        key: all that it depends on; the parts live as long as what is kept.
        device: where it lies.
        make: makes it.
    """
    if device.type not in capture.RECORDED:
        return make()
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = make()
    return cast(Value, _KEPT[key])


def release() -> None:
    """Gives back what is kept."""
    _KEPT.clear()
