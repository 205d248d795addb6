"""``spd bench``: what the rows hold, that ratios compare like with like, and wrong input."""

from __future__ import annotations

import json

import pytest

from jobs import bench
from jobs.cli import main
from spd_core.codec import PixelCodec
from spd_core.data import FASHION_CLASSES
from spd_core.law import Cspd, Plain, SamplerLaw
from tests.tiny_pair import make_tiny_pair

FIELDS = {
    "pair", "law", "method", "batch", "threads", "gamma", "images_per_s", "speedup_vs_plain", "acceptance",
    "tokens_per_round", "head_calls_per_token", "head_rows_per_token", "distance", "label_agreement", "n",
}  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


def test_rows_and_table(pair, tmp_path):
    out, table = tmp_path / "b.json", tmp_path / "b.md"
    arguments = ["--gamma", "2", "4", "--paper-gamma", "3", "--num-iter", "4", "--batch", "1", "2", "--n", "0"]
    assert main(["bench", "--pair", pair, *arguments, "--json", str(out), "--markdown", str(table)]) == 0
    found = json.loads(out.read_text())
    assert set(found) == {"machine", "rows"}
    rows = found["rows"]
    assert all(set(row) >= FIELDS for row in rows)
    methods = [(row["batch"], row["method"], row["gamma"], row["law"]["num_iter"]) for row in rows]
    one = [("plain", None, 8), ("plain", None, 4), ("cspd", 2, 8), ("cspd", 4, 8), ("cspd", 3, 8)]
    assert methods == [(batch, *entry) for batch in (1, 2) for entry in one]
    for row in rows:
        assert row["images_per_s"] > 0
        if row["method"] == "plain":
            assert row["speedup_vs_plain"] == 1.0, "plain is its own measure at its own law"
    full = next(row for row in rows if row["method"] == "plain")
    assert full["head_calls_per_token"] == pytest.approx(4 * 8 / 16)  # head steps x iterations / tokens
    assert full["head_rows_per_token"] == pytest.approx(4)
    assert table.read_text().count("| cspd ") == 6


def test_quality_of_every_entry(tmp_path):
    folder = make_tiny_pair(
        tmp_path / "real-size", codec=PixelCodec(), class_names=FASHION_CLASSES, reference="fashion-mnist"
    )
    out = tmp_path / "b.json"
    sizes = ["--batch", "24", "--n", "40", "--repeats", "1"]
    entries = ["--set", "law.num_iter=2", "--num-iter", "2", "--gamma", "1", "--paper-gamma"]
    assert main(["bench", "--pair", str(folder), *entries, *sizes, "--json", str(out)]) == 0
    plain, cspd = json.loads(out.read_text())["rows"]
    for row in (plain, cspd):
        assert row["n"] == 40
        assert row["distance"] > row["floor"] > 0, "noise is further from real images than real images are"
        assert 0 <= row["label_agreement"] <= 1
    assert plain["acceptance"] is None
    assert 0 <= cspd["acceptance"] <= 1
    assert plain["tokens_per_round"] == 32


def test_every_method_is_measured_against_plain_at_its_law():
    law = SamplerLaw(num_iter=8)
    entries = bench.main_entries(law, [8, 4], [2], [2]) + bench.ablation_entries(law, 2)
    plain = {entry.law for entry in entries if isinstance(entry.method, Plain)}
    assert all(entry.law in plain for entry in entries)
    shares = {entry.method.prefill for entry in bench.ablation_entries(law, 2) if isinstance(entry.method, Cspd)}
    aligned = {entry.method.aligned for entry in bench.ablation_entries(law, 2) if isinstance(entry.method, Cspd)}
    assert shares == {0.0, 0.05, 0.15}
    assert aligned == {True, False}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gamma", "0"], "--gamma"),
        (["--batch", "-1"], "--batch"),
        (["--n", "1"], "--n"),
        (["--json", "no/such/folder/b.json"], "--json"),
        (["--pair", "nothing"], "pair"),
        (["--set", "law.cfg=0"], "cfg"),
    ],
)
def test_wrong_input_is_one_line(pair, capsys, arguments, named):
    assert main(["bench", "--pair", pair, "--n", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
