"""`spd_core.decode.predict` for codes: passes that read weights and the keys and values of all codes before.

At a large batch most of the time goes to reading keys and values (LlamaGen-XL with guidance: 12 GB an image). Plain
decoding reads them once for each code, a verification once for all its codes. So speculation gains at any batch if
drafts are accepted often enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from spd_core.decode.ceilings import WEIGHT_BYTES, Ceilings, Pass
from spd_core.decode.cost import rounds_needed
from spd_core.decode.work import measured_acceptance
from spd_core.families.llamagen.model import LlamaGen, LlamaGenConfig
from spd_core.law import Choice, Plain, Precision, SamplerLaw, Speculative

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard

#: Kernels of a pass for each block, and besides.
BLOCK_KERNELS, OTHER_KERNELS = 17.0, 20.0


@lru_cache(maxsize=16)
def work_of(config: LlamaGenConfig, precision: Precision) -> Pass:
    """One pass through a model of codes; its table of code embeddings is looked up, not multiplied."""
    with torch.device("meta"):
        model = LlamaGen(config)
    weights = sum(p.numel() for p in model.parameters()) - config.vocab_size * config.dim
    return Pass(weights, WEIGHT_BYTES[precision], BLOCK_KERNELS * config.n_layer + OTHER_KERNELS)


def batch_seconds(card: PairCard, law: SamplerLaw, choice: Choice, at: Ceilings) -> float | None:
    """Seconds of a batch of plain decoding, or of chains of the small draft if the card has their acceptance.

    Arguments as of `Family.batch_seconds`; None: it cannot be predicted.
    """
    method, target, draft = choice.method, card.target, card.draft
    if not isinstance(target, LlamaGenConfig):
        return None
    if isinstance(method, Plain):
        return plain_s(target, law, choice.batch, at)
    if not isinstance(method, Speculative) or method.tree or method.drafter != "draft":
        return None
    acceptance = measured_acceptance(card, law, method)
    if not acceptance or not isinstance(draft, LlamaGenConfig):
        return None
    return speculative_s(target, draft, law, method, acceptance, choice.batch, at)


def kv_bytes(config: LlamaGenConfig, precision: Precision) -> int:
    """Bytes of keys and values of one code of one sequence."""
    return 2 * config.n_layer * config.dim * WEIGHT_BYTES[precision]


def plain_s(config: LlamaGenConfig, law: SamplerLaw, batch: int, at: Ceilings) -> float:
    """Seconds of a batch decoded code after code."""
    work, rows = work_of(config, law.dtype), batch * (1 + (law.cfg != 1.0))
    each = rows * kv_bytes(config, law.dtype)
    return sum(work.seconds(rows, at, extra_bytes=each * position) for position in range(config.seq_len))


def speculative_s(
    target: LlamaGenConfig,
    draft: LlamaGenConfig,
    law: SamplerLaw,
    method: Speculative,
    acceptance: Sequence[float],
    batch: int,
    at: Ceilings,
) -> float:
    """Seconds of a batch decoded by chains of a small draft whose slots are always full.

    Args:
        target, draft: sizes.
        law: what is sampled.
        method: with a chain of gamma.
        acceptance: by place of the block.
        batch: images decoded together.
        at: the device.
    """
    rows, middle = batch * (1 + (law.cfg != 1.0)), (target.seq_len - 1) / 2
    drafted, verified = (
        work_of(config, law.dtype).seconds(rows * width, at, extra_bytes=rows * middle * kv_bytes(config, law.dtype))
        for config, width in ((draft, 1), (target, method.gamma + 1))
    )
    return rounds_needed(acceptance, target.seq_len, 1) * (method.gamma * drafted + verified)
