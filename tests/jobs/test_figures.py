"""``spd train PAIR --part figures``: what a benchmark measured goes into the pair's card."""

from __future__ import annotations

import json

import pytest

from jobs.cli import main
from spd_core.pairs.pair import load_card
from tests.tiny_causal import make_tiny_causal_pair
from tests.tiny_pair import make_tiny_pair

QUALITY = {
    "distance": 300.25, "distance_interval": [290.0, 310.5], "floor": 180.0,
    "label_agreement": 0.912, "label_agreement_interval": [0.88, 0.94], "n": 1000,
}  # fmt: skip


def _figures(folder, bench, tmp_path):
    """Runs the command on what `spd bench` wrote, every row given the same quality."""
    for row in bench["rows"]:
        row.update(QUALITY)
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(bench))
    given = ["--out", str(folder), "--bench", str(file), "--printed-by", "spd bench --seed 3"]
    assert main(["train", "fashion-ar", "--part", "figures", *given]) == 0
    assert load_card(str(folder)).figures == {"command": "spd bench --seed 3", "bench": bench}
    return (folder / "README.md").read_text()


def _bench(folder, tmp_path, *arguments):
    out = tmp_path / "bench.json"
    given = ["--batch", "1", "2", "--n", "0", "--repeats", "1", "--head-window", "2", "--json", str(out)]
    assert main(["bench", "--pair", str(folder), *given, *arguments]) == 0
    return json.loads(out.read_text())


def test_a_causal_pair(tmp_path):
    folder = make_tiny_causal_pair(tmp_path / "ar")
    bench = _bench(folder, tmp_path, "--gamma", "2", "--stride", "1", "--delta")
    text = _figures(folder, bench, tmp_path)
    plain = next(row for row in bench["rows"] if row["batch"] == 2)
    line = f"| plain | {plain['images_per_s']:.2f} | 300.2 (290.0 to 310.5) | 180.0 | 0.912 | 1000 |"
    assert text.count("| plain |") == text.count(line) == 1, "one way of decoding at one batch size"
    assert "Law: 8 head steps from level 999, hand-off at 250, no guidance, temperature 1, float32." in text
    assert "iterations" not in text
    assert "`spd bench --seed 3`" in text


def test_a_mar_pair(tmp_path):
    folder = make_tiny_pair(tmp_path / "mar")
    bench = _bench(folder, tmp_path, "--num-iter", "4", "--gamma", "2", "--paper-gamma")
    text = _figures(folder, bench, tmp_path)
    assert text.count("| 8 iterations |") == text.count("| 4 iterations |") == 1
    assert "Law: 8 iterations, 4 head steps from level 999, no guidance" in text


def test_a_run_without_images_leaves_the_table_out(tmp_path):
    folder = make_tiny_pair(tmp_path / "mar")
    bench = _bench(folder, tmp_path, "--num-iter", "8", "--gamma", "2", "--paper-gamma")
    (tmp_path / "b.json").write_text(json.dumps(bench))
    given = ["--part", "figures", "--out", str(folder), "--bench", str(tmp_path / "b.json")]
    assert main(["train", "fashion-mar", *given]) == 0
    assert "distance" not in (folder / "README.md").read_text()
    assert load_card(str(folder)).figures["bench"] == bench


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "--bench"), ("{}", "--bench"), ("[1]", "--bench"), ("no JSON", "--bench")],
)
def test_wrong_input_is_one_line(content, named, tmp_path, capsys):
    folder = make_tiny_pair(tmp_path / "mar")
    before = (folder / "pair.json").read_bytes()
    given = []
    if content is not None:
        (tmp_path / "b.json").write_text(content)
        given = ["--bench", str(tmp_path / "b.json")]
    assert main(["train", "fashion-mar", "--part", "figures", "--out", str(folder), *given]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert (folder / "pair.json").read_bytes() == before
