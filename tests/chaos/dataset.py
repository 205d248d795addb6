"""Rows of a dataset against those of an undisturbed run."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass

import pyarrow.parquet as pq
from pyarrow import BufferReader

from jobs.dataset.leftovers import is_empty_part
from workers.store import Store


@dataclass
class Rows:
    """Request ids with what was made for them, and hashes of the files."""

    images: dict[str, tuple[object, ...]]
    counts: Counter[str]
    files: dict[str, str]


@dataclass(frozen=True)
class Difference:
    """What is wrong with a dataset; all 0: nothing."""

    lost: int = 0  #: rows of the undisturbed run that are not there
    doubled: int = 0  #: rows that are there more than once
    differing: int = 0  #: rows with another label, seed or image
    files: int = 0  #: Parquet files with other bytes


def read_rows(store: Store) -> Rows:
    """Every row of every data file that lies there, committed or not."""
    rows = Rows({}, Counter(), {})
    for path in store.list():
        if not path.endswith(".parquet") or is_empty_part(raw := store.read(path)):
            continue
        # A shard that was made again has another name.
        name = re.sub(r"\.r\d+\.parquet$", ".parquet", path)
        rows.files[path if name in rows.files else name] = hashlib.sha256(raw).hexdigest()
        if path.startswith("data/"):
            table = pq.read_table(BufferReader(raw), columns=["request_id", "label", "seed", "image"])
            for row in table.to_pylist():
                digest = hashlib.sha256(row["image"]["bytes"]).hexdigest()
                rows.images[row["request_id"]] = (row["label"], row["seed"], digest)
                rows.counts[row["request_id"]] += 1
    return rows


def compare(rows: Rows, undisturbed: Rows) -> Difference:
    """How rows differ from those they should be."""
    both = rows.images.keys() & undisturbed.images.keys()
    return Difference(
        lost=len(undisturbed.images.keys() - rows.images.keys()),
        doubled=sum(count - 1 for count in rows.counts.values()) + len(rows.images.keys() - undisturbed.images.keys()),
        differing=sum(rows.images[name] != undisturbed.images[name] for name in both),
        files=sum(
            rows.files.get(path) != undisturbed.files.get(path) for path in rows.files.keys() | undisturbed.files.keys()
        ),
    )
