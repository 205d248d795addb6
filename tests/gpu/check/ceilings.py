"""What the device itself can do: products, copies, launches."""

from __future__ import annotations

import time

import torch

from spd_core.law import Precision
from spd_core.precision import arithmetic
from tests.gpu.check.run import Check

#: Torch dtype of each arithmetic's factors.
FACTORS: dict[Precision, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "tf32": torch.float32,
    "float32": torch.float32,
}


def ceilings(check: Check) -> None:
    """TFLOP/s of a large product by arithmetic, TB/s of a copy, microseconds of an eager launch."""
    side = 128 if check.smoke else 8192
    for precision, dtype in FACTORS.items():
        x, y = (torch.randn(side, side, device=check.device, dtype=dtype) for _ in range(2))
        with arithmetic(precision):
            seconds = check.timed(lambda x=x, y=y: x @ y)
        check.row(what=f"{precision} product", tflop_s=round(2 * side**3 / seconds / 1e12, 3))
    x = torch.randn(side * side, device=check.device)
    moved = 2 * x.numel() * x.element_size()
    check.row(what="copy", tb_s=round(moved / check.timed(x.clone) / 1e12, 4))
    number, launches = torch.zeros(8, device=check.device), 2000
    began = check.now()
    for _ in range(launches):
        number.add_(1)
    issued = time.perf_counter() - began
    done = check.now() - began
    check.row(what="eager launch", issue_us=round(issued / launches * 1e6, 2), done_us=round(done / launches * 1e6, 2))


def measured(check: Check, what: str, figure: str) -> float | None:
    """A ceiling of this run; None if it was not measured."""
    return next((row[figure] for row in check.rows if row.get("what") == what and figure in row), None)
