"""What encoding costs, and what `spd plan` says of it and of a batch's memory."""

from __future__ import annotations

import pytest

from jobs.job.spec import make_spec
from jobs.run.encoding import FORMATS, encoding_cost, encoding_table, threads_rate
from jobs.run.estimate import estimate, estimate_lines
from spd_core.pairs.pair import load_card


def test_the_table_has_every_format_and_the_default_first():
    costs = [encoding_cost((32, 32, 3), image, 0.0) for image in FORMATS]
    assert all(cost.seconds > 0 and cost.bytes > 50 for cost in costs)
    lines = encoding_table((32, 32, 3), costs).splitlines()
    assert len(lines) == 2 + len(FORMATS) and lines[2].startswith("| png, fast |")
    assert threads_rate((32, 32, 3), FORMATS[0], 2, 20) > 0


@pytest.mark.parametrize(("encoded", "warns"), [(1e9, False), (0.01, True)])
def test_the_plan_warns_when_the_decoder_is_faster_than_encoding(encoded, warns):
    spec = make_spec({"pair": "fashion-ar"})
    card = load_card("fashion-ar")
    guess = estimate(card, spec).model_copy(update={"encoded_per_s": encoded, "images_per_s_per_worker": 5.0})
    lines = estimate_lines(card, spec, guess)
    assert any(line.startswith("warning      encoding is the bottleneck") for line in lines) is warns
    assert any(line.startswith("memory       about ") and "for a batch of 32" in line for line in lines)


def test_more_threads_encode_more():
    card = load_card("fashion-ar")
    one, four = (estimate(card, make_spec({"workers": {"encoders": encoders}})).encoded_per_s for encoders in (1, 4))
    assert four > 1.5 * one


@pytest.mark.parametrize(
    ("job", "named"),
    [
        ({}, "with torch, Ray and the feature model"),
        ({"features": False}, "with torch and Ray"),
        ({"workers": {"num_gpus": 1, "count": 1}}, None),
    ],
)
def test_the_plan_says_what_a_worker_on_a_cpu_holds_besides_the_batch(job, named):
    card, spec = load_card("fashion-ar"), make_spec({"pair": "fashion-ar", **job})
    lines = estimate_lines(card, spec, estimate(card, spec))
    (place,) = (place for place, line in enumerate(lines) if line.startswith("memory"))
    assert lines[place + 1].startswith("             and on top each worker's process") is (named is not None)
    assert named is None or named in lines[place + 1]
