"""What an export promises whatever its format: resumed after a kill, checked, by label, and refused in one line."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.cli import main
from jobs.export import layout
from jobs.export.formats import FORMATS
from jobs.export.npz import Npz
from jobs.export.records import ExportPlan, read_record
from jobs.export.run import Wishes, export
from jobs.job.plan import read_plan
from jobs.words.errors import JobError, SpecError
from tests.jobs.export.conftest import ONE_SHARD_MB, exported, files_of, rows_of
from tests.jobs.tree import lose_shard
from tests.seaweed import s3, s3_options
from tests.tiny_pair import CLASSES
from workers import layout as dataset_layout
from workers import local_disk
from workers.parquet import data_schema
from workers.store import Store, StoreError

__all__ = ["s3", "s3_options"]


class Killed(BaseException):
    """Nothing of the program catches it."""


class Deadly:
    """Counts the writes of an export and ends it at one of them, before or after it has happened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes, self.at, self.after = 0, -1, False
        for owner, name in ((Store, "create"), (Store, "create_from"), (Npz, "_done")):
            monkeypatch.setattr(owner, name, self._deadly(getattr(owner, name)))

    def _deadly(self, write):
        def call(*args):
            here, self.writes = self.writes, self.writes + 1
            if here == self.at and not self.after:
                raise Killed
            result = write(*args)
            if here == self.at:
                raise Killed
            return result

        return call


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("after", [False, True])
def test_an_export_killed_at_any_write_is_finished_by_the_same_command(dataset, tmp_path, form, after, monkeypatch):
    exported(dataset, tmp_path / "whole", form)
    whole = files_of(tmp_path / "whole")
    deadly = Deadly(monkeypatch)
    exported(dataset, tmp_path / "counted", form)
    writes, deadly.after = deadly.writes, after
    assert writes >= 6
    for at in range(writes):
        deadly.writes, deadly.at = 0, at
        with pytest.raises(Killed):
            exported(dataset, tmp_path / "killed", form)
        deadly.at = -1
        exported(dataset, tmp_path / "killed", form)
        assert files_of(tmp_path / "killed") == whole
        shutil.rmtree(tmp_path / "killed")


def test_a_process_that_died_inside_a_write_leaves_nothing_that_stops_the_next(dataset, tmp_path):
    script = """
import os, sys
from workers import local_disk
from jobs.cli import main
calls = iter(range(100))
def die(path, data):
    if next(calls) == int(sys.argv[1]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.{'0' * 32}.tmp").write_bytes(data[:10])
        os._exit(9)
    create(path, data)
create, local_disk.create = local_disk.create, die
main(sys.argv[2:])
"""
    command = ["export", dataset.url, str(tmp_path / "out"), "--to", "webdataset"]
    died = subprocess.run([sys.executable, "-c", script, "1", *command], cwd=Path(__file__).parents[3], check=False)
    assert died.returncode == 9
    assert main(command) == 0
    assert main(["export", dataset.url, str(tmp_path / "whole"), "--to", "webdataset"]) == 0
    whole, out = (files_of(tmp_path / name) for name in ("whole", "out"))
    assert {path: data for path, data in out.items() if not path.endswith(".tmp")} == whole


def test_a_resumed_export_reads_only_the_shards_that_are_missing(dataset, tmp_path, monkeypatch):
    exported(dataset, tmp_path, "webdataset")
    (tmp_path / layout.MANIFEST).unlink()
    (tmp_path / layout.record(1)).unlink()
    (tmp_path / "train-000001.tar").unlink()
    read: list[str] = []
    plain = Store.read
    monkeypatch.setattr(Store, "read", lambda self, path: read.append(path) or plain(self, path))
    assert exported(dataset, tmp_path, "webdataset").made == 4
    assert [path for path in read if path.startswith("data/")] == [dataset_layout.data(1, 3)]


@pytest.mark.parametrize("form", FORMATS)
def test_a_finished_export_is_left_alone(dataset, tmp_path, form):
    exported(dataset, tmp_path, form)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert exported(dataset, tmp_path, form).made == 0
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_a_file_that_was_lost_from_a_finished_export_is_written_again(dataset, tmp_path):
    exported(dataset, tmp_path, "webdataset")
    whole = files_of(tmp_path)
    (tmp_path / "train-000002.tar").unlink()
    assert exported(dataset, tmp_path, "webdataset").made == 4
    assert files_of(tmp_path) == whole


def test_a_changed_file_of_an_export_is_named_and_kept(dataset, tmp_path):
    exported(dataset, tmp_path, "webdataset")
    (tmp_path / "train-000002.tar").write_bytes(b"other")
    with pytest.raises(StoreError, match=r"train-000002\.tar exists with other content"):
        exported(dataset, tmp_path, "webdataset")
    assert (tmp_path / "train-000002.tar").read_bytes() == b"other"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("where", ["memory", "s3"])
def test_an_export_to_an_object_store_is_that_to_a_folder(dataset, tmp_path, form, where, request):
    url = f"{where}://{'tests/' if where == 's3' else ''}{uuid.uuid4().hex}/out"
    store = Store(url, request.getfixturevalue("s3_options") if where == "s3" else {})
    wishes, scratch = Wishes(format=form, file_mb=ONE_SHARD_MB), tmp_path / "scratch"
    scratch.mkdir()
    export(dataset, store, wishes, scratch)
    exported(dataset, tmp_path / "folder", form)
    assert {path: store.read(path) for path in store.list()} == files_of(tmp_path / "folder")
    assert list(scratch.iterdir()) == []
    assert export(dataset, store, wishes, scratch).made == 0


@pytest.mark.parametrize("form", FORMATS)
def test_only_some_labels(dataset, tmp_path, form):
    assert exported(dataset, tmp_path, form, labels=("Bag", "0")).rows == 8
    tables = [pq.read_table(path) for path in sorted((tmp_path / layout.FOLDER).glob("images-*.parquet"))]
    wanted = [row["request_id"] for row in rows_of(dataset) if row["label"] in (0, 2)]
    assert [name for table in tables for name in table["request_id"].to_pylist()] == wanted


def test_shards_without_the_label_are_not_read(tmp_path, monkeypatch):
    from tests.jobs.tree import make_tree

    dataset = make_tree(tmp_path, method={"name": "null"}, requests={"count": 12, "labels": [0, 0, 0, 0, 1, 1, 1, 1]})
    read: list[str] = []
    plain = Store.read
    monkeypatch.setattr(Store, "read", lambda self, path: read.append(path) or plain(self, path))
    assert exported(dataset, tmp_path / "export", "folder", labels=("1",)).rows == 4
    assert [path for path in read if path.startswith("data/")] == [dataset_layout.data(1, 3)]


@pytest.mark.parametrize("form", FORMATS)
def test_resized_images_are_said_to_be_resized(dataset, tmp_path, form):
    assert "resized to 9x9 pixels" in exported(dataset, tmp_path, form, size=9).images_in_words
    assert b"resized to 9x9 pixels" in (tmp_path / layout.MANIFEST).read_bytes()
    if form == "folder":
        row = rows_of(dataset)[1]
        picture = Image.open(tmp_path / "train" / "1-Trouser" / f"{row['request_id']}.png")
        before = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert picture.mode == "L" and picture.size == (9, 9)
        assert (np.asarray(picture) == np.asarray(before.resize((9, 9), Image.Resampling.LANCZOS))).all()
    if form == "npz":
        assert np.load(tmp_path / "images.npz")["arr_0"].shape == (12, 9, 9, 3)


def test_images_are_encoded_anew_if_asked(dataset, tmp_path):
    assert exported(dataset, tmp_path, "folder", encoding="jpeg", quality=80).images_in_words == (
        "encoded anew as jpeg of quality 80"
    )
    names = {path.suffix for path in (tmp_path / "train").rglob("*") if path.is_file()}
    assert names == {".jpg"}
    assert Image.open(next((tmp_path / "train").rglob("*.jpg"))).format == "JPEG"


def test_the_format_that_images_have_already_changes_no_byte(dataset, tmp_path):
    assert exported(dataset, tmp_path, "hub-folder", encoding="png").images_in_words == "the dataset's own bytes"


def test_a_file_that_is_not_what_was_committed_ends_the_export(dataset, tmp_path):
    shutil.copytree(dataset.url, tmp_path / "copy")
    path = tmp_path / "copy" / dataset_layout.data(1, 3)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(JobError, match=dataset_layout.data(1, 3)):
        exported(Store(str(tmp_path / "copy")), tmp_path / "out", "folder")
    assert not (tmp_path / "out" / layout.MANIFEST).exists()
    shutil.copy(Path(dataset.url) / dataset_layout.data(1, 3), path)
    assert exported(Store(str(tmp_path / "copy")), tmp_path / "out", "folder").made == 8


@pytest.mark.parametrize(
    ("column", "value"), [("request_id", "../../mine"), ("request_id", "a/b"), ("label", 3), ("label", -1)]
)
def test_a_strangers_dataset_names_no_file_elsewhere(dataset, tmp_path, column, value, monkeypatch):
    def strange(*_args, **_kwargs):
        row = {**rows_of(dataset)[0], column: value}
        return [pa.RecordBatch.from_pylist([row], schema=data_schema(CLASSES))]

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", strange)
    with pytest.raises(JobError, match="has a row that no request can have made"):
        exported(dataset, tmp_path / "out", "folder")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["plan.json"]


def test_a_partial_dataset_is_refused_unless_asked_for(dataset, tmp_path):
    shutil.copytree(dataset.url, tmp_path / "copy")
    copy = Store(str(tmp_path / "copy"))
    lose_shard(copy, 1, 3)
    with pytest.raises(SpecError, match="2 of 3 shards are committed, allowed: a whole one, or --partial"):
        exported(copy, tmp_path / "out", "webdataset")
    assert not (tmp_path / "out").exists()
    assert exported(copy, tmp_path / "out", "webdataset", partial=True).rows == 8
    # A dataset that has grown since does not change what this export is of.
    shutil.copytree(dataset.url, copy.url, dirs_exist_ok=True)
    (tmp_path / "out" / layout.MANIFEST).unlink()
    assert exported(copy, tmp_path / "out", "webdataset", partial=True).made == 0
    assert read_record(Store(str(tmp_path / "out")), layout.PLAN, ExportPlan).shards == ((0, 0), (2, 2))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("spd: ")
    return lines[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--to", "tar"], "--to: got 'tar', allowed: webdataset, folder, npz, hub-folder"),
        (
            ["--to", "folder", "--label", "Bagg"],
            "--label: got 'Bagg', allowed: 0..2 or a name of T-shirt/top, Trouser,",
        ),
        (["--to", "folder", "--label", "3"], "--label: got '3', allowed: 0..2"),
        (["--to", "folder", "--size", "0"], "--size: got 0, allowed: 1 to 65,535"),
        (["--to", "folder", "--quality", "50"], "--quality: got 50 with png, allowed: none, it is of jpeg"),
        (["--to", "folder", "--image", "gif"], "--image: got 'gif', allowed: png, webp, jpeg"),
        (["--to", "npz", "--image", "png"], "--image, --quality: got one with --to npz, allowed: neither"),
        (["--to", "npz", "--seed", "-1"], "--seed: got -1, allowed: 0 to 4,294,967,295"),
        (["--to", "npz", "--scratch", "/no/such"], "--scratch: got '/no/such', allowed: a folder that exists"),
        (["--to", "folder", "--file-mb", "0"], "--file-mb: got 0, allowed: 1 to 100,000"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(dataset, tmp_path, given, message, capsys):
    try:
        code = main(["export", dataset.url, str(tmp_path / "out"), *given])
    except SystemExit as end:
        code = end.code
    assert code == 2 and message in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_places_that_cannot_be_exported_to(dataset, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not yours")
    for place, message in (
        (tmp_path / "mine", "which is not empty, allowed: an empty folder"),
        (f"{dataset.url}/export", "allowed: a place outside of the dataset"),
        ("s3:/bucket/x", "DEST: got 's3:/bucket/x', allowed: a URL or a path"),
        ("", "DEST: got nothing"),
    ):
        assert main(["export", dataset.url, "--to", "folder", str(place)]) == 2
        assert message in one_line(capsys)
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "out"), "--to", "folder"]) == 2
    assert "allowed: an output of `spd generate`" in one_line(capsys)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("{0}/ds", "{0}/ds"),
        ("{0}/ds", "{0}/link/data/x"),
        ("{0}/link", "{0}/ds/x"),
        ("{0}/ds", "{0}/foo/../ds/x"),
        ("{0}/ds", "{0}/inner/x"),
        ("{0}/ds", "file://{0}/ds/x"),
        ("file://{0}/ds/.", "{0}/ds/x"),
    ],
)
def test_nothing_is_exported_into_the_dataset_however_it_is_spelled(dataset, tmp_path, source, place, capsys):
    shutil.copytree(dataset.url, tmp_path / "ds")
    (tmp_path / "link").symlink_to(tmp_path / "ds")
    (tmp_path / "inner").symlink_to(tmp_path / "ds" / "acceptance")
    before = files_of(tmp_path / "ds")
    assert main(["export", source.format(tmp_path), place.format(tmp_path), "--to", "folder"]) == 2
    assert "allowed: a place outside of the dataset" in one_line(capsys)
    assert files_of(tmp_path / "ds") == before


@pytest.mark.parametrize(
    ("place", "within"),
    [
        ("memory://b/ds", True),
        ("memory://b/ds/x", True),
        ("memory://b/other/../ds/x", True),
        ("memory://b/ds/../x", True),  # an object store has names, not steps
        ("memory://b/./ds//x", True),
        ("memory://b/ds2", False),
        ("memory://b", False),
        ("/b/ds/x", False),
    ],
)
def test_a_url_is_within_another_as_it_is_spelled(place, within):
    assert Store(place).is_within(Store("memory://b/ds")) == within


def test_another_format_in_the_same_place_is_refused_by_its_argument(dataset, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["export", dataset.url, out, "--to", "folder"]) == 0
    assert main(["export", dataset.url, out, "--to", "npz"]) == 2
    line = "DEST: another export was begun there: --to: got 'npz', stored 'folder'; allowed: another DEST"
    assert line in one_line(capsys)


def test_another_export_in_the_same_place_is_refused_by_what_differs(dataset, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["export", dataset.url, out, "--to", "folder"]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 12 images as folder; images: the dataset's own bytes" in said
    assert main(["export", dataset.url, out, "--to", "folder", "--label", "1"]) == 2
    assert "another export was begun there: rows: got 4, stored 12" in one_line(capsys)


def test_labels_of_which_there_is_no_image(tmp_path):
    from tests.jobs.tree import make_tree

    dataset = make_tree(tmp_path, method={"name": "null"}, requests={"count": 4, "labels": [0]})
    with pytest.raises(SpecError, match="without images with label Bag"):
        exported(dataset, tmp_path / "export", "folder", labels=("Bag",))


def test_a_plan_of_another_dataset_is_not_gone_on_with(dataset, tmp_path):
    from tests.jobs.tree import make_tree

    exported(dataset, tmp_path / "export", "folder")
    other = make_tree(tmp_path, method={"name": "null"}, requests={"count": 12}, seed=5)
    assert read_plan(other).fingerprint != read_plan(dataset).fingerprint
    with pytest.raises(SpecError, match="another export was begun there: fingerprint"):
        exported(other, tmp_path / "export", "folder")


def test_a_file_gets_a_second_name_only_where_nothing_lies(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    local_disk.create_from(tmp_path / "folder" / "name", file)
    assert (tmp_path / "folder" / "name").read_bytes() == b"content"
    with pytest.raises(FileExistsError):
        local_disk.create_from(tmp_path / "folder" / "name", file)
    link = os.link

    def on_one_disk(source, name):
        if source == file:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(source, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", on_one_disk)
        local_disk.create_from(tmp_path / "folder" / "copy", file)
    assert (tmp_path / "folder" / "copy").read_bytes() == b"content"
    store = Store(str(tmp_path / "folder"))
    store.create_from("copy", file)
    file.write_bytes(b"another")
    with pytest.raises(StoreError, match="exists with other content"):
        store.create_from("copy", file)
