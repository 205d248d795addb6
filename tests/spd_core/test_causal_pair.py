"""A causal pair on disk: card, loading, and which methods its family allows."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.families.causal.model import Causal
from spd_core.law import Cspd, Plain, Speculative
from spd_core.pairs.pair import PairError, load_card, load_pair
from tests.tiny_causal import LAW, make_tiny_causal_pair
from tests.tiny_pair import make_tiny_pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_causal_pair(tmp_path_factory.mktemp("causal"))


def test_a_causal_pair_loads_and_decodes(folder):
    pair = load_pair(str(folder))
    assert isinstance(pair.target, Causal)
    assert pair.card.image_shape == (6, 6, 1)
    labels, draws = torch.arange(4) % 3, Draws(torch.arange(4))
    plain = decode(pair, pair.card.law, Plain(), labels, draws)
    fast = decode(pair, pair.card.law, Speculative(gamma=2, stride=1, head_window=(3,)), labels, draws)
    assert pair.to_images(fast.tokens).shape == pair.to_images(plain.tokens).shape == (4, 6, 6, 1)
    assert 0 < fast.drafts.accepted.float().mean() < 1
    assert (fast.rounds < plain.rounds).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    folder = make_tiny_causal_pair(tmp_path)
    weights = load_file(folder / "target.safetensors")
    next(iter(weights.values())).view(-1)[0] = value
    _replace_target(folder, weights)
    with pytest.raises(PairError, match=r"holds NaN or infinity in \S+, allowed: finite weights"):
        load_pair(str(folder))


@pytest.mark.parametrize("method", [Plain(), Speculative(gamma=2)], ids=lambda method: method.name)
def test_activations_that_are_no_numbers_make_no_images(method, tmp_path):
    folder = make_tiny_causal_pair(tmp_path)
    weights = {name: weight.clone().mul_(1e30) for name, weight in load_file(folder / "target.safetensors").items()}
    _replace_target(folder, weights)
    pair = load_pair(str(folder))
    with pytest.raises(PairError, match="its models computed NaN or infinity"):
        decode(pair, LAW, method, torch.zeros(2, dtype=torch.int64), Draws(torch.arange(2)))


def _replace_target(folder, weights):
    """Other weights, with the card's hash of them."""
    save_file(weights, folder / "target.safetensors")
    card = json.loads((folder / "pair.json").read_text())
    card["sha256"]["target"] = hashlib.sha256((folder / "target.safetensors").read_bytes()).hexdigest()
    (folder / "pair.json").write_text(json.dumps(card))


def test_methods_of_another_family_are_refused(folder, tmp_path):
    inputs = (torch.zeros(1, dtype=torch.int64), Draws(torch.zeros(1, dtype=torch.int64)))
    pair = load_pair(str(folder))
    with pytest.raises(ValueError, match="allowed: plain, speculative"):
        decode(pair, LAW, Cspd(), *inputs)
    with pytest.raises(ValueError, match="without its draft"):
        decode(load_pair(str(folder), draft=False), LAW, Speculative(), *inputs)
    mar = load_pair(str(make_tiny_pair(tmp_path)))
    with pytest.raises(ValueError, match="allowed: plain, cspd"):
        decode(mar, mar.card.law, Speculative(), *inputs)


def test_a_card_of_the_wrong_family_is_refused(folder, tmp_path):
    raw = json.loads((folder / "pair.json").read_text())
    (tmp_path / "pair.json").write_text(json.dumps({**raw, "family": "mar"}))
    with pytest.raises(PairError):
        load_card(str(tmp_path))
