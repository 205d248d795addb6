"""What families whose models have a diffusion head share: the posterior variances beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from spd_core.families.family import Family, Part
from spd_core.models.grid import ModelConfig
from spd_core.models.head import DiffusionHead
from spd_core.models.variance import PosteriorVariance

if TYPE_CHECKING:
    from spd_core.pairs.pair import PairCard

_SUFFIX = "_variance"


def head_of(model: nn.Module) -> DiffusionHead:
    """The head of a model of continuous tokens.

    Raises:
        TypeError: it has none.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, DiffusionHead):
        raise TypeError(f"model: got {type(model).__name__}, allowed: one with a diffusion head")
    return head


def variance_parts(family: Family, card: PairCard) -> dict[str, Part]:
    """The posterior variances that target and draft may have."""

    def part(config: ModelConfig, of_draft: bool) -> Part:
        return Part(lambda: PosteriorVariance.of(head_of(family.build(config))), of_draft, optional=True, small=True)

    models = {"target": card.target, "draft": card.draft}
    return {f"{of}{_SUFFIX}": part(config, of == "draft") for of, config in models.items() if config is not None}


def attach_variances(parts: Mapping[str, nn.Module]) -> None:
    """Gives each model's head its variance, where there is one."""
    for name, variance in parts.items():
        if name.endswith(_SUFFIX) and isinstance(variance, PosteriorVariance):
            head_of(parts[name.removesuffix(_SUFFIX)]).variance = variance
