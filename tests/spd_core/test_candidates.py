"""What method auto may choose from, by family, draft and floor."""

from __future__ import annotations

import pytest

from spd_core.candidates import BATCHES, admissible, choices
from spd_core.families.registry import family as family_of
from spd_core.law import Auto, Cspd, Guarantee, Plain, Speculative
from spd_core.pairs.pair import load_card
from tests.tiny_causal import make_tiny_causal_pair
from tests.tiny_pair import make_tiny_pair

EXACT, TV, W_INF, NONE = Guarantee


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return {
        "mar": load_card(str(make_tiny_pair(folder / "mar"))),
        "causal": load_card(str(make_tiny_causal_pair(folder / "causal"))),
    }


def promises(card, **auto: object) -> set[Guarantee]:
    return {method.guarantee for method in admissible(card, Auto(**auto))}


@pytest.mark.parametrize(
    ("floor", "admitted"),
    [(EXACT, {EXACT}), (TV, {EXACT, TV}), (W_INF, {EXACT, W_INF}), (NONE, {EXACT, TV, W_INF, NONE})],
)
def test_a_floor_admits_what_promises_as_much(floor, admitted):
    assert {other for other in Guarantee if floor.admits(other)} == admitted


@pytest.mark.parametrize("family", ["mar", "causal"])
def test_plain_comes_first_then_with_windows(cards, family):
    methods = admissible(cards[family], Auto())
    assert methods[:3] == (Plain(), *(Plain(head_window=window) for window in family_of(family).windows))
    assert {method.guarantee for method in methods} == {EXACT}
    assert len(set(methods)) == len(methods)


def test_the_causal_family_adds_what_the_floor_and_the_knobs_allow(cards):
    card = cards["causal"]
    speculative = [method for method in admissible(card, Auto()) if isinstance(method, Speculative)]
    assert {bool(method.head_window) for method in speculative} == {True, False}
    assert len({(method.gamma, method.stride) for method in speculative}) > 1
    assert promises(card, guarantee="tv") == promises(card, guarantee="none") == {EXACT}
    assert promises(card, guarantee="tv", delta=4.0) == {EXACT, TV}
    assert promises(card, guarantee="w_inf", radius=0.1) == {EXACT, W_INF}
    assert promises(card, guarantee="none", delta=4.0, radius=0.1) == {EXACT, TV, W_INF}
    relaxed = [m.acceptance for m in admissible(card, Auto(guarantee="tv", delta=4.0)) if m.guarantee == TV]
    assert {(rule.rule, rule.delta) for rule in relaxed} == {("annealed", 4.0)}


def test_the_mar_family_adds_cspd_below_every_bound_only(cards):
    assert promises(cards["mar"], guarantee="tv") == {EXACT}
    methods = admissible(cards["mar"], Auto(guarantee="none"))
    assert {type(method) for method in methods} == {Plain, Cspd}


@pytest.mark.parametrize("family", ["mar", "causal"])
def test_without_a_draft_only_plain_is_left(cards, family):
    card = cards[family].model_copy(update={"draft": None})
    assert {type(method) for method in admissible(card, Auto(guarantee="none"))} == {Plain}


@pytest.mark.parametrize(("shard", "sizes"), [(1, (1,)), (15, (1, 4)), (64, (1, 4, 16, 64)), (10**6, BATCHES)])
def test_batches_of_auto_fit_into_a_shard(cards, shard, sizes):
    found = choices(cards["mar"], Auto(), "auto", shard)
    assert tuple(dict.fromkeys(choice.batch for choice in found)) == sizes
    assert len(found) == len(sizes) * len(admissible(cards["mar"], Auto()))


def test_a_given_batch_is_the_only_one(cards):
    assert {choice.batch for choice in choices(cards["mar"], Auto(), 32, 4)} == {32}


@pytest.mark.parametrize(
    "raw", [{"delta": 2.0}, {"radius": 0.1}, {"guarantee": "tv", "radius": 0.1}, {"guarantee": "w_inf", "delta": 2.0}]
)
def test_a_knob_that_the_floor_excludes_is_refused(raw):
    with pytest.raises(ValueError, match="belongs to guarantee"):
        Auto(**raw)
