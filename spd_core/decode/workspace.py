"""The workspace of a device: KV caches, and the CUDA graphs that were recorded on them.

Recording costs as much as decoding some tokens, and a graph holds the addresses of the caches that it works on. So the
next decoding of the same kind reuses both. A device has one workspace at a time: the old one is freed before another is
made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

import torch

from spd_core import capture

Value = TypeVar("Value")

_WORKSPACE: dict[Hashable, object] = {}


def workspace(key: Hashable, device: torch.device, make: Callable[[], Value]) -> Value:
    """The workspace of this key, made by ``make`` if the last one had another key.

    A device that records no graphs reuses nothing: there it is made anew by every call.

    Args:
        key: all that it depends on; the objects in it live as long as the workspace.
        device: where it lies.
        make: makes it.
    """
    if device.type not in capture.RECORDED:
        return make()
    if key not in _WORKSPACE:
        _WORKSPACE.clear()
        _WORKSPACE[key] = make()
    return cast(Value, _WORKSPACE[key])


def release() -> None:
    """Frees the workspace."""
    _WORKSPACE.clear()
