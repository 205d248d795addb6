"""What a batch is said to need, against the most that PyTorch really held at a time."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.law import Null, Plain, Speculative
from spd_core.memory import batch_memory
from spd_core.pairs import pair as pair_module
from spd_core.pairs.pair import PairError, load_card, load_pair, part_sizes

#: Short laws: the largest moment does not depend on how often it comes.
LAWS = {
    "fashion-mar": {"num_iter": 2, "head_steps": 10},
    "fashion-ar": {"head_steps": 3, "handoff_level": 0},
    "fashion-vq": {},
}


def peak(pair, law, batch: int) -> int:
    """Most bytes allocated at a time beside what was there before."""
    labels, draws = torch.arange(batch) % 10, Draws(torch.arange(batch))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        decode(pair, law, Plain(), labels, draws, batch)
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


@pytest.mark.parametrize("name", LAWS)
def test_the_model_is_near_the_measured_peak(name):
    pair = load_pair(name, draft=False)
    law = pair.card.law.model_copy(update=LAWS[name])
    peak(pair, law, 16)  # a CPU packs the weights once
    # Of few rows what does not grow with the batch is most.
    for batch in (16, 32):
        said = batch_memory(pair.card, law, Plain(), batch)
        assert 0.6 < (said.total - said.weights) / peak(pair, law, batch) < 1.7, batch


def test_weights_are_those_of_the_files():
    card, pair = load_card("fashion-vq"), load_pair("fashion-vq")
    held = {"target": pair.target, "draft": pair.draft, **pair.parts}
    assert part_sizes(card) == {name: sum(p.numel() for p in part.parameters()) for name, part in held.items()}
    said = batch_memory(card, card.law, Speculative(gamma=4), 1)
    assert said.weights == 4 * sum(part_sizes(card).values()) > batch_memory(card, card.law, Plain(), 1).weights
    assert batch_memory(card, card.law, Null(), 64).total == 0


@pytest.mark.parametrize("name", LAWS)
def test_memory_grows_with_batch_and_guidance(name):
    card = load_card(name)
    one, two = (batch_memory(card, card.law, Plain(), batch).total for batch in (64, 128))
    weights = batch_memory(card, card.law, Plain(), 64).weights
    assert two - weights == pytest.approx(2 * (one - weights), rel=0.01)
    unguided, guided = (card.law.model_copy(update={"cfg": cfg}) for cfg in (1.0, 3.0))
    assert batch_memory(card, guided, Plain(), 64).total > batch_memory(card, unguided, Plain(), 64).total


def test_weights_go_straight_to_their_device(monkeypatch):
    places = []
    load = pair_module.load_file
    monkeypatch.setattr(pair_module, "load_file", lambda path, device: places.append(device) or load(path, device))
    load_pair("fashion-vq", "cpu")
    assert places == ["cpu"] * 4


def test_a_card_of_more_parameters_than_any_machine_holds_is_refused():
    card = load_card("fashion-mar")
    sizes = {"encoder_depth": 1024, "encoder_embed_dim": 65536, "encoder_num_heads": 1}
    huge = card.model_copy(update={"target": card.target.model_copy(update=sizes)})
    with pytest.raises(PairError, match="a target of more parameters than 1,000,000,000,000, the most allowed"):
        part_sizes(huge)
