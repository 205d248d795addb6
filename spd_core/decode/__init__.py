"""Decoders: functions of (pair, law, method, draws) that return tokens and a log."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from spd_core.decode.log import Decoded
from spd_core.draws import Draws
from spd_core.families.causal.model import Causal
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.causal.tokens import decode_causal_plain
from spd_core.families.llamagen.codes import decode_codes_plain
from spd_core.families.llamagen.model import EagleDraft, LlamaGen
from spd_core.families.llamagen.speculation import decode_codes_speculative
from spd_core.families.llamagen.vq import Codebook
from spd_core.families.mar.cspd import decode_cspd
from spd_core.families.mar.model import Mar
from spd_core.families.mar.plain import decode_plain
from spd_core.law import Cspd, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import Pair
from spd_core.precision import arithmetic

__all__ = ["Decoded", "decode"]


@torch.inference_mode()
def decode(
    pair: Pair,
    law: SamplerLaw,
    method: Plain | Cspd | Speculative,
    labels_B: Tensor,
    draws: Draws,
    slots: int | None = None,
) -> Decoded:
    """Decodes images, at most ``slots`` of them at once.

    Plain and CSpD decode one batch of ``slots`` images after another; speculative gives the slot of an image that is
    done to the next one that waits.

    Args:
        pair: loaded models.
        law: what is sampled.
        method: how.
        labels_B: int64 class labels on the pair's device.
        draws: random numbers of the images, on the pair's device.
        slots: images decoded together; None: all.

    Raises:
        ValueError: if the method needs a draft and the pair was loaded without one, or is not one of its family; if
            ``slots`` is below 1.
    """
    if slots is not None and slots < 1:
        raise ValueError(f"slots: got {slots}, allowed: at least 1")
    with arithmetic(law.dtype):
        return _decode(pair, law, method, labels_B, draws, slots)


def _decode(
    pair: Pair,
    law: SamplerLaw,
    method: Plain | Cspd | Speculative,
    labels_B: Tensor,
    draws: Draws,
    slots: int | None,
) -> Decoded:
    if slots is not None and not isinstance(method, Speculative):
        batches = zip(labels_B.split(slots), draws.seeds.split(slots), strict=True)
        return Decoded.concatenate(
            [_decode(pair, law, method, labels, Draws(seeds), None) for labels, seeds in batches]
        )
    target, draft = pair.target, pair.draft
    if isinstance(method, Plain):
        if isinstance(target, LlamaGen):
            return decode_codes_plain(target, law, labels_B, draws)
        if isinstance(target, Mar):
            return decode_plain(target, law, labels_B, draws, method.head_window)
        return decode_causal_plain(target, law, labels_B, draws, method.head_window)
    if isinstance(method, Speculative) and isinstance(target, LlamaGen):
        return _speculate_codes(pair, target, law, method, labels_B, draws, slots)
    if draft is None:
        raise ValueError(f"method: got {method.name!r}, but pair {pair.card.name} has no draft; allowed: plain")
    if isinstance(method, Cspd) and isinstance(target, Mar) and isinstance(draft, Mar):
        return decode_cspd(target, draft, law, method, labels_B, draws)
    if isinstance(method, Speculative) and isinstance(target, Causal) and isinstance(draft, Causal):
        return decode_speculative(target, draft, law, method, labels_B, draws, slots)
    allowed = "plain or cspd" if pair.card.family == "mar" else "plain or speculative"
    raise ValueError(f"method: got {method.name!r}, allowed for family {pair.card.family}: {allowed}")


@lru_cache(maxsize=8)
def _vectors(codebook: Codebook) -> Tensor:
    """The codes as the decoder sees them: one tensor for every batch, by which their neighbours are remembered."""
    return codebook.vectors


def _speculate_codes(
    pair: Pair,
    target: LlamaGen,
    law: SamplerLaw,
    method: Speculative,
    labels_B: Tensor,
    draws: Draws,
    slots: int | None,
) -> Decoded:
    draft = pair.eagle if method.drafter == "eagle" else pair.draft
    if not isinstance(draft, LlamaGen | EagleDraft):
        raise ValueError(f"method.drafter: got {method.drafter!r}, but pair {pair.card.name} has no such draft")
    if pair.vq is None:
        raise ValueError(f"pair: {pair.card.name} has no tokenizer, allowed with {method.name}: a pair with one")
    return decode_codes_speculative(target, draft, _vectors(pair.vq.quantize), law, method, labels_B, draws, slots)
