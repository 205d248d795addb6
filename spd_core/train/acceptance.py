"""What a draft is worth on real tokens, before it is decoded with: a quick figure of a pair."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TeacherForced:
    """Means over the tokens of each image."""

    acceptance: Tensor  #: [n] of min(1, R), the probability that the lossless rule accepts a draft
    path_kl: Tensor  #: [n] KL(draft || target) of a token's path above the hand-off, nats
