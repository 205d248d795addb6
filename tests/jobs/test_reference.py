"""``spd reference``: real images of every form, and what a quality block makes of the file."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.cli import main
from spd_core.quality.extractors import POOL, EfficientNetExtractor
from spd_core.quality.frechet import Moments
from spd_core.quality.statistics import MadeBy, load_statistics, write_statistics
from tests.jobs.tree import make_tree
from tests.oracles.inception import recipe_weights
from workers import layout


def pictures(count: int = 6, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (12, 10, 3), dtype=np.uint8) for _ in range(count)]


def encoded(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def put(folder: Path, form: str) -> Path:
    """The six pictures in a form."""
    folder.mkdir(exist_ok=True)
    match form:
        case "folder":
            for place, picture in enumerate(pictures()):
                (folder / f"class{place % 2}").mkdir(exist_ok=True)
                (folder / f"class{place % 2}" / f"{place}.png").write_bytes(encoded(picture))
            return folder
        case "npz":
            np.savez_compressed(folder / "images.npz", arr_0=np.stack(pictures()), arr_1=np.arange(6))
            return folder / "images.npz"
        case "binary":
            pq.write_table(pa.table({"image": [encoded(each) for each in pictures()]}), folder / "a.parquet")
            return folder / "a.parquet"
    structs = [{"bytes": encoded(each), "path": None} for each in pictures()]
    pq.write_table(pa.table({"image": structs[:4], "label": [0, 1, 2, 3]}), folder / "a.parquet")
    pq.write_table(pa.table({"image": structs[4:], "label": [0, 1]}), folder / "b.parquet")
    return folder


@pytest.mark.parametrize("form", ["folder", "npz", "binary", "struct"])
def test_images_of_every_form_give_their_mean_and_covariance(form: str, tmp_path: Path):
    place, out = put(tmp_path / "real", form), tmp_path / "stats.npz"
    assert main(["reference", str(place), "--out", str(out), "--features", "4"]) == 0
    made = load_statistics("stats", out)
    features = EfficientNetExtractor()([torch.from_numpy(each) for each in pictures()])[POOL]
    wanted = Moments.from_features(features)
    assert torch.allclose(made.moments[POOL].mean, wanted.mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(made.moments[POOL].covariance, wanted.covariance, rtol=1e-4, atol=1e-6)
    assert made.made_by is not None and made.made_by.images == 6 and str(place) in made.made_by.source
    kept = made.features.read(0, 9)
    assert len(kept) == 4 and all((features - row).abs().sum(dim=1).min() < 1e-3 for row in kept)


def test_an_output_of_ours_is_a_reference(tmp_path: Path):
    store = make_tree(tmp_path)
    assert main(["reference", store.url, "--out", str(tmp_path / "r.npz")]) == 0
    first = (tmp_path / "r.npz").read_bytes()
    assert load_statistics("r", tmp_path / "r.npz").made_by.images == 10
    assert main(["reference", store.url, "--out", str(tmp_path / "r.npz")]) == 0
    assert (tmp_path / "r.npz").read_bytes() == first, "the same images give the same file"


def test_images_held_against_themselves_are_near(tmp_path: Path):
    store = make_tree(tmp_path)
    assert main(["reference", store.url, "--out", str(tmp_path / "r.npz"), "--features", "10"]) == 0
    assert main(["report", store.url, "--quality", f"reference={tmp_path / 'r.npz'}"]) == 0
    made = json.loads((Path(store.url) / layout.REPORT_JSON).read_text())["comparison"]
    assert made["extractor"] == "efficientnet-lite0-64px-1280" and "fid" not in made
    assert made["frechet"] < 1e-3 and made["precision"] == made["recall"] == 1


def test_statistics_of_the_adm_evaluator_are_taken_over(tmp_path: Path):
    torch.save(recipe_weights(), tmp_path / "w.pth")
    moments = {"mu": np.full(2048, 0.5), "sigma": np.eye(2048), "mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    np.savez(tmp_path / "VIRTUAL.npz", arr_0=np.stack(pictures(5)), **moments)
    given = ["--extractor", "inception", "--weights", str(tmp_path / "w.pth"), "--features", "5"]
    assert main(["reference", str(tmp_path / "VIRTUAL.npz"), "--out", str(tmp_path / "r.npz"), *given]) == 0
    made = load_statistics("r", tmp_path / "r.npz")
    assert made.made_by is not None and made.made_by.images is None
    assert made.made_by.extractor == "inception-2015-12-05"
    assert torch.allclose(made.moments[POOL].mean, torch.full((2048,), 0.5).double())
    assert len(made.features) == 5 and made.features.dims == 2048


def test_a_reference_of_other_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store = make_tree(tmp_path / "tree")
    generator = torch.Generator().manual_seed(0)
    moments = {POOL: Moments.from_features(torch.rand(8, 2048, generator=generator))}
    made_by = MadeBy(extractor="inception-2015-12-05", weights_sha256="f" * 64, resize="", images=8)
    write_statistics(tmp_path / "other.npz", made_by, moments)
    torch.save(recipe_weights(), tmp_path / "w.pth")
    block = ["extractor=inception", f"weights={tmp_path / 'w.pth'}", f"reference={tmp_path / 'other.npz'}"]
    assert main(["report", store.url, *(word for each in block for word in ("--quality", each))]) == 2
    assert "was made by weights ffffffffffff, allowed: " in capsys.readouterr().err


def _wrong(folder: Path, what: str) -> list[str]:
    place = put(folder / "real", "folder")
    match what:
        case "damaged image":
            path = next(place.rglob("*.png"))
            path.write_bytes(path.read_bytes()[:200])
        case "16 bits":
            Image.fromarray(np.zeros((4, 4), np.uint16)).save(place / "deep.png")
        case "nothing":
            return [str(folder / "nowhere")]
        case "one image":
            for path in sorted(place.rglob("*.png"))[1:]:
                path.unlink()
        case "no column":
            return [str(put(folder / "parquet", "struct")), "--column", "picture"]
        case "damaged row":
            path = put(folder / "parquet", "binary")
            pq.write_table(pa.table({"image": [encoded(pictures()[0]), b"no image"]}), path)
            return [str(path)]
        case "floats":
            np.savez(folder / "f.npz", arr_0=np.zeros((3, 4, 4, 3)))
            return [str(folder / "f.npz")]
        case "short":
            raw = put(folder / "npz", "npz").read_bytes()
            (folder / "short.npz").write_bytes(raw[: len(raw) // 2])
            return [str(folder / "short.npz")]
        case "no weights":
            return [str(place), "--extractor", "inception"]
        case "weights of none":
            return [str(place), "--weights", "w.pth"]
        case "bare":
            np.savez(folder / "b.npz", arr_0=np.stack(pictures()), mu=np.zeros(2048), sigma=np.eye(2048))
            return [str(folder / "b.npz")]
    return [str(place)]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("damaged image", "image does not decode"),
        ("16 bits", "its pixels are of mode I;16, allowed: 8 bits a channel"),
        ("nothing", "allowed: a folder of images, a Parquet file or folder"),
        ("one image", "IMAGES: got 1 image"),
        ("no column", "--column: got 'picture', allowed: a column of encoded images"),
        ("damaged row", "row 1: image does not decode"),
        ("floats", "arr_0 is float64"),
        ("short", "IMAGES: cannot read"),
        ("no weights", "quality.weights: got nothing"),
        ("weights of none", "--weights: got 'w.pth', allowed: only with"),
        ("bare", "do not say what made them"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    what: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "stats.npz"
    assert main(["reference", *_wrong(tmp_path, what), "--out", str(out)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("spd: ")]
    assert len(lines) == 1 and words in lines[0]
    assert not list(tmp_path.glob("*stats.npz*"))
