"""A dataset of a pair of codes: made, validated, told in words, sampled and calibrated like any other."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.run import driver
from jobs.words.phrases import GUARANTEES, guarantee_in_words, law_in_words, method_in_words
from spd_core.data import FASHION_CLASSES
from spd_core.law import Acceptance, SamplerLaw, Speculative
from spd_core.pairs.pair import load_card
from tests.faults.inline_ray import inline_ray
from tests.jobs.code_pair import CODES, LENGTH, make_code_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "tiny"
    return str(make_code_pair(folder, class_names=FASHION_CLASSES, reference="fashion-mnist"))


@pytest.fixture
def generate(monkeypatch, tmp_path, pair):
    """Runs a job of 12 images with workers in this process; its folder."""
    monkeypatch.setattr(driver, "running_ray", inline_ray)

    def run(*fields):
        given = [f"pair={pair}", "requests.count=12", "shard_size=6", "batch=4", "workers.count=1", *fields]
        sets = [word for field in given for word in ("--set", field)]
        assert main(["generate", *sets, "--output", str(tmp_path / "out")]) == 0
        return tmp_path / "out"

    return run


def test_a_relaxed_job(generate, capsys):
    out = generate("method=speculative", "method.gamma=2", "method.acceptance={rule: lantern++, lam: 2, k: 4}")
    assert main(["validate", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ok: 12 images, 2 shards")
    report = json.loads((out / "report.json").read_text())
    assert report["guarantee"] == "tv"
    found = report["certificate"]
    assert 0 <= found["low"] < found["mean"] < found["high"] <= 1
    assert found["images"] == 12
    assert report["counts"]["tokens_per_round"] > 1
    assert "at least" in report["quality"]["skipped"]
    data = pq.read_table(out / "data")
    assert all(row.as_py() >= 0 for row in data["certificate"])
    assert all(row.as_py() > 0 for row in data["drafted"])
    drafts = pq.read_table(out / "acceptance")
    assert sum(data["certificate"].to_pylist()) == pytest.approx(12 * found["mean"], rel=1e-5)
    assert sum(drafts["excess"].to_pylist()) == pytest.approx(12 * LENGTH * found["excess_per_token"], rel=1e-5)
    knobs = ("gamma 2", "drafter draft", "rule lantern++", "k 4", "lam 2.0")
    foreign = ("stride", "proposals", "radius", "nu 0.7", "tree")
    page, card = ((out / name).read_text() for name in ("report.html", "README.md"))
    assert "mean over the images: it bounds the" in page and "certificate, mean over images" in card
    for text in (page, card):
        assert "images chosen by it are a biased sample" in text
        assert "head steps" not in text
        assert "no guidance, temperature 1, top-k off, top-p 1, float32" in text
        method = next(line for line in text.splitlines() if "rule lantern++" in line)
        assert all(knob in method for knob in knobs)
        assert not any(knob in method for knob in foreign)


def test_auto_measures_both_drafts(generate):
    out = generate("method={name: auto, guarantee: tv, delta: 2, seconds: 2}")
    report = json.loads((out / "report.json").read_text())
    tried = [row["method"] for row in report["calibration"]["rows"]]
    assert {method["name"] for method in tried} == {"plain", "speculative"}
    assert {method.get("drafter") for method in tried} == {None, "draft", "eagle"}
    assert {method["acceptance"]["rule"] for method in tried if "acceptance" in method} == {"lossless", "annealed"}
    assert main(["validate", str(out)]) == 0


def test_calibrate(pair, tmp_path, capsys):
    out = tmp_path / "c.json"
    sets = ["--set", f"pair={pair}", "--set", "requests.count=8", "--set", "batch=4"]
    assert main(["calibrate", *sets, "--set", "method={name: auto, seconds: 1}", "--json", str(out)]) == 0
    assert all(row["images_per_s"] > 0 for row in json.loads(out.read_text())["rows"])
    assert "speculative (gamma 2, drafter eagle, rule lossless)" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["plain", "speculative"])
def test_sample_writes_codes(pair, tmp_path, method):
    out = tmp_path / "s.npz"
    assert main(["sample", "--pair", pair, "--n", "5", "--method", method, "--out", str(out)]) == 0
    saved = np.load(out)
    assert saved["images"].shape == (5, 28, 28, 1)
    assert saved["tokens"].shape == (5, LENGTH)
    assert saved["tokens"].dtype == np.int64
    assert 0 <= saved["tokens"].min() <= saved["tokens"].max() < CODES


def test_words_name_only_what_is_used():
    law = SamplerLaw(cfg=2.0, cfg_schedule="constant", cfg_interval=10, top_k=50, top_p=0.9)
    text = "guidance 2 (constant) up to code 12, temperature 1, top-k 50, top-p 0.9, float32"
    assert law_in_words(law.model_dump(), "llamagen") == text
    tree = Speculative(tree=(2, 1), drafter="eagle", acceptance=Acceptance(rule="annealed", delta=2.0, nu=0.0))
    text = "speculative (tree 2/1, drafter eagle, rule annealed, delta 2.0, nu 0.0)"
    assert method_in_words(tree.model_dump(), "llamagen") == text
    paths = "speculative (gamma 8, stride 15, proposals 4, rule coupled, radius 0.5, head_window off)"
    coupled = Speculative(acceptance=Acceptance(rule="coupled", radius=0.5))
    assert method_in_words(coupled.model_dump(), "causal") == paths


def test_a_promise_names_the_rounding_of_its_arithmetic():
    target = load_card("fashion-vq").sha256["target"]
    assert guarantee_in_words("exact", "float32", target) == GUARANTEES["exact"]
    assert "7.9e-04 on average" in guarantee_in_words("exact", "bfloat16", target)
    assert "was not measured" in guarantee_in_words("exact", "bfloat16", "fashion-vq")  # other weights of that name
    assert "was not measured" in guarantee_in_words("tv", "tf32", "another")
    assert guarantee_in_words("none", "bfloat16", "fashion-mar") == GUARANTEES["none"]
