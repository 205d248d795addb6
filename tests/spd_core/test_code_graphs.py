"""Decoding of codes on a device that records: the same images, from few graphs that serve one batch after another."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from spd_core.decode import workspace
from spd_core.decode.slots import Slots, moved
from spd_core.draws import Draws
from spd_core.families.llamagen.codes import decode_codes_plain
from spd_core.families.llamagen.speculation import decode_codes_speculative
from spd_core.law import Acceptance, Speculative
from spd_core.models import kv
from tests.cpu_graph import cpu_graphs
from tests.tiny_codes import CONFIG, LAW, smaller, tiny_codes, tiny_eagle

SIZES = CONFIG.model_copy(update={"vocab_size": 8, "block_size": 16})
GUIDED = LAW.model_copy(update={"cfg": 2.0, "temperature": 1.1, "top_k": 6})
VECTORS = F.normalize(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
LANTERN = Acceptance(rule="lantern", k=3, delta=0.2)
METHODS = {
    "chain": Speculative(gamma=3),
    "tree": Speculative(tree=(2, 2, 1)),
    "eagle chain": Speculative(gamma=3, drafter="eagle", acceptance=LANTERN),
    "eagle tree": Speculative(tree=(2, 1), drafter="eagle"),
    "no drafts": Speculative(gamma=0),
}


@pytest.fixture(scope="module")
def models():
    target = tiny_codes(SIZES)
    return {"target": target, "draft": smaller(target), "eagle": tiny_eagle(target)}


@pytest.fixture(autouse=True)
def _no_workspace():
    yield
    workspace.release()


def _plain(models, law, count, first=0):
    labels = torch.arange(first, first + count) % 4 - 1
    with torch.inference_mode():
        return decode_codes_plain(models["target"], law, labels, Draws(torch.arange(first, first + count) + 100))


def _speculate(models, law, method, count, slots, first=0):
    labels, draws = torch.arange(first, first + count) % 4 - 1, Draws(torch.arange(first, first + count) + 100)
    with torch.inference_mode():
        return decode_codes_speculative(
            models["target"], models[method.drafter], VECTORS, law, method, labels, draws, slots
        )


@pytest.mark.parametrize("law", [LAW, GUIDED], ids=["plain", "guided"])
def test_plain_images_are_those_of_direct_calls(models, law):
    direct = [_plain(models, law, 5, first) for first in (0, 5)]
    with cpu_graphs() as recorded:
        for first, one in zip((0, 5), direct, strict=True):
            assert torch.equal(_plain(models, law, 5, first).tokens, one.tokens)
    assert sorted(_ours(recorded)) == ["codes.context", "codes.head"], "the second batch records nothing"


@pytest.mark.parametrize("law", [LAW, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("name", METHODS)
def test_speculative_images_are_those_of_direct_calls(models, law, name):
    """Also in the slots that nobody needs any more, and for the next batch, which finds the last one's caches."""
    direct = [_speculate(models, law, METHODS[name], 11, 5, first) for first in (0, 11)]
    with cpu_graphs() as recorded:
        for first, one in zip((0, 11), direct, strict=True):
            graphs = _speculate(models, law, METHODS[name], 11, 5, first)
            assert torch.equal(graphs.tokens, one.tokens)
            assert torch.equal(graphs.rounds, one.rounds)
            ours, theirs = _tests(graphs.drafts), _tests(one.drafts)
            assert [test[:-1] for test in ours] == [test[:-1] for test in theirs]
            assert [test[-1] for test in ours] == pytest.approx([test[-1] for test in theirs], rel=1e-3, abs=1e-3)
    # Of five slots, two, one; trees cut at an image's end; steps 1, 2 and 3 with 4.
    assert max(Counter(_ours(recorded)).values()) <= 3 * (1 + METHODS[name].gamma)


def _ours(recorded):
    """Without the random numbers, whose graphs are everybody's."""
    return [name for name in recorded if name.startswith("codes.")]


def _tests(drafts):
    columns = (drafts.image, drafts.token, drafts.draft_index, drafts.accepted, drafts.log_ratio)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_one_workspace_is_reused(models):
    with cpu_graphs() as recorded:
        _plain(models, LAW, 3)
        _plain(models, GUIDED, 3)
        assert len(workspace._WORKSPACE) == 1
        _plain(models, LAW, 3)
    assert _ours(recorded) == ["codes.context", "codes.head"] * 3
    _plain(models, LAW, 3)
    assert len(workspace._WORKSPACE) == 1, "a device that records nothing reuses nothing"


@pytest.mark.parametrize("reach", [4, 16])
@pytest.mark.parametrize("name", ["chain", "eagle tree"])
def test_reading_fewer_slots_changes_no_image(models, name, reach, monkeypatch):
    whole = _speculate(models, GUIDED, METHODS[name], 7, 3)
    monkeypatch.setattr(kv, "REACH", reach)
    with cpu_graphs():
        assert torch.equal(_speculate(models, GUIDED, METHODS[name], 7, 3).tokens, whole.tokens)
        alone = _speculate(models, GUIDED, METHODS["no drafts"], 4, 4).tokens
        assert torch.equal(_plain(models, GUIDED, 4).tokens, alone)


def test_reading_too_few_slots_is_noticed(models, monkeypatch):
    right = _plain(models, GUIDED, 4)
    monkeypatch.setattr("spd_core.families.llamagen.codes.reach_of", lambda slots, device: max(1, slots - 1))
    assert not torch.equal(_plain(models, GUIDED, 4).tokens, right.tokens)


# Slots.


def _after(slots, made):
    slots.advance(torch.tensor(made))
    return slots.change()


def test_images_come_in_order_and_leave_from_any_slot():
    slots = Slots(5, 3, 8, torch.device("cpu"))
    assert slots.images == slots.image.tolist() == [0, 1, 2]
    assert _after(slots, [3, 2, 7]) is None
    assert slots.furthest == 7
    change = _after(slots, [8, 5, 8])
    assert (change.ended.tolist(), change.images.tolist()) == ([0, 2], [0, 2])
    assert (change.taken.tolist(), change.newcomers.tolist()) == ([0, 2], [3, 4])
    assert slots.images == slots.image.tolist() == [3, 1, 4]
    assert slots.made_cpu == slots.made.tolist() == [0, 5, 0]
    # Nobody waits: the last slot's image moves to the first one.
    change = _after(slots, [8, 6, 1])
    assert (change.source.tolist(), change.goal.tolist(), change.count) == ([2], [0], 2)
    assert slots.images == slots.image.tolist() == [4, 1]
    assert slots.made_cpu == slots.made.tolist() == [1, 6]
    assert slots.rounds == [2, 3, 2, 1, 1]
    assert moved(torch.tensor([30, 10, 40]), change).tolist() == [40, 10]
    _after(slots, [8, 8])
    assert slots.working == []


def test_a_device_that_records_gives_up_half_of_the_slots_at_a_time():
    with cpu_graphs():
        slots = Slots(5, 5, 8, torch.device("cpu"))
        change = _after(slots, [8, 1, 8, 2, 3])
        assert (change.count, len(change.source), len(slots), slots.working) == (5, 0, 5, [1, 3, 4])
        assert slots.furthest == 3, "an image that is done needs no slots of the cache"
        change = _after(slots, [8, 8, 8, 4, 5])
        assert (change.source.tolist(), change.goal.tolist(), change.count) == ([3, 4], [0, 1], 2)
        assert slots.images == slots.image.tolist() == [3, 4]
        assert slots.made_cpu == slots.made.tolist() == [4, 5]
        assert slots.rounds == [1, 2, 1, 2, 2]
        assert _after(slots, [8, 6]).count == 1
        assert slots.made_cpu == [6]


def test_a_cache_gives_up_rows_without_a_copy():
    with cpu_graphs():
        cache = kv.KvCache(2, 4, 1, 6, 2, torch.float32, torch.device("cpu"))
    assert cache.slots == 16, "a multiple of what attention wants"
    address = cache.keys(0).data_ptr()
    cache.values(1)[3] = 5.0
    cache.copy_rows(torch.tensor([3]), torch.tensor([0]))
    cache.shrink(1)
    assert cache.keys(0).shape == (1, 1, 16, 2)
    assert cache.keys(0).data_ptr() == address
    assert (cache.values(1)[0] == 5.0).all()
    assert cache.layers(4)[1].read_values.shape == (1, 1, 4, 2)
