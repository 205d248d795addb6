"""Weights of finished runs: read with their hash, put into a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def read_weights(path: Path) -> tuple[str, dict[str, Tensor]]:
    """sha256 and tensors of a weights file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a safetensors file.
    """
    raw = path.read_bytes()
    try:
        return hashlib.sha256(raw).hexdigest(), load(raw)
    except SafetensorError as error:
        raise ValueError(f"weights: {path} is not a safetensors file: {error}") from error


def fitted(model: Module, weights: dict[str, Tensor], path: Path) -> Module:
    """The model with the weights in it.

    Raises:
        ValueError: they are not those of such a model; ``path`` is where they come from.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"weights: {path} does not fit the recipe: {' '.join(str(error).split())[:200]}") from error
    return model
