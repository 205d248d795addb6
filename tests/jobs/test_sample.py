"""``spd sample``: the arrays and the grid it writes, that they are a job's images, and wrong input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.cli import main
from jobs.commands.sample import grid
from jobs.job.plan import make_plan, task_of
from jobs.job.spec import load_spec
from spd_core.decode import decode
from spd_core.draws import Draws
from spd_core.pairs.pair import load_pair
from tests.tiny_pair import make_tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


def test_npz_holds_a_jobs_images(pair, tmp_path):
    out = tmp_path / "s.npz"
    assert main(["sample", "--pair", pair, "--n", "5", "--seed", "7", "--method", "plain", "--out", str(out)]) == 0
    saved = np.load(out)
    assert saved["images"].shape == (5, 6, 6, 1)
    assert saved["images"].dtype == np.uint8
    assert saved["labels"].tolist() == [0, 1, 2, 0, 1]
    assert saved["labels"].dtype == np.int64
    assert saved["tokens"].shape == (5, 16, 4)
    assert saved["tokens"].dtype == np.float32

    spec = load_spec(None, [f"pair={pair}", "requests.count=5", "seed=7", "method=plain"])
    task, loaded = task_of(make_plan(spec), 0, 0), load_pair(pair)
    tokens = decode(loaded, spec.law, spec.method, torch.tensor(task.labels), Draws(torch.tensor(task.seeds))).tokens
    assert np.array_equal(saved["images"], loaded.to_images(tokens).numpy())


def test_one_label_and_any_field(pair, tmp_path):
    out = tmp_path / "s.npz"
    arguments = ["--pair", pair, "--n", "3", "--label", "2", "--set", "method.gamma=2", "--set", "law.num_iter=4"]
    assert main(["sample", *arguments, "--out", str(out)]) == 0
    assert np.load(out)["labels"].tolist() == [2, 2, 2]


def test_png_grid(pair, tmp_path):
    out = tmp_path / "grid.png"
    assert main(["sample", "--pair", pair, "--n", "6", "--out", str(out)]) == 0
    assert Image.open(out).size == (3 * 6 * 2, 2 * 6 * 2)


def test_grid_places_images_in_rows():
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 2, 2, 1), dtype=np.uint8) * 100
    sheet = np.asarray(grid(images, columns=2, zoom=1))
    assert sheet.shape == (4, 4)
    assert sheet[0].tolist() == [0, 0, 100, 100]
    assert sheet[2].tolist() == [200, 200, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--n", "0"], "--n"),
        (["--label", "3"], "requests.labels"),
        (["--label", "-1"], "requests.labels"),
        (["--method", "null"], "method: got 'null'"),
        (["--method", "auto"], "method: got 'auto', allowed: a method by name"),
        (["--method", "magic"], "method"),
        (["--set", "method.gamma=-2"], "gamma"),
        (["--out", "s.gif"], "--out"),
        (["--out", "no/such/folder/s.png"], "--out"),
        (["--pair", "nothing"], "pair"),
    ],
)
def test_wrong_input_is_one_line(pair, tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    given = {"--pair": pair, "--n": "2", "--out": "s.npz"} | {arguments[0]: arguments[1]}
    assert main(["sample", *(word for option in given.items() for word in option)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert not list(tmp_path.iterdir())
