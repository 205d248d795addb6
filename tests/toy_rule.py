"""A rule that is not of the product: what "Adding a rule" of docs/architecture.md shows, word for word."""

import math

from pydantic import Field
from torch import Tensor

from spd_core.accept.rules import RatioRule, Ratios
from spd_core.settings import Guarantee


class Floored(RatioRule[Ratios]):
    """Keeps every draft with at least a given probability."""

    name = "floored"
    summary = "with probability max(floor, min(1, R))"
    guarantee = Guarantee.TV
    evidence = Ratios
    main_knob = "floor"

    floor: float = Field(0.1, gt=0.0, le=1.0, description="least probability of keeping a draft")

    def log_relaxed(self, drafts: Ratios) -> Tensor:
        return drafts.log_ratio.clamp(min=math.log(self.floor))
