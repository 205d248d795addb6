"""Names of a converted pair's classes: ImageNet's for 1,000 of them, numbers for others, or those that are given."""

from __future__ import annotations

import json

import pytest

from spd_core.pairs import checkpoint
from spd_core.pairs.checkpoint import class_names
from spd_core.pairs.pair import PairError


def test_a_thousand_classes_have_the_names_of_imagenet_in_the_public_order():
    names = class_names(None, 1000)
    assert (len(names), len(set(names))) == (1000, 1000)
    known = {0: "tench", 7: "cock", 207: "golden retriever", 281: "tabby", 417: "balloon", 933: "cheeseburger"}
    assert {label: names[label] for label in known} == known
    assert (names[980], names[999]) == ("volcano", "toilet tissue")


def test_names_that_classes_share_in_wordnet_are_set_apart():
    names = class_names(None, 1000)
    assert (names[134], names[517]) == ("crane bird", "crane")
    assert (names[638], names[639]) == ("maillot", "maillot tank suit")


def test_the_list_says_where_it_is_from_and_under_what_licence():
    stated = json.loads(checkpoint._IMAGENET.read_bytes())
    assert stated["source"].startswith("torchvision 0.29.1 on PyPI") and "Redistribution" in stated["licence"]


@pytest.mark.parametrize("classes", [1, 10, 999, 1001])
def test_another_number_of_classes_is_numbered(classes: int):
    assert class_names(None, classes) == tuple(map(str, range(classes)))


def test_given_names_are_taken_if_each_class_has_its_own():
    given = tuple(f"bird {label}" for label in range(1000))
    assert class_names(given, 1000) == given
    with pytest.raises(PairError, match=r"^class-names: got 3, allowed: 4 \(the target's classes\)$"):
        class_names(("a", "b", "c"), 4)
    with pytest.raises(PairError, match=r"^class-names: got 'crane' for classes 1 and 3, allowed: a name of its own"):
        class_names(("hen", "crane", "owl", "crane"), 4)
