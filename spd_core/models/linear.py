"""A Linear whose float32 inference on a CPU runs in oneDNN where the product is large enough to pay for the call.

torch sends float32 products to MKL, which on AMD processors stays at AVX2; oneDNN, in the same wheel, uses AVX-512. It
wants the weight in another order. Reordering costs as much as a small product, so a prepacked weight is cached.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Multiply-adds from which oneDNN's cost per call (a few microseconds more than MKL's) is earned back.
WORTH_IT = 300_000
#: The same if the weight is not prepacked.
WORTH_REORDERING = 800_000
#: Largest weight that is prepacked; for larger ones the products outweigh the reordering.
MOST_PREPACKED = 1 << 20
#: Rows that weights are prepacked for. They serve every number of rows.
_ROWS = 8


def _onednn_linear() -> Any | None:
    # The operator torch's own compiler emits for a frozen Linear; absent from builds without oneDNN.
    if not torch.backends.mkldnn.is_available():
        return None
    if getattr(torch.ops.mkldnn, "_reorder_linear_weight", None) is None:
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_ONEDNN = _onednn_linear()


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters and, up to rounding, the same results.

    Where the weight is bfloat16 (`spd_core.precision`), the input is rounded to it and the result is bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        onednn, weight = _ONEDNN, self.weight
        if x.device.type != "cpu" or x.dtype is not torch.float32 or weight.dtype is not torch.float32:
            return self._product(x, weight)
        if (
            onednn is None
            or (work := x.numel() * self.out_features) < WORTH_IT
            or x.numel() == self.in_features  # one row: a plain pass over the weight is as fast
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
        ):
            return F.linear(x, weight, self.bias)
        packed = _prepacked(self)
        if packed is None and work < WORTH_REORDERING:
            return F.linear(x, weight, self.bias)
        return onednn(x, weight if packed is None else packed, self.bias, "none", [], "")

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if weight.dtype is torch.bfloat16:
            x = x.to(torch.bfloat16)
        return F.linear(x, weight, self.bias)


class Float32Linear(Linear):
    """A `Linear` that is float32 at every precision of a law, never TF32: what it makes enters a density."""

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        if x.device.type == "cpu" or not torch.backends.cuda.matmul.allow_tf32:
            return F.linear(x.float(), weight, self.bias)
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            return F.linear(x.float(), weight, self.bias)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = True


#: Prepacked weights, with the address and version of the weight they were made from.
_PREPACKED: WeakKeyDictionary[Linear, tuple[int, int, Tensor]] = WeakKeyDictionary()


def _prepacked(layer: Linear) -> Tensor | None:
    """The layer's weight in oneDNN's order; None if it is too large to be cached."""
    weight = layer.weight
    if weight.numel() > MOST_PREPACKED or weight.is_inference() or weight.dtype is not torch.float32:
        return None
    made = _PREPACKED.get(layer)
    if made is None or made[:2] != (weight.data_ptr(), weight._version):
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
        made = _PREPACKED[layer] = (weight.data_ptr(), weight._version, reordered)
    return made[2]
