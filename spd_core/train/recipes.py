"""The recipes of the bundled weights, one entry a model; each family knows its own."""

from __future__ import annotations

from spd_core.families.registry import FAMILIES
from spd_core.law import SamplerLaw
from spd_core.train.loop import Recipe

_BUNDLED = {name: pair for family in FAMILIES.values() for name, pair in family.bundled().items()}
#: The law each bundled pair is meant to be sampled at.
LAWS: dict[str, SamplerLaw] = {name: law for name, (law, _) in _BUNDLED.items()}
#: By pair and run, the runs of a pair in the order in which they are trained.
RECIPES: dict[tuple[str, str], Recipe] = {
    (name, run): recipe for name, (_, recipes) in _BUNDLED.items() for run, recipe in recipes.items()
}
