from __future__ import annotations

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.dataset.commits import Kept
from jobs.dataset.manifest import build_manifest, check_manifest
from jobs.dataset.validate import validate
from jobs.job.plan import Plan, parse_plan
from spd_core.quality import features
from tests.jobs.tree import make_tree
from workers import layout
from workers.encode import encode_image
from workers.records import CommitRecord, FileRecord, ImageFormat
from workers.sealed import canonical_json, seal, unseal
from workers.shard import parse_record, read_commit
from workers.store import Store, StoreError

SHARDS = range(3)
FILES = sorted(
    [layout.CARD, layout.SUCCESS, layout.PLAN, layout.REPORT_JSON, layout.REPORT_HTML]
    + [path(shard, 3) for shard in SHARDS for path in (layout.data, layout.acceptance)]
    + [layout.commit(shard) for shard in SHARDS]
)


def plan_of(store: Store) -> Plan:
    plan = parse_plan(store.read(layout.PLAN))
    assert plan is not None
    return plan


def kept_of(store: Store) -> list[Kept]:
    raws = [store.read(layout.commit(shard)) for shard in SHARDS]
    return [Kept.of(parse_record(raw, shard, 0), raw, len(SHARDS)) for shard, raw in zip(SHARDS, raws, strict=True)]


def named(store: Store) -> set[str]:
    """The files that validation names."""
    return {problem.split(":")[0] for problem in validate(store.url).problems}


def test_a_finished_dataset_is_valid(store):
    outcome = validate(store.url)
    assert outcome.problems == ()
    assert outcome.ok
    assert (outcome.shards, outcome.rows, outcome.files) == (3, 10, len(FILES))
    assert outcome.bytes == sum(store.list().values())
    assert sorted(store.list()) == FILES


@pytest.mark.parametrize(
    ("method", "image"),
    [("plain", "png"), ("null", "webp"), ("null", "jpeg"), ({"name": "cspd", "gamma": 4, "variant": "paper"}, "png")],
    ids=str,
)
def test_every_method_and_format_is_valid(tmp_path, method, image):
    store = make_tree(tmp_path, method=method, image={"format": image})
    assert validate(store.url).problems == ()


@pytest.mark.parametrize("path", FILES)
def test_a_deleted_file_is_named(store, path):
    store.delete(path)
    assert path in named(store)
    assert named(store) <= {path, layout.SUCCESS}


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_a_flipped_byte_is_named(store, path, place, mask):
    data = bytearray(store.read(path))
    data[round(place * (len(data) - 1))] ^= mask
    store.replace(path, bytes(data))
    assert path in named(store)
    assert named(store) <= {path, layout.SUCCESS}


@pytest.mark.parametrize("path", FILES)
def test_an_emptied_or_longer_file_is_named(store, path):
    whole = store.read(path)
    for data in (b"", whole + b"\n", whole[:-1]):
        store.replace(path, data)
        assert path in named(store)


def test_every_byte_of_the_manifest_counts(store):
    whole = store.read(layout.SUCCESS)
    plan, records = plan_of(store), kept_of(store)
    for place in range(0, len(whole), 101):
        store.replace(layout.SUCCESS, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        (problem,) = check_manifest(store, plan, records)
        assert problem.startswith(f"{layout.SUCCESS}: ")


@pytest.mark.parametrize(
    "path", ["data/part-00003-of-00004.parquet", "_features/part-00000-of-00003.parquet", "_commits/00003.json"]
)
def test_a_stray_part_is_named(store, path):
    store.create(path, b"stray")
    assert named(store) == {path}


def test_files_of_others_are_left_alone(store):
    store.create(".gitattributes", b"*.parquet filter=lfs")
    store.create("_run/history.jsonl", b"{}\n")
    assert validate(store.url).ok


def test_an_unfinished_dataset_is_incomplete(store):
    store.delete(layout.SUCCESS)
    assert validate(store.url).problems == (f"{layout.SUCCESS}: missing, the dataset is not finished",)


def test_a_folder_that_is_no_output_is_refused_and_not_called_damaged(tmp_path):
    with pytest.raises(StoreError, match="allowed: an output of `spd generate`"):
        validate(str(tmp_path / "nothing"))


def test_an_output_without_its_plan_is_incomplete(store):
    store.delete(layout.PLAN)
    assert f"{layout.PLAN}: missing" in validate(store.url).problems


def test_a_record_of_an_earlier_version_without_some_sums_is_no_damage(store):
    record = CommitRecord.model_validate(unseal(store.read(layout.commit(1))))
    raw = record.model_dump(mode="json") | {"certificate_square_sum": None, "excess_sum": None}
    store.replace(layout.commit(1), canonical_json(seal(raw)))
    problems = validate(store.url).problems
    assert not any("by the drafts" in problem for problem in problems)


def test_validation_reads_other_file_systems(tmp_path):
    store = make_tree(tmp_path, output="memory://validate-tree/out")
    assert validate(store.url).ok
    store.delete(layout.data(1, 3))
    assert named(store) == {layout.data(1, 3)}


def test_a_manifest_needs_every_shard_and_document(store):
    plan, records = plan_of(store), kept_of(store)
    assert build_manifest(store, plan, records) == store.read(layout.SUCCESS)
    with pytest.raises(ValueError, match="shard 2 and 0 more are not committed"):
        build_manifest(store, plan, records[:2])
    store.delete(layout.CARD)
    with pytest.raises(FileNotFoundError, match=r"README\.md is not there"):
        build_manifest(store, plan, records)


def forge(store: Store, path: str, shard: int, change, **fields: object) -> set[str]:
    """Changes a table, and then every hash, so that only the content can tell; the files validation names then."""
    table = pq.read_table(io.BytesIO(store.read(path)))
    sink = io.BytesIO()
    pq.write_table(change(table), sink)
    return forge_bytes(store, path, shard, sink.getvalue(), **fields)


def forge_bytes(store: Store, path: str, shard: int, data: bytes, **fields: object) -> set[str]:
    store.replace(path, data)
    record = read_commit(store, shard)
    assert record is not None
    files = []
    for file in record.files:
        if file.path == path:
            file = FileRecord(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), rows=file.rows)
        files.append(file.model_dump())
    forge_record(store, shard, files=files, **fields)
    return named(store)


def forge_record(store: Store, shard: int, **fields: object) -> None:
    record = read_commit(store, shard)
    assert record is not None
    forged = CommitRecord.model_validate(seal({**record.model_dump(mode="json"), **fields}))
    store.replace(layout.commit(shard), canonical_json(forged.model_dump(mode="json")))
    store.replace(layout.SUCCESS, build_manifest(store, plan_of(store), kept_of(store)))


def put(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def picture(side: int) -> bytes:
    return encode_image(np.zeros((side, side, 1), np.uint8), ImageFormat())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_id", "00000099"),
        ("label", 0),
        ("seed", 1),
        ("guarantee", "exact"),
        ("accepted", 99),
        ("drafted", 99),
        ("rounds", 99),
        ("certificate", 0.5),
        ("label_agrees", True),
        ("image", {"bytes": b"no image", "path": "x.png"}),
        ("image", {"bytes": picture(7), "path": "x.png"}),
    ],
)
def test_forged_data_is_named(store, name, value):
    path = layout.data(1, 3)
    problems = forge(store, path, 1, lambda table: put(table, name, 1, value))
    # What the two files disagree about may be the fault of either.
    assert problems & {path, layout.acceptance(1, 3)}
    assert problems <= {path, layout.acceptance(1, 3)}


@pytest.mark.parametrize(
    ("name", "value"),
    [("request_id", "00000000"), ("request_id", "00000006"), ("accepted", None), ("token", 15), ("draft_index", 77)],
)
def test_forged_acceptance_is_named(store, name, value):
    path = layout.acceptance(1, 3)
    table = pq.read_table(io.BytesIO(store.read(path)))
    row = next(i for i in range(table.num_rows) if table[name][i].as_py() != value)
    value = not table[name][row].as_py() if name == "accepted" else value
    assert forge(store, path, 1, lambda table: put(table, name, row, value)) == {path}


@pytest.mark.parametrize("path", [layout.data(1, 3), layout.acceptance(1, 3)])
def test_another_schema_or_row_count_is_named(store, path):
    whole = store.read(path)
    assert forge(store, path, 1, lambda table: table.replace_schema_metadata({})) == {path}
    store.replace(path, whole)
    assert forge(store, path, 1, lambda table: table.slice(1)) == {path}
    assert forge_bytes(store, path, 1, b"not parquet") == {path}


@pytest.mark.parametrize(
    "fields",
    [{"fingerprint": "0" * 64}, {"rows": 5}, {"first_id": "00000000"}, {"last_id": "x"}, {"files": []}],
    ids=str,
)
def test_a_forged_record_is_named(store, fields):
    forge_record(store, 1, **fields)
    assert layout.commit(1) in named(store)


def test_features_are_checked(tmp_path, monkeypatch):
    class Extractor:
        def __init__(self, device):
            self.device = device

        def __call__(self, images):
            return images.float().mean(dim=(1, 2, 3))[:, None] * torch.ones(1280)

    monkeypatch.setattr(features, "FeatureExtractor", Extractor)
    store = make_tree(tmp_path, features=True)
    assert validate(store.url).ok
    path = layout.features(2, 3)
    assert path in store.list()
    broken = [float("nan")] * 1280
    assert forge(store, path, 2, lambda table: put(table, "feature", 0, broken)) == {path}
    store.delete(path)
    assert named(store) == {path}
