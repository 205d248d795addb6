"""A Linear whose float32 inference on a CPU runs in oneDNN where the product is large enough to pay for the call.

torch sends float32 products to MKL, which on AMD processors stays at AVX2; oneDNN, in the same wheel, uses AVX-512.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Multiply-adds from which oneDNN's cost per call (a few microseconds more than MKL's) is earned back.
WORTH_IT = 800_000


def _onednn_linear() -> Any | None:
    # The operator torch's own compiler emits for a frozen Linear; absent from builds without oneDNN.
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_ONEDNN = _onednn_linear()


class Linear(nn.Linear):
    """`nn.Linear` with the same parameters and, up to rounding, the same results."""

    def forward(self, x: Tensor) -> Tensor:
        onednn = _ONEDNN
        if (
            onednn is None
            or x.device.type != "cpu"
            or x.dtype is not torch.float32
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or x.numel() * self.out_features < WORTH_IT
        ):
            return F.linear(x, self.weight, self.bias)
        return onednn(x, self.weight, self.bias, "none", [], "")
