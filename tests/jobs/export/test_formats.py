"""Every format, read by the library it is for, or as that library's documentation says."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from jobs.export import layout
from jobs.export.folder import class_folder
from jobs.export.formats import FORMATS
from jobs.export.records import Manifest, read_record
from jobs.export.run import Wishes, export
from tests.jobs.export.conftest import exported, rows_of
from tests.tiny_pair import CLASSES
from workers.store import Store


def grey(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_webdataset_reads_images_labels_and_ids_in_order(dataset, tmp_path):
    wds = pytest.importorskip("webdataset")
    assert exported(dataset, tmp_path, "webdataset").rows == 12
    shards = str(tmp_path / "train-{000000..000002}.tar")
    samples = list(wds.WebDataset(shards, shardshuffle=False))
    for sample, row in zip(samples, rows_of(dataset), strict=True):
        assert sample["__key__"] == row["request_id"]
        assert sample["png"] == row["image"]["bytes"]
        assert int(sample["cls"]) == row["label"]
        facts = {name: value for name, value in row.items() if name != "image"}
        assert json.loads(sample["json"]) == {**facts, "class_name": CLASSES[row["label"]]}
    decoded = list(wds.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    assert [label for _, label in decoded] == [row["label"] for row in rows_of(dataset)]
    assert (decoded[0][0][..., 0] == grey(rows_of(dataset)[0]["image"]["bytes"])).all()


def test_shards_share_a_file_where_there_is_room(dataset, tmp_path):
    export(dataset, Store(str(tmp_path)), Wishes(format="webdataset", file_mb=3))
    assert [path.name for path in tmp_path.glob("*.tar")] == ["train-000000.tar"]
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        names = tar.getnames()
    assert names[::3] == [f"{row['request_id']}.png" for row in rows_of(dataset)]


def test_dots_of_an_id_do_not_end_a_webdataset_key(dataset, tmp_path, monkeypatch):
    wds = pytest.importorskip("webdataset")
    from jobs.export.source import Row, Source

    plain = Source.rows

    def dotted(self, *args):
        for row in plain(self, *args):
            yield Row(row.index, f"a.{row.request_id}", row.label, row.image, row.columns)

    monkeypatch.setattr(Source, "rows", dotted)
    exported(dataset, tmp_path, "webdataset")
    (first, *_) = wds.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False)
    assert first["__key__"] == "a%2E00000000"
    assert {"png", "cls", "json"} <= set(first)


def image_folder(root) -> tuple[list[str], list[tuple[str, int]]]:
    """Classes and samples as torchvision documents them: a class is a folder, numbered by its place among the names."""
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    extensions = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
    samples = [
        (str(path), number)
        for number, name in enumerate(classes)
        for path in sorted((root / name).rglob("*"))
        if path.name.lower().endswith(extensions)
    ]
    return classes, samples


def test_an_image_folder_loader_finds_every_image_under_its_label(dataset, tmp_path):
    exported(dataset, tmp_path, "folder")
    classes, samples = image_folder(tmp_path / "train")
    assert classes == ["0-T-shirt_top", "1-Trouser", "2-Bag"]
    by_id = {row["request_id"]: row for row in rows_of(dataset)}
    assert len(samples) == len(by_id)
    for path, number in samples:
        name = path.rpartition("/")[2].removesuffix(".png")
        assert by_id[name]["label"] == number
        assert Path(path).read_bytes() == by_id[name]["image"]["bytes"]


def test_torchvision_reads_the_folder(dataset, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    exported(dataset, tmp_path, "folder")
    found = datasets.ImageFolder(str(tmp_path / "train"))
    assert sorted(found.targets) == sorted(row["label"] for row in rows_of(dataset))


def test_class_folders_sort_as_the_labels_do():
    names = tuple(f"class {number}" for number in range(1000))
    folders = [class_folder(label, names) for label in range(1000)]
    assert folders == sorted(folders) and folders[7] == "007-class_7"
    assert class_folder(1, ("../..", "1")) == "1"
    assert class_folder(0, ("../..", "1")) == "0"


@pytest.mark.parametrize(("form", "kind"), [("folder", "imagefolder"), ("hub-folder", None)])
def test_the_datasets_library_reads(dataset, tmp_path, form, kind, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    exported(dataset, out, form)
    cache = {"cache_dir": str(tmp_path / "cache"), "split": "train"}
    found = (
        datasets.load_dataset(kind, data_dir=str(out), **cache) if kind else datasets.load_dataset(str(out), **cache)
    )
    rows = rows_of(dataset)
    names = list(CLASSES) if form == "hub-folder" else [class_folder(label, CLASSES) for label in range(3)]
    assert found.features["label"].names == names
    assert sorted(found["label"]) == sorted(row["label"] for row in rows)
    if form == "hub-folder":
        assert found["request_id"] == [row["request_id"] for row in rows]
        assert (np.asarray(found[5]["image"]) == grey(rows[5]["image"]["bytes"])).all()
        raw = found.cast_column("image", datasets.Image(decode=False))
        assert [image["bytes"] for image in raw["image"]] == [row["image"]["bytes"] for row in rows]


def test_a_hub_folder_has_the_rows_of_the_dataset_and_a_card(dataset, tmp_path):
    exported(dataset, tmp_path, "hub-folder")
    names = [f"train-{number:05d}-of-00003.parquet" for number in range(3)]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == names
    tables = [pq.read_table(tmp_path / "data" / name) for name in names]
    assert [row for table in tables for row in table.to_pylist()] == rows_of(dataset)
    features = json.loads(tables[0].schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"]["_type"] == "Image" and features["label"]["names"] == list(CLASSES)
    _, front, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    (config,) = yaml.safe_load(front)["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    assert yaml.safe_load(front)["size_categories"] == ["n<1K"]
    assert "12 images, all classes" in body and "the dataset's own bytes" in body and "stands for README.md" in body


def test_the_cards_headings_go_down_and_code_stays(dataset, tmp_path, monkeypatch):
    read = Store.read
    card = b"---\nlicense: mit\n---\n\n# Name\n\n```yaml\n# a comment\n```\n"
    monkeypatch.setattr(Store, "read", lambda self, path: card if path == "README.md" else read(self, path))
    exported(dataset, tmp_path, "hub-folder")
    text = (tmp_path / "README.md").read_text()
    assert text.endswith("## Name\n\n```yaml\n# a comment\n```\n")


def streamed(path, name: str) -> tuple[tuple[int, ...], bytes]:
    """Shape and data of an array, read front to back out of the zip as evaluators do."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        assert archive.getinfo(name).compress_type == zipfile.ZIP_STORED
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        assert not fortran and dtype == np.uint8
        return shape, file.read()


def test_an_npz_is_read_by_numpy_and_as_a_stream(dataset, tmp_path):
    exported(dataset, tmp_path, "npz", seed=7)
    rows = rows_of(dataset)
    with np.load(tmp_path / "images.npz") as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (12, 6, 6, 3)
    places = np.random.RandomState(7).permutation(12)
    for place, row in zip(places, rows, strict=True):
        assert (images[place] == grey(row["image"]["bytes"])[..., None]).all()
        assert labels[place] == row["label"]
    assert streamed(tmp_path / "images.npz", "arr_0.npy") == (images.shape, images.tobytes())
    assert not (tmp_path / layout.WORK).exists()


def test_an_npz_is_shuffled_by_its_seed(dataset, tmp_path):
    for seed in (0, 1):
        exported(dataset, tmp_path / str(seed), "npz", seed=seed)
    first, second = (np.load(tmp_path / str(seed) / "images.npz")["arr_1"] for seed in (0, 1))
    assert sorted(first) == sorted(second) and list(first) != list(second)


@pytest.mark.parametrize("form", FORMATS)
def test_the_manifest_names_every_file_and_every_image_with_its_hash(dataset, tmp_path, form):
    done = exported(dataset, tmp_path, form)
    manifest = read_record(Store(str(tmp_path)), layout.MANIFEST, Manifest)
    assert manifest.rows == done.rows == 12 and manifest.rows_by_label == {"0": 4, "1": 4, "2": 4}
    for file in manifest.files:
        data = (tmp_path / file.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
    images = [row for path in manifest.tables for row in pq.read_table(tmp_path / path).to_pylist()]
    assert [(each["request_id"], each["label"], each["seed"]) for each in images] == [
        (row["request_id"], row["label"], row["seed"]) for row in rows_of(dataset)
    ]
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    listed = {file.path for file in manifest.files} | {each["file"] for each in images}
    assert {path for path in written - listed if not path.startswith(layout.FOLDER)} == set()
    if form != "npz":
        hashes = [hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in rows_of(dataset)]
        assert [each["sha256"] for each in images] == hashes
    else:
        array = np.load(tmp_path / "images.npz")["arr_0"]
        hashes = [hashlib.sha256(array[int(each["place"])].tobytes()).hexdigest() for each in images]
        assert [each["sha256"] for each in images] == hashes
