"""The ceilings of a device, and the time of a pass over some rows: the roofline model (Williams et al. 2009).

A pass reads its weights once and multiplies every row by them. Below the *ridge* (on an H100 in bfloat16 about 266
rows) the weights are what takes the time and further rows are free; above it every row costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from spd_core.decode.cards import card_of
from spd_core.law import Precision
from spd_core.precision import arithmetic

#: Bytes of a weight of the products.
WEIGHT_BYTES: dict[Precision, int] = {"float32": 4, "tf32": 4, "bfloat16": 2}
#: Seconds that a kernel inside a captured function costs at least. Assumed, not measured.
KERNEL_S = 2e-6


@dataclass(frozen=True)
class Ceilings:
    """What a device can do at most at one precision."""

    name: str  #: of the device
    flops: float  #: FLOP/s of large products
    bytes_per_s: float  #: of its memory
    kernel_s: float = KERNEL_S  #: seconds that a kernel costs at least


@dataclass(frozen=True)
class Pass:
    """The work of a pass through a model."""

    weights: float  #: parameters of its products
    weight_bytes: int  #: of one
    kernels: float  #: launched

    def seconds(self, rows: float, at: Ceilings, extra_bytes: float = 0.0) -> float:
        """How long it takes at least.

        Args:
            rows: that go through it.
            at: the device.
            extra_bytes: read besides the weights, such as a KV cache.
        """
        products = 2 * self.weights * rows / at.flops
        reading = (self.weights * self.weight_bytes + extra_bytes) / at.bytes_per_s
        return max(products, reading, self.kernels * at.kernel_s)


def known_ceilings(device_name: str, precision: Precision) -> Ceilings | None:
    """Of a device by its name (`torch.cuda.get_device_name`) or Ray accelerator type; None: nothing is known of it."""
    card = card_of(device_name)
    return None if card is None else Ceilings(card.name, card.tflops[precision] * 1e12, card.tb_per_s * 1e12)


def measured_ceilings(device: torch.device, precision: Precision, size: int = 8192, repeats: int = 10) -> Ceilings:
    """Measures a device within about a second: one large product, one large copy, many small kernels.

    Args:
        device: where.
        precision: of the product.
        size: of the square matrices.
        repeats: of each.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    factor = torch.randn(size, size, device=device, dtype=dtype)
    other = torch.empty_like(factor)
    small = torch.zeros(1, device=device)

    def multiply() -> None:
        torch.matmul(factor, factor, out=other)

    def copy() -> None:
        other.copy_(factor)

    with arithmetic(precision):
        product_s = _median_s(multiply, device, repeats)
    copy_s = _median_s(copy, device, repeats)
    kernel_s = _median_s(lambda: [small.add_(1.0) for _ in range(100)], device, repeats) / 100
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    moved = 2 * factor.numel() * factor.element_size()
    return Ceilings(name, 2 * size**3 / product_s, moved / copy_s, min(KERNEL_S, kernel_s))


def _median_s(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[repeats // 2]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
