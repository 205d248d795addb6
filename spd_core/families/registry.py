"""The families there are: the one place outside their folders that names them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from spd_core.families.causal.family import CausalFamily
from spd_core.families.family import Family
from spd_core.families.head_family import HeadFamily
from spd_core.families.llamagen.family import LlamaGenFamily
from spd_core.families.mar.family import MarFamily
from spd_core.families.sphere.family import SphereFamily
from spd_core.law import SamplerLaw

FAMILIES: dict[str, Family] = {
    MarFamily.name: MarFamily(),
    CausalFamily.name: CausalFamily(),
    LlamaGenFamily.name: LlamaGenFamily(),
    SphereFamily.name: SphereFamily(),
}


def family(name: str) -> Family:
    """The family of a name.

    Raises:
        ValueError: there is no such family; the message lists those there are.
    """
    if name not in FAMILIES:
        raise ValueError(", ".join(FAMILIES))
    return FAMILIES[name]


def family_of_config(config: BaseModel) -> Family:
    """The family of a target's or draft's sizes.

    Raises:
        ValueError: of none.
    """
    for each in FAMILIES.values():
        if type(config) is each.configs["target"]:
            return each
    raise ValueError(f"sizes: got {type(config).__name__}, allowed: those of a model of {', '.join(FAMILIES)}")


def config_from(fields: Mapping[str, Any]) -> BaseModel:
    """The sizes of a model that fields without a family's name give; no two families have the same fields.

    Raises:
        ValidationError: of the last family, if they fit none.
    """
    *others, last = (each.configs["target"] for each in FAMILIES.values())
    for kind in others:
        with suppress(ValidationError):
            return kind.model_validate(fields)
    return last.model_validate(fields)


def head_family(of: Family) -> HeadFamily:
    """The family, which must be one whose tokens a diffusion head makes.

    Raises:
        ValueError: it is another.
    """
    if not isinstance(of, HeadFamily):
        raise ValueError(f"family: got {of.name}, allowed: one whose tokens a diffusion head makes")
    return of


def family_of_old(parts: Collection[str], law: SamplerLaw) -> Family:
    """The family of a plan that does not name it: plans did not before there were families beside these three.

    Args:
        parts: of the pair; only codes have a tokenizer.
        law: what was sampled; only causal models have a hand-off.
    """
    if "vq" in parts:
        return family("llamagen")
    return family("causal" if law.handoff_level else "mar")
