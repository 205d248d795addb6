"""``spd train`` from the parts of a causal pair to its folder, on tiny models."""

from __future__ import annotations

import hashlib

import pytest
import torch

from jobs.cli import main
from jobs.commands import train
from jobs.commands.train import acceptance_lines, following_lines
from jobs.job.plan import check_weights
from spd_core.families.causal.distil import DistilRecipe
from spd_core.families.causal.model import CausalConfig
from spd_core.families.causal.recipe import CausalRecipe
from spd_core.law import SamplerLaw
from spd_core.pairs.pair import load_pair
from spd_core.train import bundle
from spd_core.train.acceptance import TeacherForced
from spd_core.train.bundle import record_figures
from spd_core.train.variance import Following, VarianceRecipe
from spd_core.train.windows import LADDER, PRICES

LAW = SamplerLaw(head_steps=10, handoff_level=91)
CONFIG = CausalConfig(
    img_size=32, vae_stride=1, patch_size=4, vae_embed_dim=1, class_num=10,
    embed_dim=16, depth=1, num_heads=2, head_depth=1, head_width=16,
)  # fmt: skip
COMMON = {"model": CONFIG, "steps": 2, "batch": 8, "bf16": False}
VARIANCE = {"model": CONFIG, "law": LAW, "steps": 2, "batch": 4, "images": 4, "tokens": 2}
RECIPES = {
    ("tiny-ar", "target"): CausalRecipe(**COMMON),
    ("tiny-ar", "draft"): CausalRecipe(**COMMON, seed=1),
    ("tiny-ar", "distil"): DistilRecipe(**COMMON, target=CONFIG, law=LAW, stride=3),
    ("tiny-ar", "target-variance"): VarianceRecipe(**VARIANCE),
    ("tiny-ar", "draft-variance"): VarianceRecipe(**VARIANCE, draft=True),
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    images = torch.randint(0, 256, (24, 28, 28, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for module in (train, bundle):
        monkeypatch.setattr(module, "RECIPES", train.RECIPES | RECIPES)
        monkeypatch.setattr(module, "LAWS", train.LAWS | {"tiny-ar": LAW})
    monkeypatch.setattr(train, "load_fashion_mnist", lambda split, folder: (images, torch.arange(24) % 10))


def _spd_train(out, part, *more):
    return main(["train", "tiny-ar", "--part", part, "--out", str(out), *more])


def _trained(out, *parts):
    for part in parts:
        assert _spd_train(out, part) == 0
    return out


def test_a_distilled_draft_is_bundled_with_both_its_runs(tmp_path):
    out = _trained(tmp_path, "target", "draft", "distil", "bundle")
    assert {path.name for path in (out / "distil").iterdir()} >= {"checkpoint.pt", "loss.jsonl", "weights.safetensors"}
    card = load_pair(str(out / "pair")).card
    assert (out / "pair/draft.safetensors").read_bytes() == (out / "distil/weights.safetensors").read_bytes()
    assert list(card.training) == ["target", "draft", "distil"]
    recipe = card.training["distil"]["recipe"]
    assert recipe["target_sha256"] == card.sha256["target"]
    assert recipe["initial_sha256"] == hashlib.sha256((out / "draft/weights.safetensors").read_bytes()).hexdigest()
    assert not {"model", "target", "law"} & recipe.keys()
    row = {"method": "plain", "batch": 1, "distance": None}
    record_figures(out / "pair", {"rows": [row], "machine": {"cpu": "a CPU"}}, "spd bench")
    text = (out / "pair/README.md").read_text()
    assert "| draft, distilled | 0.0" in text
    assert "(then `draft`, then `distil`, then `bundle`)" in text


def test_a_pair_without_distillation_is_bundled_as_before(tmp_path):
    out = _trained(tmp_path, "target", "draft", "bundle")
    card = load_pair(str(out / "pair")).card
    assert list(card.training) == ["target", "draft"]
    assert (out / "pair/draft.safetensors").read_bytes() == (out / "draft/weights.safetensors").read_bytes()


def test_a_distillation_to_another_target_is_not_bundled(tmp_path, capsys):
    out = _trained(tmp_path, "target", "draft", "distil")
    (out / "distil").rename(out / "old")
    assert _spd_train(out, "distil", "--target", str(out / "draft/weights.safetensors")) == 0
    capsys.readouterr()
    assert _spd_train(out, "bundle") == 2
    assert "distil: was given target weights with sha256" in capsys.readouterr().err
    assert not (out / "pair").exists()


def test_acceptance_is_printed(tmp_path, capsys):
    out = _trained(tmp_path, "target", "draft", "distil")
    capsys.readouterr()
    assert _spd_train(out, "acceptance", "--n", "5", "--stride", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "stride 2, 5 test images, 320 drafted tokens each"
    assert [line.split(":")[0] for line in lines[1:4]] == ["draft", "distil", "target"]
    assert lines[4].startswith("distil - draft, on the same noise: acceptance ")


def test_variances_are_bundled(tmp_path, capsys):
    out = _trained(tmp_path, "target", "draft", "distil")
    capsys.readouterr()
    for part in ("target-variance", "draft-variance"):
        assert _spd_train(out, part, "--n", "3") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "6 paths among 3 test images"
        assert [line.split(":")[0] for line in lines[1:]][-1].startswith("levels 999 to ")
    assert _spd_train(out, "acceptance", "--n", "2", "--stride", "2") == 0
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert sorted(names) == ["distil", "distil, following", "draft", "target", "target, following"]
    _trained(out, "bundle")
    pair = load_pair(str(out / "pair"))
    assert pair.target.head.variance is not None and pair.draft.head.variance is not None
    assert list(pair.card.training) == ["target", "draft", "distil", "target-variance", "draft-variance"]
    for run, of in (("target-variance", "target"), ("draft-variance", "draft")):
        recipe = pair.card.training[run]["recipe"]
        assert recipe["model_sha256"] == pair.card.sha256[of]
        assert not {"model", "law"} & recipe.keys()
    check_weights(str(out / "pair"), pair.card.sha256)


def test_a_variance_of_other_weights_is_not_bundled(tmp_path, capsys):
    out = _trained(tmp_path, "target", "draft")
    assert _spd_train(out, "draft-variance", "--from", str(out / "target/weights.safetensors"), "--n", "3") == 0
    capsys.readouterr()
    assert _spd_train(out, "bundle") == 2
    assert "draft-variance: was given draft weights with sha256" in capsys.readouterr().err


def test_a_variance_is_added_to_a_pair_whose_runs_are_gone(tmp_path, capsys):
    pair, runs = tmp_path / "pair", tmp_path / "runs"
    _trained(tmp_path, "target", "draft", "bundle")
    before = load_pair(str(pair)).card
    assert _spd_train(runs, "target-variance", "--target", str(pair / "target.safetensors"), "--n", "3") == 0
    assert _spd_train(pair, "add", "--variance", str(runs / "target-variance")) == 0
    after = load_pair(str(pair))
    assert after.target.head.variance is not None and after.draft.head.variance is None
    assert (pair / "target_variance.safetensors").read_bytes() == (
        runs / "target-variance/weights.safetensors"
    ).read_bytes()
    assert {part: after.card.sha256[part] for part in before.sha256} == before.sha256
    facts = after.card.training["target-variance"]
    assert facts["steps_done"] == 2 and facts["recipe"]["images"] == 4 and facts["final_loss"] > 0
    unchanged = {"sha256", "training"}
    assert after.card.model_dump(exclude=unchanged) == before.model_dump(exclude=unchanged)
    assert "| target's posterior variance | 0.0" in (pair / "README.md").read_text()
    assert "x 4 paths" in (pair / "README.md").read_text()

    capsys.readouterr()
    card = (pair / "pair.json").read_bytes()
    for run, message in (("target", "--variance: got"), ("", "--variance: got nothing")):
        assert _spd_train(pair, "add", *(["--variance", str(tmp_path / run)] if run else [])) == 2
        assert message in capsys.readouterr().err
    assert _spd_train(runs, "draft-variance", "--from", str(pair / "target.safetensors"), "--n", "3") == 0
    assert _spd_train(pair, "add", "--variance", str(runs / "draft-variance")) == 2
    assert "draft-variance: was given draft weights with sha256" in capsys.readouterr().err
    assert (pair / "pair.json").read_bytes() == card


def test_windows_are_tuned_into_the_card(tmp_path, capsys):
    out = _trained(tmp_path, "target", "draft", "bundle") / "pair"
    capsys.readouterr()
    assert _spd_train(out, "windows", "--n", "2") == 0
    card = load_pair(str(out)).card
    assert card.windows == card.head_windows and len(card.head_windows) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"price {tuned.price:g}, windows {'/'.join(map(str, tuned.windows))}" for tuned in card.tuned_windows
    ]
    assert set(card.head_windows) <= {tuned.windows for tuned in card.tuned_windows}
    assert [tuned.price for tuned in card.tuned_windows] == sorted({*LADDER, *PRICES})
    assert _spd_train(tmp_path / "none", "windows") == 2
    assert "pair: got" in capsys.readouterr().err


def test_what_following_is_worth_is_printed():
    assert following_lines([Following((960, 805), 0.25, 0.01, 0.0075)]) == [
        "levels 960 to 805: 0.25 of the squared movement explained, chance that the next step is rejected 0.0100 held, "
        "0.0075 followed"
    ]


def test_what_was_gained_is_measured_image_by_image():
    first, gain = torch.linspace(0.1, 0.9, 50), torch.tensor([0.04, 0.06]).repeat(25)
    found = {"draft": TeacherForced(first, first), "distil": TeacherForced(first + gain, first)}
    lines = acceptance_lines(found)
    assert lines[0].startswith("draft: acceptance 0.5000 (0.4")
    assert lines[2] == "distil - draft, on the same noise: acceptance +0.0500 (+0.0471 to +0.0529)"
    assert len(acceptance_lines({"draft": found["draft"]})) == 1


@pytest.mark.parametrize(
    ("what", "given", "message"),
    [
        ("fashion-mar", ["--part", "distil"], "--part: got distil for fashion-mar, allowed: target, draft, target-va"),
        ("fashion-mar", ["--part", "acceptance"], "--part: got acceptance for fashion-mar, allowed:"),
        ("tiny-ar", ["--part", "acceptance", "--n", "1"], "--n: got 1, allowed: 2..10000"),
        ("tiny-ar", ["--part", "acceptance", "--stride", "0"], "--stride: got 0, allowed: 1..1000"),
        ("tiny-ar", ["--part", "acceptance"], "without draft/weights.safetensors, allowed: a folder"),
        ("tiny-ar", ["--part", "distil"], "target/weights.safetensors"),
        ("tiny-ar", ["--part", "target-variance"], "target/weights.safetensors"),
        ("tiny-ar", ["--part", "draft-variance"], "draft/weights.safetensors"),
    ],
)
def test_wrong_input_is_one_line(what, given, message, tmp_path, capsys):
    assert main(["train", what, "--out", str(tmp_path), *given]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_distillation_goes_on_with_its_own_weights_only(tmp_path, capsys):
    out = _trained(tmp_path, "target", "draft", "distil")
    capsys.readouterr()
    assert _spd_train(out, "distil", "--from", str(out / "target/weights.safetensors")) == 2
    assert "(initial_sha256)" in capsys.readouterr().err
