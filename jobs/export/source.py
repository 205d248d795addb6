"""The dataset as an export reads it: which images, in pieces of about one size, every file checked against its hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.dataset.commits import DamagedPart, Kept, read_committed, read_part
from jobs.job.plan import Plan, read_plan
from jobs.job.request_file import ID_PATTERN
from jobs.words.errors import JobError, SpecError
from workers import layout
from workers.parquet import data_schema
from workers.records import CommitRecord
from workers.store import Store

Counts = NDArray[np.integer[Any]]

#: Rows that are Python objects at one time.
_ROWS = 256
#: Bytes that an image costs in a file beside its own; a tar has three members of two half-empty blocks.
_OVERHEAD = 3072


@dataclass(frozen=True, slots=True)
class Row:
    """One image of the dataset."""

    index: int  #: in the export's order, from 0
    request_id: str
    label: int
    image: bytes
    columns: dict[str, Any]  #: every column of the dataset's row but the image


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive shards that are exported together: the unit of resuming."""

    number: int
    first: int  #: index of its first row
    rows: int
    shards: tuple[int, ...]


@dataclass
class Source:
    """What is committed of a dataset."""

    store: Store
    plan: Plan
    kept: dict[int, Kept]  #: by shard, ascending
    damaged: dict[int, str]
    counts: dict[int, Counts] = field(repr=False)  #: images by label of each shard

    @property
    def partial(self) -> bool:
        return len(self.kept) < self.plan.shards

    def images_sha256(self, shards: Iterable[int]) -> str:
        """Hash over the hashes of the shards' image files.

        Raises:
            SpecError: a shard is not there any more.
        """
        digest = hashlib.sha256()
        for shard in shards:
            if shard not in self.kept:
                raise SpecError(f"output: shard {shard} was there when the export began, allowed: another DEST")
            digest.update(shard.to_bytes(8, "big") + self.kept[shard].digests[0])
        return digest.hexdigest()

    def rows_by_label(self, shards: Iterable[int], labels: frozenset[int] | None) -> Counts:
        """Images to export by label."""
        total = np.zeros(len(self.plan.class_names), dtype=np.int64)
        for shard in shards:
            total[: len(self.counts[shard])] += self.counts[shard]
        if labels is not None:
            total[[label for label in range(len(total)) if label not in labels]] = 0
        return total

    def pieces(self, shards: Iterable[int], labels: frozenset[int] | None, limit: int) -> list[Piece]:
        """The shards that have images to export, in order, as many to a piece as there is room for.

        Args:
            shards: to look at, ascending.
            labels: only these; None: all.
            limit: bytes of a piece; a shard that is larger has one of its own.
        """
        groups: list[list[int]] = []
        rows: list[int] = []
        room = 0.0
        for shard in shards:
            count = int(self.rows_by_label((shard,), labels).sum())
            if not count:
                continue
            cost = count * (self.kept[shard].sizes[0] / self.kept[shard].rows + _OVERHEAD)
            if not groups or cost > room:
                groups.append([])
                rows.append(0)
                room = float(limit)
            groups[-1].append(shard)
            rows[-1] += count
            room -= cost
        firsts = accumulate(rows, initial=0)
        return [Piece(*each) for each in zip(range(len(groups)), firsts, rows, map(tuple, groups), strict=False)]

    def rows(self, shard: int, first: int, labels: frozenset[int] | None) -> Iterator[Row]:
        """The images of a shard in its order.

        Args:
            shard: to read.
            first: index of its first image to export.
            labels: only these; None: all.

        Raises:
            JobError: its file is gone or is not what was committed.
            StoreError: the store cannot be read.
        """
        kept = self.kept[shard]
        try:
            file = _parquet(kept.paths[0], read_part(self.store, kept, layout.DATA), self.plan.class_names)
        except DamagedPart as error:
            raise JobError(
                f"output: {error}; `spd generate` with the same spec and output makes it again, then resume"
            ) from error
        index = first
        for batch in file.iter_batches(batch_size=_ROWS):
            for columns in batch.to_pylist():
                if labels is None or columns["label"] in labels:
                    yield self._row(index, kept.paths[0], columns)
                    index += 1
        if index - first != self.rows_by_label((shard,), labels).sum():
            raise JobError(f"output: {kept.paths[0]}: labels are not those its commit record counts")

    def _row(self, index: int, path: str, columns: dict[str, Any]) -> Row:
        """A row whose id may become the name of a file, whoever made the dataset."""
        image, name, label = columns.pop("image"), columns["request_id"], columns["label"]
        known = label is not None and 0 <= label < len(self.plan.class_names)
        if not known or name is None or not re.fullmatch(ID_PATTERN, name) or not image or not image["bytes"]:
            raise JobError(f"output: {path}: has a row that no request can have made: id {name!r}, label {label!r}")
        return Row(index, name, label, image["bytes"], columns)


def _parquet(path: str, data: bytes, class_names: tuple[str, ...]) -> pq.ParquetFile:
    """The opened bytes of a file of images.

    Raises:
        DamagedPart: it is not one, which its hash does not tell where something else was committed.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise DamagedPart(f"{path}: is not a Parquet file") from error
    if not file.schema_arrow.equals(data_schema(class_names)):
        raise DamagedPart(f"{path}: has another schema")
    return file


def open_source(store: Store) -> Source:
    """Reads the plan and the commit records of a dataset.

    Raises:
        SpecError: there is none, or it is another job's.
        JobError: an image file is gone or has another size than committed.
        StoreError: the store cannot be read.
    """
    plan = read_plan(store)
    counts: dict[int, Counts] = {}

    def count(record: CommitRecord) -> None:
        images = record.images_by_label
        if len(images) > len(plan.class_names) or min(images, default=0) < 0:
            raise JobError(f"output: the commit record of shard {record.shard} counts labels that the plan has not")
        # There may be many shards and many classes: as narrow as the numbers allow.
        counts[record.shard] = np.array(images, dtype=np.min_scalar_type(max(images, default=0)))

    committed = read_committed(store, plan, count)
    sizes = store.list(layout.DATA)
    for kept in committed.records.values():
        if sizes.get(kept.paths[0]) != kept.sizes[0] and not _has_size(store, kept):
            raise JobError(
                f"output: {kept.paths[0]} is gone or of another size than committed; `spd generate` with the same "
                "spec and output makes it again"
            )
    return Source(store, plan, dict(sorted(committed.records.items())), committed.damaged, counts)


def _has_size(store: Store, kept: Kept) -> bool:
    """Looks a file up by its name, for a listing may lag behind."""
    try:
        return store.size(kept.paths[0]) == kept.sizes[0]
    except FileNotFoundError:
        return False
