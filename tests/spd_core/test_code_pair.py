"""The bundled pair of codes: it loads, its images are what their labels say, and its drafts agree with its target."""

from __future__ import annotations

import pytest
import torch

from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.law import Acceptance, Plain, Speculative
from spd_core.pairs.pair import PairError, load_pair
from spd_core.quality.labels import label_agreement
from tests.tiny_codes import make_tiny_code_pair

LABELS = torch.arange(30) % 10
DRAWS = Draws(torch.arange(30) + 400)


@pytest.fixture(scope="module")
def pair():
    return load_pair("fashion-vq")


def test_images_are_what_their_labels_say(pair):
    decoded = decode(pair, pair.card.law, Plain(), LABELS, DRAWS)
    assert decoded.tokens.dtype is torch.int64 and decoded.tokens.shape == (30, 64)
    images = pair.to_images(decoded.tokens)
    assert images.shape == (30, 28, 28, 1) and images.dtype is torch.uint8
    # 0.815 over 1,000 images (the card); chance is 0.1.
    assert label_agreement(images, LABELS, pair.card.reference).float().mean() > 0.6


@pytest.mark.parametrize("drafter", ["draft", "eagle"])
def test_drafts_agree_with_the_target(pair, drafter):
    decoded = decode(pair, pair.card.law, Speculative(gamma=8, drafter=drafter), LABELS, DRAWS)
    # 0.88 to 0.89 over the bench's images; a draft whose weights are another target's is far below.
    assert decoded.drafts.accepted.float().mean() > 0.8
    assert not decoded.drafts.excess.any()


def test_a_relaxed_rule_keeps_more_and_says_what_it_costs(pair):
    uniform = Acceptance(rule="annealed", delta=5.0, nu=0.0)
    decoded = decode(pair, pair.card.law, Speculative(gamma=8, acceptance=uniform), LABELS, DRAWS)
    assert decoded.drafts.accepted.float().mean() > 0.95
    assert 0.03 < decoded.drafts.excess.sum() / decoded.tokens.numel() < 0.15


@pytest.mark.parametrize(
    "method", [Plain(), Speculative(gamma=2), Speculative(tree=(2, 1)), Speculative(gamma=0)], ids=repr
)
def test_codes_drawn_by_probabilities_that_are_no_numbers_make_no_images(method, tmp_path):
    """Weights so large that the target's logits overflow; codes themselves are whole numbers in any case."""
    pair = load_pair(str(make_tiny_code_pair(tmp_path)))
    inputs = torch.zeros(4, dtype=torch.int64), Draws(torch.arange(4))
    decode(pair, pair.card.law, method, *inputs, slots=2)
    pair.target.norm.weight.mul_(1e30)
    pair.target.output.weight.mul_(1e30)
    with pytest.raises(
        PairError, match=r"computed NaN or infinity, allowed: weights .* law.dtype, .* law.temperature$"
    ):
        decode(pair, pair.card.law, method, *inputs, slots=2)
