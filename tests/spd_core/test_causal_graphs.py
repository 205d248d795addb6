"""Decoding of a causal pair on a device that records: the same images, from few graphs."""

from __future__ import annotations

import pytest
import torch

from spd_core.decode import workspace
from spd_core.draws import Draws
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.causal.tokens import decode_causal_plain
from spd_core.law import Acceptance, Speculative
from spd_core.models import kv
from tests.cpu_graph import cpu_graphs
from tests.tiny_causal import LAW, perturbed, tiny_causal

GUIDED = LAW.model_copy(update={"cfg": 2.0, "temperature": 0.9})
COUPLED = Acceptance(rule="coupled", radius=0.3)
METHODS = {
    "walk": Speculative(gamma=3, stride=1),
    "windows": Speculative(gamma=2, stride=2, head_window=(3, 2)),
    "coupled": Speculative(gamma=2, stride=1, acceptance=COUPLED),
}


@pytest.fixture(scope="module")
def models():
    target = tiny_causal()
    return target, perturbed(target, 0.02)


@pytest.fixture(autouse=True)
def _no_workspace():
    yield
    workspace.release()


def _inputs(count, first=0):
    return torch.arange(first, first + count) % 3 - 1, Draws(torch.arange(first, first + count) + 100)


@torch.inference_mode()
@pytest.mark.parametrize("reach", [1, 64])
@pytest.mark.parametrize("law", [LAW, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("windows", [(), (3, 2)], ids=["walk", "windows"])
def test_plain_images_are_those_of_direct_calls(models, law, windows, reach, monkeypatch):
    monkeypatch.setattr(kv, "REACH", reach)
    direct = [decode_causal_plain(models[0], law, *_inputs(4, first), windows) for first in (0, 4)]
    with cpu_graphs() as recorded:
        graphs = decode_causal_plain(models[0], law, *_inputs(4), windows)
        first = list(recorded)
        again = decode_causal_plain(models[0], law, *_inputs(4, 4), windows)
    assert torch.allclose(graphs.tokens, direct[0].tokens, atol=1e-4)
    assert torch.allclose(again.tokens, direct[1].tokens, atol=1e-4)
    assert windows or graphs.counts == direct[0].counts, "recorded windows evaluate all rows"
    assert first.count("causal.context") == (models[0].config.seq_len if reach == 1 else 1)
    assert recorded == first, "the second batch records nothing"


@torch.inference_mode()
@pytest.mark.parametrize("law", [LAW, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("name", METHODS)
def test_speculative_images_are_those_of_direct_calls(models, law, name):
    """Also with slots that have no image any more, which go on until half of them are free."""
    direct = decode_speculative(*models, law, METHODS[name], *_inputs(9), 5)
    with cpu_graphs():
        graphs = decode_speculative(*models, law, METHODS[name], *_inputs(9), 5)
    assert torch.allclose(graphs.tokens, direct.tokens, atol=1e-4)
    assert torch.equal(graphs.rounds, direct.rounds)
    assert _tests(graphs.drafts) == _tests(direct.drafts)


def _tests(drafts):
    columns = (drafts.image, drafts.token, drafts.draft_index, drafts.accepted)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))
