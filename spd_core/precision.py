"""The arithmetic of a law: of the transformers' and the head's products; everything else stays float32.

``float32`` means IEEE products. ``tf32`` rounds the factors of float32 products to 10 bits, on tensor cores; a CPU has
none, and computes in float32. ``bfloat16`` holds the weights of the products in bfloat16 and rounds their inputs and
results to it; sums over layers, normalisations, modulations, the head's two projections of a token, everything of the
diffusion process and every density and test stay float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn

from spd_core.law import Precision
from spd_core.models.linear import Float32Linear

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Inside, float32 products and convolutions on a CUDA device are those of a law; before and after, as they were."""
    allowed = precision == "tf32"
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32, convolutions.allow_tf32 = allowed, allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def at_precision(model: Model, precision: Precision) -> Model:
    """The model for a law of this precision: itself, or its twin in bfloat16, which is made once and kept with it."""
    if precision != "bfloat16" or model in _ROUNDED:
        return model
    state, made = _state(model), _TWINS.get(model)
    if made is None or made[0] != state:
        made = _TWINS[model] = (state, rounded(model))
    twin = made[1]
    if not isinstance(twin, type(model)):
        raise TypeError(f"expected a twin of {type(model).__name__}, got {type(twin).__name__}")
    return twin


#: Twins in bfloat16 by model, with the addresses and versions of the weights they were made from.
_TWINS: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], nn.Module]] = WeakKeyDictionary()


#: Twins and their parts.
_ROUNDED: WeakSet[nn.Module] = WeakSet()


def _state(model: nn.Module) -> tuple[tuple[int, int], ...]:
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())


def rounded(model: Model) -> Model:
    """The model with the weights of its products in bfloat16; everything else is shared with it.

    Autocast would round them to the same numbers, but again in every pass: one position's pass is bound by reading the
    weights, and would read them in float32. What is a `Float32Linear` stays.
    """
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    with torch.inference_mode(False), torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.Linear) and not isinstance(module, Float32Linear):
                for name, value in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(value.to(torch.bfloat16), requires_grad=False))
    _ROUNDED.update(twin.modules())
    return twin
