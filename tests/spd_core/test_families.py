"""What families answer is about fields that exist, and nothing outside their folders knows a family by name."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import spd_core
from jobs.bench.table import COLUMNS
from spd_core.compare import Wishes
from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.families.registry import FAMILIES
from spd_core.law import Acceptance, Cspd, Plain, SamplerLaw, Speculative
from spd_core.pairs.pair import load_pair
from tests.tiny_causal import make_tiny_causal_pair
from tests.tiny_codes import make_tiny_code_pair
from tests.tiny_pair import make_tiny_pair

ROOT = Path(spd_core.__file__).parent.parent
METHODS = {"plain": Plain, "cspd": Cspd, "speculative": Speculative}
#: Of `Wishes`, and two that concern the run and not what is compared.
WISHES = {field.name for field in fields(Wishes)} | {"deepen", "plot"}
#: Models, configurations and modules of the families, by which code could tell them apart.
CLASSES = {
    "Mar",
    "MarConfig",
    "Causal",
    "CausalConfig",
    "LlamaGen",
    "LlamaGenConfig",
    "EagleDraft",
    "Sphere",
    "SphereConfig",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_speaks_of_fields_that_there_are(name):
    family = FAMILIES[name]
    assert family.name == name
    for method, meant in family.methods.items():
        assert meant <= set(METHODS[method].model_fields)
    assert family.law_fields <= set(SamplerLaw.model_fields)
    assert set(family.columns) <= set(COLUMNS)
    assert family.wishes <= WISHES
    assert family.stoppable <= set(family.methods)
    assert bool(family.rules) == ("speculative" in family.methods)


def _mentions(path: Path) -> list[str]:
    """Code, not words: modules of a family that are imported, its classes, its name as a value."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module for name in FAMILIES if node.module.startswith(f"spd_core.families.{name}")]
            if node.module == "spd_core.families":
                found += [alias.name for alias in node.names if alias.name in FAMILIES]
        elif isinstance(node, ast.Constant) and node.value in FAMILIES:
            found.append(str(node.value))
        elif isinstance(node, ast.Name) and node.id in CLASSES:
            found.append(node.id)
    return found


def test_only_the_registry_knows_families_by_name():
    own = [ROOT / "spd_core" / "families" / name for name in FAMILIES]
    paths = [path for package in ("spd_core", "workers", "jobs") for path in (ROOT / package).rglob("*.py")]
    outside = [path for path in paths if not any(path.is_relative_to(folder) for folder in own)]
    knowing = {str(path.relative_to(ROOT)): found for path in outside if (found := _mentions(path))}
    assert list(knowing) == ["spd_core/families/registry.py"], knowing


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    makers = {"mar": make_tiny_pair, "causal": make_tiny_causal_pair, "llamagen": make_tiny_code_pair}
    return {name: load_pair(str(make(folder / name))) for name, make in makers.items()}


@pytest.mark.parametrize(
    ("name", "law", "method", "message"),
    [
        ("mar", {}, Speculative(), "method: got 'speculative', allowed: plain, cspd"),
        ("causal", {}, Cspd(), "method: got 'cspd', allowed: plain, speculative"),
        ("causal", {}, Speculative(acceptance=Acceptance(rule="lantern")), "rule: got 'lantern', allowed: lossless"),
        ("causal", {}, Speculative(tree=(2,)), r"method.tree: got \(2,\), allowed: \(\)"),
        ("causal", {"top_k": 5}, Plain(), "law.top_k: got 5, allowed: 0"),
        ("causal", {}, Speculative(drafter="eagle"), "method.drafter: got 'eagle', allowed: 'draft'"),
        ("mar", {"handoff_level": 91}, Plain(), "law.handoff_level: got 91, allowed: 0"),
        ("llamagen", {}, Plain(head_window=(4,)), r"method.head_window: got \(4,\), allowed: \(\)"),
        ("llamagen", {}, Speculative(acceptance=Acceptance(rule="coupled", radius=1.0)), "rule: got 'coupled'"),
        ("llamagen", {"head_schedule": "linear"}, Plain(), "law.head_schedule: got 'linear', allowed: 'constant'"),
    ],
)
def test_decoding_refuses_what_a_pair_cannot_honour(pairs, name, law, method, message):
    pair, inputs = pairs[name], (torch.zeros(1, dtype=torch.int64), Draws(torch.zeros(1, dtype=torch.int64)))
    with pytest.raises(ValueError, match=message):
        decode(pair, pair.card.law.model_copy(update=law), method, *inputs)
