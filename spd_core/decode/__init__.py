"""Decoders: functions of (pair, law, method, draws) that return tokens and a log."""

from __future__ import annotations

import torch
from torch import Tensor

from spd_core.decode.cspd import decode_cspd
from spd_core.decode.log import Decoded
from spd_core.decode.plain import decode_plain
from spd_core.draws import Draws
from spd_core.law import Cspd, Plain, SamplerLaw
from spd_core.pairs.pair import Pair

__all__ = ["Decoded", "decode"]


@torch.inference_mode()
def decode(pair: Pair, law: SamplerLaw, method: Plain | Cspd, labels_B: Tensor, draws: Draws) -> Decoded:
    """Decodes one batch of images.

    Args:
        pair: loaded models.
        law: what is sampled.
        method: how.
        labels_B: int64 class labels on the pair's device.
        draws: random numbers of the images, on the pair's device.

    Raises:
        ValueError: if the method needs a draft and the pair was loaded without one.
    """
    if isinstance(method, Cspd):
        if pair.draft is None:
            raise ValueError(f"method: got {method.name!r}, but pair {pair.card.name} has no draft; allowed: plain")
        return decode_cspd(pair.target, pair.draft, law, method, labels_B, draws)
    return decode_plain(pair.target, law, labels_B, draws)
