"""A SphereAR pair through the commands: spec, job, report, card, benchmark, measured methods."""

from __future__ import annotations

import json

import pytest

from jobs.cli import main
from jobs.run import driver
from spd_core.candidates import choices
from spd_core.decode.ceilings import Ceilings
from spd_core.decode.predict import images_per_s
from spd_core.families.registry import family
from spd_core.law import Auto, Choice, Plain, Speculative
from spd_core.memory import batch_memory
from spd_core.pairs.pair import load_card
from tests.faults.inline_ray import inline_ray
from tests.tiny_sphere import HANDOFF, PUBLIC, make_tiny_sphere_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return str(make_tiny_sphere_pair(tmp_path_factory.mktemp("pairs") / "spheres"))


@pytest.fixture
def sets(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "running_ray", inline_ray)
    fields = (f"pair={pair}", f"output={tmp_path / 'out'}", "requests.count=4", "shard_size=2", "features=false")
    return [word for field in fields for word in ("--set", field)]


def _set(*fields):
    return [word for field in fields for word in ("--set", field)]


QUIRK = "guidance 3 (linear), the null branch with a first token of its own"


@pytest.mark.parametrize(
    ("fields", "law", "method"),
    [
        ([], f"9 head steps, clean tokens read, {QUIRK}, float32", "plain"),
        (
            ["law.handoff_level=40", "method.name=speculative", "method.gamma=2", "method.stride=1"],
            f"9 head steps, hand-off at 40 (before the last step), {QUIRK}, float32",
            "speculative",
        ),
    ],
    ids=["public", "hand-off"],
)
def test_a_dataset(sets, tmp_path, capsys, fields, law, method):
    assert main(["plan", *sets, *_set(*fields)]) == 0
    assert law in capsys.readouterr().out
    assert main(["generate", *sets, *_set(*fields)]) == 0
    assert main(["validate", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["pair"]["family"], report["method"]["name"], report["guarantee"]) == ("sphere", method, "exact")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"\n- Law: {law}\n" in card
    assert main(["generate", *sets, *_set(*fields)]) == 0, "a resume"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "method=speculative",
            "method: got 'speculative' with law.handoff_level 0, allowed: plain, or a law that hands",
        ),
        ("method=cspd", "method: got 'cspd', allowed: plain, speculative"),
        ("law.top_k=3", "law.top_k: got 3, allowed: 0"),
    ],
)
def test_what_it_has_not_is_one_line(sets, capsys, field, message):
    assert main(["generate", *sets, "--set", field]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_benchmark_shows_both_laws(pair, tmp_path, capsys):
    arguments = ["--pair", pair, "--batch", "1", "--n", "0", "--repeats", "1", "--gamma", "2", "--delta"]
    assert main(["bench", *arguments, "--json", str(tmp_path / "b.json")]) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    labels = [row["label"] for row in rows]
    assert labels[0] == "plain" and "naive loop" in labels and "plain, hand-off at 40" in labels
    assert any(label.startswith("speculative, gamma 2, stride 1") and "hand-off at 40" in label for label in labels)
    assert "hand-off at 40" in capsys.readouterr().out


def test_measured_methods_are_those_that_the_law_allows(pair):
    card = load_card(pair)
    for law, possible in ((PUBLIC, {"plain"}), (HANDOFF, {"plain", "speculative"})):
        assert {choice.method.name for choice in choices(card, Auto(), 1, 4, law)} == possible
    assert family("sphere").default_method(card) == Plain(head_window=card.windows[0])


def test_what_a_plan_predicts(pair):
    card, at = load_card(pair), Ceilings(name="x", flops=1e12, bytes_per_s=1e11, kernel_s=1e-6)
    rate = images_per_s(card, PUBLIC, Choice(method=Plain(), batch=4), at)
    twice = images_per_s(card, PUBLIC.model_copy(update={"head_steps": 17}), Choice(method=Plain(), batch=4), at)
    assert rate is not None and twice is not None and rate > twice > 0.4 * rate
    assert images_per_s(card, HANDOFF, Choice(method=Speculative(gamma=2), batch=4), at) is None
    unguided = PUBLIC.model_copy(update={"cfg": 1.0})
    assert batch_memory(card, PUBLIC, Plain(), 8).cache == 2 * batch_memory(card, unguided, Plain(), 8).cache
