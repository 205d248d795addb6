"""What every settings model shares, and what a way of decoding can promise."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of every settings model: frozen, unknown fields and infinite numbers refused, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Guarantee(StrEnum):
    """What is known about the law of the images, against the target's own law."""

    EXACT = "exact"  #: the target's law itself
    TV = "tv"  #: the law of one image within a total variation that the mean of the images' certificates estimates
    W_INF = "w_inf"  #: each token's hand-off state, given the tokens before it, coupled to within a stated radius
    NONE = "none"  #: only the measured distance

    def admits(self, other: Guarantee) -> bool:
        """Whether ``other`` promises at least as much: exact above all, none below all, tv and w_inf side by side."""
        return other in (self, Guarantee.EXACT) or self is Guarantee.NONE
