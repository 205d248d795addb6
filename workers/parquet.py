"""The three Parquet files of a shard, as bytes: images with their columns, verified drafts, and features.

The same inputs give the same bytes: fixed compression, no clock, row order = request order.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from workers.records import ShardTask
from workers.result import ShardResult

FEATURE_DIMS = 1280
_HF_DTYPES = {
    pa.string(): "string",
    pa.int64(): "int64",
    pa.int32(): "int32",
    pa.float32(): "float32",
    pa.bool_(): "bool",
}


def _hugging_face(fields: list[pa.Field], special: dict[str, dict[str, Any]]) -> pa.Schema:
    """Schema whose metadata is what the ``datasets`` library writes, so that it sees images and class names."""
    features = {f.name: special.get(f.name) or {"dtype": _HF_DTYPES[f.type], "_type": "Value"} for f in fields}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def data_schema(class_names: tuple[str, ...]) -> pa.Schema:
    """One row per image."""
    return _hugging_face(
        [
            pa.field("image", pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            pa.field("label", pa.int64()),
            pa.field("request_id", pa.string()),
            pa.field("seed", pa.int64()),
            pa.field("accepted", pa.int32()),
            pa.field("drafted", pa.int32()),
            pa.field("rounds", pa.int32()),
            pa.field("certificate", pa.float32()),
            pa.field("guarantee", pa.string()),
            pa.field("label_agrees", pa.bool_()),
        ],
        {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}},
    )


def acceptance_schema() -> pa.Schema:
    """One row per verified draft; ``token`` is the raster index, ``excess`` null where no bound exists."""
    return _hugging_face(
        [
            pa.field("request_id", pa.string()),
            pa.field("token", pa.int32()),
            pa.field("draft_index", pa.int32()),
            pa.field("log_ratio", pa.float32()),
            pa.field("accepted", pa.bool_()),
            pa.field("excess", pa.float32()),
        ],
        {},
    )


def features_schema() -> pa.Schema:
    """One row per image."""
    feature = {"feature": {"dtype": "float16", "_type": "Value"}, "length": FEATURE_DIMS, "_type": "List"}
    return _hugging_face(
        [pa.field("request_id", pa.string()), pa.field("feature", pa.list_(pa.float16(), FEATURE_DIMS))],
        {"feature": feature},
    )


def _to_bytes(schema: pa.Schema, columns: dict[str, Any]) -> bytes:
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, type=field.type)
        for field, column in zip(schema, (columns[name] for name in schema.names), strict=True)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    return bytes(sink.getvalue())


def _null_where_nan(values: NDArray[Any]) -> pa.Array:
    return pa.array(values.astype(np.float32), mask=np.isnan(values))


def data_bytes(task: ShardTask, result: ShardResult) -> bytes:
    """Parquet file of the images and their columns."""
    n = len(task.request_ids)
    paths = [f"{name}.{result.image_format}" for name in task.request_ids]
    return _to_bytes(
        data_schema(result.class_names),
        {
            "image": pa.StructArray.from_arrays(
                [pa.array(result.images, type=pa.binary()), pa.array(paths)], names=["bytes", "path"]
            ),
            "label": task.labels,
            "request_id": task.request_ids,
            "seed": task.seeds,
            "accepted": result.accepted,
            "drafted": result.drafted,
            "rounds": result.rounds,
            "certificate": _null_where_nan(result.certificates),
            "guarantee": [result.guarantee.value] * n,
            "label_agrees": [None] * n if result.label_agrees is None else result.label_agrees,
        },
    )


def acceptance_bytes(task: ShardTask, result: ShardResult) -> bytes:
    """Parquet file of the verified drafts."""
    drafts = result.drafts
    return _to_bytes(
        acceptance_schema(),
        {
            "request_id": pa.array(task.request_ids).take(pa.array(drafts.image)),
            "token": drafts.token,
            "draft_index": drafts.draft_index,
            "log_ratio": drafts.log_ratio,
            "accepted": drafts.accepted,
            "excess": _null_where_nan(drafts.excess),
        },
    )


def features_bytes(task: ShardTask, features: NDArray[np.float16]) -> bytes:
    """Parquet file of the features [n, 1280]."""
    flat = pa.array(features.reshape(-1), type=pa.float16())
    return _to_bytes(
        features_schema(),
        {"request_id": task.request_ids, "feature": pa.FixedSizeListArray.from_arrays(flat, FEATURE_DIMS)},
    )


def empty_bytes(schema: pa.Schema) -> bytes:
    """Parquet file of a table without rows."""
    return _to_bytes(schema, {name: pa.array([], type=schema.field(name).type) for name in schema.names})


def read_table(data: bytes) -> pa.Table:
    """Table of a Parquet file's bytes.

    Raises:
        ValueError: not a whole Parquet file.
    """
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file: {' '.join(str(error).split())}") from error
