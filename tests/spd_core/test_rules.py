"""Acceptance rules as objects: what a rule answers, who can apply it, and a rule that a test adds."""

from __future__ import annotations

import re

import pytest
import torch
from pydantic import ValidationError

import tests.toy_rule
from spd_core.accept.codes import CodeTest
from spd_core.accept.cspd import LastSteps, Tempered
from spd_core.accept.paths import Gaussian
from spd_core.accept.rules import RULES, CodeRatios, Couplings, Ratios, knobs_of, names_for
from spd_core.draws import Draws
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.llamagen.speculation import tree_of
from spd_core.families.registry import FAMILIES
from spd_core.law import Acceptance, Auto, Guarantee, Speculative
from tests.documented import code_of, shown_under
from tests.enumerate_codes import Enumeration, random_toy
from tests.tiny_causal import LAW, perturbed, tiny_causal
from tests.toy_rule import Floored


@pytest.fixture
def floored(monkeypatch):
    """The toy rule, registered."""
    monkeypatch.setitem(RULES, Floored.name, Floored)


# What a rule answers.


@pytest.mark.parametrize("name", RULES)
def test_every_rule_answers_what_the_rest_asks(name):
    rule = RULES[name]()
    assert rule.name == name
    assert rule.summary
    assert rule.series_in_words[0] == name
    assert rule.label == ", ".join([*rule.series_in_words, *rule.main_in_words])
    if rule.main_knob is not None:
        assert rule.main_knob in knobs_of(name)
    if rule.auto_knob is not None:
        assert rule.auto_knob in Auto.model_fields


def test_knobs_of_a_spec_are_those_of_the_rules():
    """Every knob of a bundled rule is a field of `Acceptance`, with one default wherever it is a knob."""
    knobs = {knob for name in RULES for knob in knobs_of(name)}
    assert knobs == set(Acceptance.model_fields) - {"rule"}
    for name, rule in RULES.items():
        for knob, field in rule.model_fields.items():
            assert field.default == Acceptance.model_fields[knob].default, (name, knob)
    assert Acceptance().model_dump() == {
        "rule": "lossless", "delta": 1.0, "nu": 0.7, "radius": 0.0, "k": 100, "lam": 1.0
    }  # fmt: skip


def test_guarantees():
    assert {name: str(rule.guarantee) for name, rule in RULES.items()} == {
        "lossless": "exact", "annealed": "tv", "coupled": "w_inf", "lantern": "tv", "lantern++": "tv"
    }  # fmt: skip
    assert Tempered.guarantee is Guarantee.NONE
    assert Tempered.name not in RULES


def test_an_unknown_rule_falls_through_nowhere():
    with pytest.raises(ValidationError, match="one of lossless, annealed, coupled, lantern, lantern"):
        Acceptance(rule="generous")
    unchecked = Acceptance().model_copy(update={"rule": "generous"})
    with pytest.raises(KeyError):
        _ = unchecked.chosen
    with pytest.raises(KeyError):
        _ = unchecked.guarantee


@pytest.mark.parametrize(
    ("given", "knob", "allowed"),
    [
        ({"rule": "annealed", "delta": 0.5}, "delta", "a number from 1 to 1,000,000 with rule annealed"),
        ({"rule": "lantern", "delta": 2}, "delta", "a number from 0 to 1 with rule lantern"),
        ({"rule": "coupled", "delta": 2}, "delta", "1 with rule coupled; it belongs to annealed and lantern"),
        ({"radius": 0.5}, "radius", "0 with rule lossless; it belongs to coupled"),
        ({"floor": 0.5}, "floor", "Extra inputs are not permitted"),
    ],
)
def test_a_knob_is_checked_by_its_rule(given, knob, allowed):
    with pytest.raises(ValidationError) as caught:
        Acceptance.model_validate(given)
    (problem,) = caught.value.errors()
    assert (problem["loc"], problem["msg"]) == ((knob,), allowed)


# Who can apply it.


def test_a_decoder_applies_the_rules_whose_evidence_it_gives():
    assert names_for(Ratios) == ("lossless", "annealed")
    assert names_for(Ratios, Couplings) == ("lossless", "annealed", "coupled")
    assert names_for(CodeRatios) == ("lossless", "annealed", "lantern", "lantern++")
    assert names_for() == ()


def test_rules_of_the_families():
    found = {name: family.rules for name, family in FAMILIES.items()}
    assert found == {
        "mar": (),
        "causal": ("lossless", "annealed", "coupled"),
        "llamagen": ("lossless", "annealed", "lantern", "lantern++"),
        "sphere": ("lossless", "annealed", "coupled"),
    }


@pytest.mark.parametrize("rule", ["lantern", "lantern++"])
def test_paths_refuse_a_rule_for_codes(rule):
    labels, draws = torch.zeros(1, dtype=torch.int64), Draws(torch.arange(1))
    target = tiny_causal()
    method = Speculative(gamma=1, acceptance=Acceptance(rule=rule))
    with pytest.raises(ValueError, match=f"got {re.escape(repr(rule))}, allowed for continuous tokens: lossless, ann"):
        decode_speculative(target, target, LAW, method, labels, draws)


def test_neighbours_are_never_looked_for_in_vain():
    p = torch.full((1, 4), 0.25)
    drafts = CodeTest.of(Acceptance(), torch.eye(4)).ratios(p, p[:, 0], torch.tensor([1]), torch.tensor([0]), p[:, 0])
    assert drafts.nearest is None
    with pytest.raises(TypeError, match="no nearest codes"):
        Acceptance(rule="lantern").chosen.log_relaxed(drafts)


def test_the_test_of_cspd_is_judged_by_the_same_interface():
    target, draft = Gaussian(torch.zeros(2, 1), torch.ones(2, 1)), Gaussian(torch.ones(2, 1), torch.ones(2, 1))
    x, uniform = torch.tensor([[0.0], [1.0]]), torch.full((2,), 0.9)
    tested = LastSteps(target=target, draft=draft, x=x, log_factor=torch.zeros(2), uniform=uniform)
    verdict = Tempered(inner_temperature=1.0).judge(tested)
    assert verdict.log_ratio.tolist() == [0.5, -0.5]
    assert verdict.accepted.tolist() == [True, False]
    assert verdict.excess.isnan().all()
    assert Tempered(inner_temperature=42.0).judge(tested).accepted.all()


# A rule that is added.


def test_the_documented_rule_is_the_tested_one():
    assert shown_under("Adding a rule") == code_of(tests.toy_rule)


@pytest.mark.usefixtures("floored")
def test_an_added_rule_is_a_choice_of_both_kinds_of_token():
    assert {name: "floored" in family.rules for name, family in FAMILIES.items()} == {
        "mar": False, "causal": True, "llamagen": True, "sphere": True
    }  # fmt: skip
    given = Acceptance(rule="floored", floor="0.25")
    assert given.guarantee is Guarantee.TV
    assert given.chosen == Floored(floor=0.25)
    assert given.chosen.label == "floored, floor 0.25"
    assert "floored" in Acceptance.model_json_schema()["properties"]["rule"]["enum"]


@pytest.mark.usefixtures("floored")
def test_knobs_of_an_added_rule_are_written_only_with_it():
    lossless = Acceptance().model_dump()
    assert "floor" not in lossless
    assert Acceptance(rule="floored").model_dump() == {**lossless, "rule": "floored", "floor": 0.1}
    again = Acceptance.model_validate(Acceptance(rule="floored", floor=0.5).model_dump(mode="json"))
    assert again == Acceptance(rule="floored", floor=0.5) != Acceptance(rule="floored")
    with pytest.raises(ValidationError, match="none with rule annealed; it belongs to floored"):
        Acceptance(rule="annealed", floor=0.5)
    with pytest.raises(ValidationError, match="a number, above 0, at most 1 with rule floored"):
        Acceptance(rule="floored", floor=2)


@pytest.mark.usefixtures("floored")
@torch.inference_mode()
def test_an_added_rule_decodes_paths():
    labels, draws = torch.zeros(200, dtype=torch.int64), Draws(torch.arange(200))
    target = tiny_causal()

    def decoded(**rule):
        method = Speculative(gamma=3, stride=2, acceptance=Acceptance(**rule))
        return decode_speculative(target, perturbed(target, 0.04), LAW, method, labels, draws).drafts

    lossless, half, whole = decoded(), decoded(rule="floored", floor=0.5), decoded(rule="floored", floor=1.0)
    assert lossless.accepted.float().mean() < half.accepted.float().mean() < 1
    assert whole.accepted.all()
    assert (lossless.excess == 0).all()
    assert 0 < half.excess.mean() < whole.excess.mean()


@pytest.mark.usefixtures("floored")
@pytest.mark.parametrize("branches", [(1, 1), (2, 1)], ids=str)
def test_the_certificate_of_an_added_rule_bounds_its_law(branches):
    toy = random_toy(3, 2, seed=0, agreement=0.5)
    rule = Acceptance(rule="floored", floor=0.8)
    walk = Enumeration(toy, tree_of(Speculative(tree=branches)), CodeTest.of(rule, torch.eye(3).double()))
    outcome, certified = walk.run(), walk.certified()
    assert 1e-3 < outcome.distance(toy) <= certified + 1e-10 <= outcome.certificate + 2e-10
