"""Philox words as one Triton kernel; the same bits as `spd_core.draws.philox`, which is the reference."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Counters of one program.
_COUNTERS = 256


@triton.jit  # type: ignore[untyped-decorator]
def _words(  # type: ignore[no-untyped-def]  # noqa: ANN202 (Triton reads annotations as its own)
    seed_ptr,  # noqa: ANN001
    token_ptr,  # noqa: ANN001
    round_ptr,  # noqa: ANN001
    tag_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    blocks,  # noqa: ANN001
    total,  # noqa: ANN001
    COUNTERS: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * COUNTERS + tl.arange(0, COUNTERS)
    inside = at < total
    row = at // blocks
    seed = tl.load(seed_ptr + row, mask=inside, other=0)
    token = tl.load(token_ptr + row, mask=inside, other=0).to(tl.uint32)
    number = tl.load(round_ptr + row, mask=inside, other=0).to(tl.uint32)
    tag = tl.load(tag_ptr + row, mask=inside, other=0).to(tl.uint32)
    # The seed's low and high half are the key; the counter is (block, token, round, tag).
    w0, w1, w2, w3 = tl.philox(seed.to(tl.uint64), (at % blocks).to(tl.uint32), token, number, tag, 10)
    out = out_ptr + at * 4
    tl.store(out, w0.to(tl.int64), mask=inside)
    tl.store(out + 1, w1.to(tl.int64), mask=inside)
    tl.store(out + 2, w2.to(tl.int64), mask=inside)
    tl.store(out + 3, w3.to(tl.int64), mask=inside)


def words(seed_R: Tensor, token_R: Tensor, round_R: Tensor, tag_R: Tensor, blocks: int) -> Tensor:
    """int64 [R, 4 blocks] words of 32 random bits; all arguments int64 [R], contiguous, on one device."""
    total = len(seed_R) * blocks
    out = torch.empty(len(seed_R), 4 * blocks, dtype=torch.int64, device=seed_R.device)
    if total:
        _words[(triton.cdiv(total, _COUNTERS),)](
            seed_R, token_R, round_R, tag_R, out, blocks, total, COUNTERS=_COUNTERS
        )
    return out
