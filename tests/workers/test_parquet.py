from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spd_core.law import Guarantee
from workers.encode import decode_image, encode_image
from workers.parquet import FEATURE_DIMS, acceptance_bytes, data_bytes, features_bytes, read_table
from workers.records import ImageFormat
from workers.result import DraftRows, ShardResult

NAMES = ("T-shirt/top", "Trouser", "Bag")


def make_result(n: int = 6, guarantee: Guarantee = Guarantee.TV) -> ShardResult:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (n, 6, 6, 1), dtype=np.uint8)
    image = np.repeat(np.arange(n), 3)
    return ShardResult(
        class_names=NAMES,
        tokens=16,
        guarantee=guarantee,
        image_format="png",
        images=tuple(encode_image(p, ImageFormat()) for p in pixels),
        rounds=np.arange(n) + 1,
        drafts=DraftRows(
            image=image,
            token=rng.integers(0, 16, 3 * n),
            draft_index=np.tile(np.arange(3), n),
            log_ratio=np.full(3 * n, np.log(0.5), np.float32),
            accepted=np.tile([True, True, False], n),
            excess=np.full(3 * n, 0.25, np.float32),
        ),
        features=rng.normal(size=(n, FEATURE_DIMS)).astype(np.float16),
        label_agrees=np.array([True, False] * (n // 2)),
        counts={"target_head_calls": 7},
        seconds={"head": 0.5},
        started="2026-01-01T00:00:00+00:00",
        began=time.perf_counter(),
    )


def test_data_columns(task):
    result = make_result()
    table = read_table(data_bytes(task, result))
    rows = table.to_pylist()
    assert [row["request_id"] for row in rows] == list(task.request_ids)
    assert [row["label"] for row in rows] == list(task.labels)
    assert [row["seed"] for row in rows] == list(task.seeds)
    assert [row["image"]["path"] for row in rows] == [f"{name}.png" for name in task.request_ids]
    assert [row["image"]["bytes"] for row in rows] == list(result.images)
    assert [(row["accepted"], row["drafted"]) for row in rows] == [(2, 3)] * 6
    assert [row["rounds"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # Drafts that stood with probability 0.75 in place of 0.5, twice, and fell with 0.25 in place of 0.5, once.
    assert [row["certificate"] for row in rows] == pytest.approx([1 - (2 / 3) ** 2 * 2] * 6)
    assert {row["guarantee"] for row in rows} == {"tv"}
    assert [row["label_agrees"] for row in rows] == [True, False] * 3
    assert table.schema.field("accepted").type == pa.int32()
    assert table.schema.field("certificate").type == pa.float32()


def test_what_is_unknown_is_null(task):
    unknown = dataclasses.replace(make_result(guarantee=Guarantee.NONE), label_agrees=None)
    table = read_table(data_bytes(task, unknown))
    assert table["certificate"].null_count == table["label_agrees"].null_count == 6
    drafts = dataclasses.replace(unknown.drafts, excess=np.full(18, np.nan, np.float32))
    acceptance = read_table(acceptance_bytes(task, dataclasses.replace(unknown, drafts=drafts)))
    assert acceptance["excess"].null_count == 18


def test_a_missing_share_makes_the_certificate_unknown(task):
    result = make_result()
    excess = result.drafts.excess.copy()
    excess[4] = np.nan
    result = dataclasses.replace(result, drafts=dataclasses.replace(result.drafts, excess=excess))
    assert read_table(data_bytes(task, result))["certificate"].is_null().to_pylist() == [False, True] + [False] * 4
    figures = result.figures(task.labels)
    assert figures["certificate_sum"] is figures["certificate_square_sum"] is figures["excess_sum"] is None


def test_acceptance_rows(task):
    result = make_result()
    table = read_table(acceptance_bytes(task, result))
    assert table["request_id"].to_pylist() == [name for name in task.request_ids for _ in range(3)]
    assert table["token"].to_pylist() == result.drafts.token.tolist()
    assert table["draft_index"].to_pylist() == [0, 1, 2] * 6
    assert table["accepted"].to_pylist() == [True, True, False] * 6
    assert np.array_equal(table["log_ratio"].to_numpy(), result.drafts.log_ratio)
    assert table.schema.field("token").type == pa.int32()


def test_features(task):
    result = make_result()
    table = read_table(features_bytes(task, result.features))
    assert table.schema.field("feature").type == pa.list_(pa.float16(), FEATURE_DIMS)
    values = table["feature"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(6, -1)
    assert np.array_equal(values.astype(np.float16), result.features)


def test_the_same_inputs_give_the_same_bytes(task):
    one, other = make_result(), make_result()
    assert data_bytes(task, one) == data_bytes(task, other)
    assert acceptance_bytes(task, one) == acceptance_bytes(task, other)
    assert features_bytes(task, one.features) == features_bytes(task, other.features)
    assert data_bytes(task.model_copy(update={"attempt": 3}), one) == data_bytes(task, one)


def test_no_drafts(task):
    empty = DraftRows(*(np.zeros(0, dtype) for dtype in (np.int64,) * 3 + (np.float32, np.bool_, np.float32)))
    result = dataclasses.replace(make_result(guarantee=Guarantee.EXACT), drafts=empty)
    assert read_table(acceptance_bytes(task, result)).num_rows == 0
    assert read_table(data_bytes(task, result))["certificate"].to_pylist() == [0.0] * 6
    figures = result.figures(task.labels)
    assert figures["tested_by_index"] == figures["accepted_by_index"] == ()
    assert figures["certificate_sum"] == 0.0


def test_figures(task):
    result = make_result()
    figures = result.figures(task.labels)
    assert figures["counts"] == {"target_head_calls": 7, "rounds": 21, "drafted": 18, "accepted": 12}
    assert figures["tested_by_index"] == (6, 6, 6)
    assert figures["accepted_by_index"] == (6, 6, 0)
    assert len(figures["tested_by_token"]) == len(figures["accepted_by_token"]) == 16
    assert sum(figures["accepted_by_token"]) == 12
    assert figures["certificate_sum"] == pytest.approx(6 / 9)
    assert figures["certificate_square_sum"] == pytest.approx(6 / 81)
    assert figures["excess_sum"] == pytest.approx(4.5)
    assert figures["images_by_label"] == (2, 2, 2)
    assert figures["agreeing_by_label"] == (1, 1, 1)


def test_hugging_face_metadata_by_pyarrow(task):
    schema = pq.read_schema(pa.BufferReader(data_bytes(task, make_result())))
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": list(NAMES), "_type": "ClassLabel"}
    assert features["seed"] == {"dtype": "int64", "_type": "Value"}
    assert schema.field("image").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})


def test_the_datasets_library_reads_images_and_classes(task, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    result = make_result()
    for name, data in (
        ("data", data_bytes(task, result)),
        ("acceptance", acceptance_bytes(task, result)),
        ("features", features_bytes(task, result.features)),
    ):
        (tmp_path / f"{name}.parquet").write_bytes(data)

    def load(name: str):
        path = str(tmp_path / f"{name}.parquet")
        return datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))

    data = load("data")
    assert isinstance(data.features["image"], datasets.Image)
    assert data.features["label"] == datasets.ClassLabel(names=list(NAMES))
    assert data.features["certificate"] == datasets.Value("float32")
    assert np.array_equal(np.asarray(data[2]["image"]), decode_image(result.images[2], 1)[..., 0])
    assert data.features["label"].int2str(data[2]["label"]) == "Bag"
    # The library would write the same metadata itself.
    own = json.loads(data.features.arrow_schema.metadata[b"huggingface"])
    assert own == json.loads(read_table(data_bytes(task, result)).schema.metadata[b"huggingface"])
    assert load("acceptance").features["accepted"] == datasets.Value("bool")
    assert load("features").features["feature"] == datasets.List(datasets.Value("float16"), length=FEATURE_DIMS)


def test_a_cut_file_is_not_parquet(task):
    data = data_bytes(task, make_result())
    for damaged in (data[:-10], b"", data[: len(data) // 2]):
        with pytest.raises(ValueError, match="not a Parquet file"):
            read_table(damaged)
