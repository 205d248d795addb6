"""A family that only this test registers goes through every command: nothing but its own file knows it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from jobs.cli import main
from jobs.run import driver
from spd_core.codec import PixelCodec
from spd_core.families.registry import FAMILIES
from spd_core.law import SamplerLaw
from spd_core.pairs.checkpoint import write_pair
from spd_core.pairs.pair import PairCard
from tests import toy_family
from tests.documented import code_of, shown_under
from tests.faults.inline_ray import inline_ray
from tests.toy_family import Toy, ToyConfig, ToyFamily

CODEC = PixelCodec(size=4, padded=4, patch_size=2)


@pytest.fixture
def pair(monkeypatch, tmp_path):
    monkeypatch.setattr(driver, "running_ray", inline_ray)
    monkeypatch.setitem(FAMILIES, ToyFamily.name, ToyFamily())
    torch.manual_seed(0)
    card = PairCard(
        name="toys",
        family="toy",
        target=ToyConfig(),
        codec=CODEC,
        class_names=("a", "b", "c"),
        law=SamplerLaw(temperature=0.5),
        licence="MIT",
        data="none, random weights",
        sha256={},
    )
    write_pair(tmp_path / "pair", {"target": Toy(ToyConfig()).state_dict()}, card)
    return str(tmp_path / "pair")


@pytest.fixture
def sets(pair, tmp_path):
    fields = (f"pair={pair}", f"output={tmp_path / 'out'}", "requests.count=6", "shard_size=3", "features=false")
    return [word for field in fields for word in ("--set", field)]


def test_a_dataset_of_an_added_family(sets, tmp_path, capsys):
    assert main(["plan", *sets]) == 0
    assert "temperature 0.5" in capsys.readouterr().out
    assert main(["generate", *sets]) == 0
    assert main(["validate", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["pair"]["family"], report["method"]["name"], report["guarantee"]) == ("toy", "plain", "exact")
    card, page = ((tmp_path / "out" / name).read_text() for name in ("README.md", "report.html"))
    assert "\n- Law: temperature 0.5\n- Method: plain\n" in card
    assert "<dd>temperature 0.5</dd>" in page and "<dd>plain</dd>" in page
    assert main(["generate", *sets]) == 0, "a resume"


def test_images_of_an_added_family(pair, tmp_path):
    assert main(["sample", "--pair", pair, "--n", "3", "--out", str(tmp_path / "s.npz")]) == 0
    saved = np.load(tmp_path / "s.npz")
    assert saved["images"].shape == (3, 4, 4, 1) and saved["tokens"].shape == (3, 4, 4)


def test_a_benchmark_of_an_added_family(pair, tmp_path, capsys):
    arguments = ["--pair", pair, "--batch", "2", "--n", "0", "--repeats", "1", "--json", str(tmp_path / "b.json")]
    assert main(["bench", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "Law: temperature 0.5." in shown and "| plain | exact |" in shown
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [(row["family"], row["label"], row["speedup_vs_plain"]) for row in rows] == [("toy", "plain", 1.0)]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("method=speculative", "method: got 'speculative', allowed: plain, null, auto (the toy family of"),
        ("method.head_window=[4]", "method.head_window: got (4,), allowed: ()"),
        ("law.cfg=2", "law.cfg: got 2.0, allowed: 1.0"),
    ],
)
def test_what_an_added_family_has_not_is_refused(sets, capsys, field, message):
    assert main(["generate", *sets, "--set", field]) == 2
    assert message in capsys.readouterr().err


def test_the_documented_example_is_the_one_that_runs():
    assert shown_under("Adding a family") == code_of(toy_family)
