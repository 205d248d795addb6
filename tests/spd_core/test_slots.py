"""Slots: an image gives its slot to the next one that waits, and no image notices."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from spd_core.decode import decode
from spd_core.decode.slots import Slots
from spd_core.draws import Draws
from spd_core.families.causal import speculation as speculative
from spd_core.families.causal.model import CausalConfig
from spd_core.families.causal.speculation import decode_speculative
from spd_core.families.causal.tokens import ContextReader, finish
from spd_core.law import Acceptance, Cspd, Plain, Speculative
from spd_core.pairs.pair import load_pair
from tests.tiny_causal import LAW, perturbed, tiny_causal
from tests.tiny_pair import make_tiny_pair

IMAGES, SLOTS = 13, 4
CONFIG = CausalConfig(
    img_size=8, vae_stride=1, patch_size=2, vae_embed_dim=1, class_num=3,
    embed_dim=16, depth=2, num_heads=2, head_depth=2, head_width=16,
)  # fmt: skip
GUIDED = LAW.model_copy(update={"cfg": 2.0, "temperature": 0.9})
METHOD = Speculative(gamma=3, stride=1)


@pytest.fixture(scope="module")
def models():
    target = tiny_causal(CONFIG)
    return target, perturbed(target, 0.02)


def _inputs(count=IMAGES, first=0):
    return torch.arange(first, first + count) % 3, Draws(torch.arange(first, first + count) + 100)


@torch.inference_mode()
def _slots(models, law=LAW, method=METHOD, slots=SLOTS):
    return decode_speculative(*models, law, method, *_inputs(), slots)


@torch.inference_mode()
def _alone(models, law=LAW, method=METHOD):
    return [decode_speculative(*models, law, method, *_inputs(1, image)) for image in range(IMAGES)]


def _tests_of(drafts, image):
    mine = drafts.image == image
    names = ("token", "draft_index", "accepted")
    return list(zip(*(getattr(drafts, name)[mine].tolist() for name in names), strict=True))


def _same_images(decoded, alone):
    """Every image made as if it were the only one: its rounds, what was drafted and accepted, and its tokens."""
    return (
        decoded.rounds.tolist() == [int(one.rounds) for one in alone]
        and all(_tests_of(decoded.drafts, image) == _tests_of(one.drafts, 0) for image, one in enumerate(alone))
        and torch.allclose(decoded.tokens, torch.cat([one.tokens for one in alone]), atol=1e-3)
    )


CASES = {
    "walk": (LAW, METHOD),
    "guided": (GUIDED, METHOD),
    "windows": (GUIDED, METHOD.model_copy(update={"head_window": (4, 2)})),
    "annealed": (LAW, METHOD.model_copy(update={"acceptance": Acceptance(rule="annealed", delta=2.0)})),
    "coupled": (LAW, METHOD.model_copy(update={"acceptance": Acceptance(rule="coupled", radius=0.3)})),
    "one draft": (LAW, Speculative(gamma=1, stride=1)),
    "no draft": (GUIDED, Speculative(gamma=0)),
}


#: Nearly another's.
NEAR = {"walk", "annealed", "one draft"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in NEAR)) for name in CASES])
def test_an_image_does_not_depend_on_its_slot(models, name):
    alone = _alone(models, *CASES[name])
    if CASES[name][1].gamma:
        assert len({int(one.rounds) for one in alone}) > 1, "images should leave their slots at different times"
    assert _same_images(_slots(models, *CASES[name]), alone)
    # With one slot every product has the size it has for one image: nothing an image leaves behind moves a bit.
    assert torch.equal(_slots(models, *CASES[name], slots=1).tokens, torch.cat([one.tokens for one in alone]))


def _keeps_the_token_count(change):
    def mutant(self):
        made = self.made.clone()
        changed = change(self)
        if len(self.made) == len(made):
            self.made = made
            self.made_cpu = made.tolist()
        return changed

    return mutant


def _starts_one_late(change):
    def mutant(self):
        changed = change(self)
        if changed is not None:
            late = [slot for slot in changed.taken.tolist() if slot < len(self.made_cpu)]
            self.made[late] += 1
            self.made_cpu = self.made.tolist()
        return changed

    return mutant


@pytest.mark.parametrize("mutant", [_keeps_the_token_count, _starts_one_late])
def test_a_slot_that_keeps_its_token_count_is_noticed(models, mutant):
    alone = _alone(models)
    with patch.object(Slots, "change", mutant(Slots.change)):
        assert not _same_images(_slots(models), alone)


@pytest.mark.parametrize("which", ["target", "draft"])
def test_a_slot_that_keeps_its_label_is_noticed(models, which):
    alone, restart, kept = _alone(models), ContextReader.restart, models[which == "draft"]

    def mutant(self, rows, labels):
        if self.model is not kept:
            restart(self, rows, labels)

    with patch.object(ContextReader, "restart", mutant):
        assert not _same_images(_slots(models), alone)


def test_slots_save_target_passes(models):
    count, slots = 64, 16
    with torch.inference_mode():
        refilled = decode_speculative(*models, LAW, METHOD, *_inputs(count), slots)
        batches = [decode_speculative(*models, LAW, METHOD, *_inputs(slots, i)) for i in range(0, count, slots)]
    assert refilled.rounds.tolist() == torch.cat([batch.rounds for batch in batches]).tolist()
    # Batch by batch the slowest image of each batch decides.
    by_batch = sum(int(batch.rounds.max()) for batch in batches)
    assert sum(batch.counts["target_context_calls"] for batch in batches) == by_batch
    # All slots are in use until nobody waits; the last image to get one then needs its own rounds at most.
    longest = int(refilled.rounds.max())
    assert refilled.counts["target_context_calls"] <= (int(refilled.rounds.sum()) - longest) / slots + longest
    assert refilled.counts["target_context_calls"] < 0.9 * by_batch


def test_waiting_images_take_slots_in_request_order(models):
    seen = []
    decoding_round = speculative._Decoding._round

    def watched(self):
        seen.append(list(self.slots.images))
        decoding_round(self)

    with patch.object(speculative._Decoding, "_round", watched):
        decoded = _slots(models)
    firsts = [next(i for i, active in enumerate(seen) if image in active) for image in range(IMAGES)]
    assert firsts == sorted(firsts)
    assert [sum(image in active for active in seen) for image in range(IMAGES)] == decoded.rounds.tolist()
    assert all(len(active) == SLOTS for active in seen[: firsts[-1]]), "no slot is empty while images wait"
    assert all(len(active) <= SLOTS for active in seen)


def test_images_are_finished_by_at_most_as_many_as_there_are_slots(models):
    sizes = []

    def watched(head, path, canvas, *rest):
        sizes.append(len(canvas.states))
        return finish(head, path, canvas, *rest)

    with patch.object(speculative, "finish", watched):
        _slots(models, slots=3)
    assert sizes == [3] * 4 + [1]


def test_the_same_requests_and_slots_give_the_same_bits(models):
    first, again = _slots(models, GUIDED), _slots(models, GUIDED)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.drafts.log_ratio, again.drafts.log_ratio)
    assert first.counts == again.counts


@torch.inference_mode()
def test_more_slots_than_images_are_one_batch(models):
    labels, draws = _inputs(5)
    batch, roomy = (decode_speculative(*models, LAW, METHOD, labels, draws, slots) for slots in (None, 50))
    assert torch.equal(batch.tokens, roomy.tokens)
    assert batch.counts == roomy.counts


def test_the_labels_given_stay_as_they_are(models):
    labels, draws = _inputs(6)
    with torch.inference_mode():
        decode_speculative(*models, LAW, METHOD, labels, draws, 2)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("method", [Plain(), Cspd(gamma=3)], ids=str)
def test_other_methods_decode_batch_by_batch(tmp_path, method):
    pair = load_pair(str(make_tiny_pair(tmp_path)))
    labels, draws = _inputs(5)
    whole = decode(pair, pair.card.law, method, labels, draws, slots=2)
    parts = [
        decode(pair, pair.card.law, method, labels[i : i + 2], Draws(draws.seeds[i : i + 2])) for i in range(0, 5, 2)
    ]
    assert torch.equal(whole.tokens, torch.cat([part.tokens for part in parts]))
    assert torch.equal(whole.rounds, torch.cat([part.rounds for part in parts]))
    for image in range(5):
        assert _tests_of(whole.drafts, image) == _tests_of(parts[image // 2].drafts, image % 2)
    assert whole.counts == {name: sum(part.counts[name] for part in parts) for name in whole.counts}
    assert set(whole.seconds) == set(parts[0].seconds)


def test_no_slots_are_refused(tmp_path):
    pair = load_pair(str(make_tiny_pair(tmp_path)))
    with pytest.raises(ValueError, match="slots: got 0, allowed: at least 1"):
        decode(pair, pair.card.law, Plain(), *_inputs(1), slots=0)
