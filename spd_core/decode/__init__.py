"""Decoders: functions of (pair, law, method, draws) that return tokens and a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spd_core.decode.log import Decoded
from spd_core.draws import Draws
from spd_core.law import Cspd, Plain, SamplerLaw, Speculative
from spd_core.precision import arithmetic
from spd_core.progress import told

if TYPE_CHECKING:
    from spd_core.pairs.pair import Pair, PairError

__all__ = ["Decoded", "decode", "require_finite"]


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
        ValueError: the pair cannot honour the law or the method, or was loaded without the draft it needs; ``slots`` is
            below 1.
        PairError: the models computed NaN or infinity; on a GPU the caller asks `require_finite`.
    """
    if slots is not None and slots < 1:
        raise ValueError(f"slots: got {slots}, allowed: at least 1")
    refuse(pair, law, method)
    try:
        with arithmetic(law.dtype):
            decoded = _decoded(pair, law, method, labels_B, draws, slots)
    except FloatingPointError as error:  # a residual of paths that are no numbers
        raise _not_finite() from error
    if decoded.tokens.device.type == "cpu":  # on a GPU it would be a wait: a worker asks once a shard
        require_finite(decoded.finite())
    return decoded


def _decoded(
    pair: Pair, law: SamplerLaw, method: Plain | Cspd | Speculative, labels_B: Tensor, draws: Draws, slots: int | None
) -> Decoded:
    family = pair.card.of
    if isinstance(method, Speculative) or slots is None:
        return family.decode(pair, law, method, labels_B, draws, slots or len(labels_B))
    batches = told(list(zip(labels_B.split(slots), draws.seeds.split(slots), strict=True)), "batches")
    return Decoded.concatenate(
        [family.decode(pair, law, method, labels, Draws(seeds), slots) for labels, seeds in batches]
    )


def require_finite(finite: Tensor) -> None:
    """Refuses tokens that are no numbers, which would become grey images.

    Args:
        finite: of `Decoded.finite`.

    Raises:
        PairError: one line.
    """
    if not bool(finite):
        raise _not_finite()


def _not_finite() -> PairError:
    from spd_core.pairs.pair import PairError

    return PairError(
        "pair: its models computed NaN or infinity, allowed: weights that stay finite at law.dtype, law.cfg and "
        "law.temperature"
    )


def refuse(pair: Pair, law: SamplerLaw, method: Plain | Cspd | Speculative) -> None:
    """Refuses what a loaded pair cannot honour: nothing that was asked for is silently something else.

    Raises:
        ValueError: one line that names the field, the value and what is allowed.
    """
    family, name = pair.card.of, pair.card.name
    complaint = family.refused_law(law, name) or family.refused_method(pair.card, method, name)
    if complaint := complaint or family.refused_at(law, method):
        raise ValueError(complaint)
    drafter = method.drafter if isinstance(method, Speculative) else "draft"
    if method.uses_draft and pair.drafter(drafter) is None:
        raise ValueError(f"method: got {method.name!r}, allowed: plain ({name} was loaded without its {drafter})")
