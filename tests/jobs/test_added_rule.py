"""A job by a rule that only this test registers: nothing but the rule's own file knows it."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.run import driver
from spd_core.accept.rules import RULES
from tests.faults.inline_ray import inline_ray
from tests.jobs.code_pair import make_code_pair
from tests.toy_rule import Floored


@pytest.fixture
def sets(monkeypatch, tmp_path):
    monkeypatch.setattr(driver, "running_ray", inline_ray)
    monkeypatch.setitem(RULES, Floored.name, Floored)
    pair = make_code_pair(tmp_path / "pair")
    fields = (
        f"pair={pair}", f"output={tmp_path / 'out'}", "requests.count=12", "shard_size=6", "batch=6", "workers.count=1",
        "method=speculative", "method.gamma=2", "method.acceptance.rule=floored",
    )  # fmt: skip
    return [word for field in fields for word in ("--set", field)]


def test_a_dataset_by_an_added_rule(sets, tmp_path, capsys):
    floor = ["--set", "method.acceptance.floor=0.9"]
    assert main(["generate", *sets, *floor]) == 0
    assert main(["validate", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["guarantee"] == "tv"
    assert 0 < report["certificate"]["mean"] <= 1
    assert sum(pq.read_table(tmp_path / "out" / "acceptance")["excess"].to_pylist()) > 0
    for name, told in (("README.md", "certificate, mean over images"), ("report.html", ">Certificate</a></dt><dd>")):
        text = (tmp_path / "out" / name).read_text()
        method = next(line for line in text.splitlines() if "rule floored" in line)
        assert "floor 0.9" in method
        assert "delta" not in method
        assert told in text
    assert main(["generate", *sets, *floor]) == 0, "a resume"
    capsys.readouterr()
    assert main(["generate", *sets, "--set", "method.acceptance.floor=0.8"]) == 2, "another dataset"
    assert "floor" in capsys.readouterr().err
    assert main(["generate", *sets, "--set", "method.acceptance.floor=0"]) == 2
    assert (
        "method.acceptance.floor: got 0, allowed: a number, above 0, at most 1 with rule floored"
        in capsys.readouterr().err
    )
