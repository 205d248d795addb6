"""The families there are: the one place outside their folders that names them."""

from __future__ import annotations

from spd_core.families.causal.family import CausalFamily
from spd_core.families.family import Family
from spd_core.families.llamagen.family import LlamaGenFamily
from spd_core.families.mar.family import MarFamily

FAMILIES: dict[str, Family] = {
    MarFamily.name: MarFamily(),
    CausalFamily.name: CausalFamily(),
    LlamaGenFamily.name: LlamaGenFamily(),
}


def family(name: str) -> Family:
    """The family of a name.

    Raises:
        ValueError: there is no such family; the message lists those there are.
    """
    if name not in FAMILIES:
        raise ValueError(", ".join(FAMILIES))
    return FAMILIES[name]
