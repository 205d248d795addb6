"""``spd calibrate``: the table, the check of the choice, and wrong input."""

from __future__ import annotations

import json
import math

import pytest

from jobs.cli import main
from jobs.commands.calibrate import whole_rates
from jobs.job.calibration import TrialFailed
from spd_core.decode.trial import Trial
from spd_core.law import Choice, Plain
from tests.tiny_causal import make_tiny_causal_pair
from workers.records import TrialTask
from workers.trial import Trier


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> str:
    return str(make_tiny_causal_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


def given(pair: str, *more: str, count: int = 8) -> list[str]:
    return ["calibrate", "--set", f"pair={pair}", "--set", f"requests.count={count}", "--set", "batch=4", *more]


def test_the_table_of_a_causal_pair(pair, tmp_path, capsys):
    out = tmp_path / "c.json"
    assert main(given(pair, "--set", "method=auto", "--json", str(out))) == 0
    found = json.loads(out.read_text())
    assert {row["method"]["name"] for row in found["rows"]} == {"plain", "speculative"}
    assert {row["guarantee"] for row in found["rows"]} == {"exact"}
    assert all(row["images_per_s"] > 0 and row["images"] > 0 for row in found["rows"])
    assert "whole_images_per_s" not in found
    assert capsys.readouterr().out.count("| **") == sum(row["chosen"] for row in found["rows"]) == 1


@pytest.mark.parametrize(("rates", "code"), [([1.0, 2.0], 1), ([1.95, 2.0], 0), ([3.0, 2.0], 0)])
def test_the_check_holds_the_choice_against_the_best(pair, tmp_path, monkeypatch, rates, code):
    # The first choice is made the fastest in short turns; whole shards say what it is worth.
    def run(_trier: Trier, task: TrialTask) -> Trial:
        first = task.choice.method == Plain()
        if math.isinf(task.limit_s):
            assert len(task.seeds) == 64
            return Trial(rates[0] if first else rates[1], 1.0)
        assert len(task.seeds) == 16
        return Trial(9.0 if first else 1.0, 1.0)

    monkeypatch.setattr(Trier, "run", run)
    out = tmp_path / "c.json"
    assert main(given(pair, "--set", "method=auto", "--check", "1", "--json", str(out), count=70)) == code
    assert json.loads(out.read_text())["share_of_best"] == rates[0] / max(rates)


def test_whole_rates_are_medians_and_a_failure_counts_as_nothing():
    choices = [Choice(method=Plain(), batch=batch) for batch in (1, 2)]
    speeds = {1: iter([5.0, 1.0, 2.0]), 2: iter([3.0, 3.0])}

    def measure(choice: Choice, _lap: int, limit_s: float) -> Trial:
        assert math.isinf(limit_s)
        speed = next(speeds[choice.batch], None)
        if speed is None:
            raise TrialFailed("gone")
        return Trial(speed, 1.0)

    assert whole_rates(choices, measure, 3) == [2.0, 3.0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "method=plain"], "method: got 'plain', allowed: auto"),
        (["--set", "method=auto", "--check", "-1"], "--check: got -1"),
        (["--set", "method=auto", "--json", "no/such/folder/c.json"], "--json: got"),
        (["--set", "method={name: auto, delta: 2}"], "delta belongs to guarantee tv or none"),
    ],
)
def test_wrong_input_is_one_line(pair, capsys, more, message):
    assert main(given(pair, *more)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
