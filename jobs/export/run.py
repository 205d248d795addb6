"""An export from its first file to its last, or from where an earlier run of it was killed.

1. The plan of the export is created below the destination, unless the same one is there.
2. For each piece: its files, then the table of its images, then its record, each created once. A piece whose record is
   there and whose files are too is left alone.
3. What belongs to no piece, then the manifest over everything, last.

The same dataset and wishes give the same bytes, so a run that was killed at any instant is gone on with by the next.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from jobs.export import layout
from jobs.export.format import Exported, Format, Job, has_file
from jobs.export.formats import format_class
from jobs.export.images import ImageChange
from jobs.export.records import (
    ExportPlan,
    FileFacts,
    Manifest,
    PieceRecord,
    read_pieces,
    read_record,
    runs,
    sealed,
    to_bytes,
)
from jobs.export.source import Piece, Row, Source, open_source
from jobs.job.labels import alike, allowed_labels, label_of
from jobs.job.plan import changed, package_version
from jobs.words.errors import SpecError
from jobs.words.progress import Progress
from spd_core.law import Settings
from workers.records import ImageFormat
from workers.redact import public_url
from workers.store import Conflict, Store

_TABLE = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("place", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("seed", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
    ]
)


class Wishes(Settings):
    """What somebody asks of an export."""

    format: str
    labels: tuple[str, ...] = Field((), description="numbers or names; none: all")
    size: int | None = None
    encoding: str | None = None
    quality: int | None = None
    seed: int = 0
    partial: bool = False
    file_mb: int = 128


class Done(Settings):
    """What came of an export."""

    rows: int
    files: int = Field(description="without the single images of a folder")
    bytes: int = Field(description="of these files")
    made: int = Field(description="images written in this run")
    images_in_words: str


def export(source: Store, destination: Store, wishes: Wishes, scratch: Path | None = None) -> Done:
    """Exports a dataset, or finishes an export that was begun.

    Args:
        source: the dataset.
        destination: empty, or holding the beginning of the same export.
        wishes: what to export, and how.
        scratch: folder for files that are not made from front to back; None: the system's temporary one.

    Raises:
        SpecError: wrong input, a dataset that is not whole, or a destination of something else.
        JobError: the dataset is damaged.
        StoreError: either store cannot be read or written.
    """
    _check_apart(source, destination)
    dataset = open_source(source)
    stored = read_record(destination, layout.PLAN, ExportPlan)
    if stored is None and not destination.is_empty():
        raise SpecError(
            f"DEST: got {public_url(destination.url)}, which is not empty, allowed: an empty folder, or an export that "
            "was begun with the same arguments"
        )
    plan = make_plan(dataset, wishes, stored)
    if stored is None:
        _store_plan(destination, plan)
    labels = None if plan.labels is None else frozenset(plan.labels)
    pieces = dataset.pieces(_shards(plan), labels, plan.file_mb * 1_000_000)
    writer = format_class(plan.format)(Job(destination, source, dataset.plan, plan, len(pieces), scratch))
    manifest = read_record(destination, layout.MANIFEST, Manifest)
    made = 0
    if manifest is None or not all(has_file(destination, file) for file in manifest.files):
        records, made = _write_pieces(destination, dataset, writer, pieces, labels)
        manifest = _manifest(plan, dataset, records, writer.finish(records), pieces)
        destination.create(layout.MANIFEST, to_bytes(manifest))
    writer.clean()
    return Done(
        rows=plan.rows,
        files=len(manifest.files),
        bytes=sum(file.bytes for file in manifest.files),
        made=made,
        images_in_words=plan.images_in_words,
    )


def _check_apart(source: Store, destination: Store) -> None:
    """Refuses a destination that is the dataset or lies in it, however the two are spelled."""
    if destination.is_within(source):
        raise SpecError(f"DEST: got {public_url(destination.url)}, allowed: a place outside of the dataset")


def make_plan(dataset: Source, wishes: Wishes, stored: ExportPlan | None) -> ExportPlan:
    """The plan of an export, equal to the stored one if there is one.

    Args:
        dataset: as it is now.
        wishes: of this run.
        stored: what an earlier run began; its shards are exported, whatever was committed since.

    Raises:
        SpecError: wrong input, or another export was begun here.
    """
    if stored is None and dataset.partial and not wishes.partial:
        damage = next(iter(dataset.damaged.values()), "")
        raise SpecError(
            f"output: got a dataset of which {len(dataset.kept)} of {dataset.plan.shards} shards are committed"
            f"{f' ({damage})' if damage else ''}, allowed: a whole one, or --partial for what is there"
        )
    kind = format_class(wishes.format)
    labels = _labels(wishes.labels, dataset.plan.class_names)
    shards = list(dataset.kept) if stored is None else _shards(stored)
    digest = dataset.images_sha256(shards)
    rows = int(dataset.rows_by_label(shards, None if labels is None else frozenset(labels)).sum())
    if not rows:
        named = f" with {'label' if labels and len(labels) == 1 else 'labels'} {', '.join(wishes.labels)}"
        raise SpecError(f"output: got a dataset without images{named if labels else ''}, allowed: one that has some")
    images = _change(wishes, dataset, kind)
    words = images.in_words()
    plan = sealed(
        ExportPlan(
            format=wishes.format,
            dataset=public_url(dataset.store.url),
            fingerprint=dataset.plan.fingerprint,
            shards=runs(shards),
            images_sha256=digest,
            partial=stored.partial if stored else dataset.partial,
            rows=rows,
            labels=labels,
            images=images,
            images_in_words=f"RGB pixels, {words}".replace(", the dataset's own bytes", "")
            if kind.of_pixels
            else words,
            shuffle_seed=wishes.seed if kind.shuffled else None,
            file_mb=wishes.file_mb,
            versions=_versions(images, kind),
        )
    )
    if stored is not None and (found := _differences(stored, plan)):
        raise SpecError(f"DEST: another export was begun there: {'; '.join(found[:3])}; allowed: another DEST")
    return stored or plan


#: What of a plan somebody asks for, by the argument that says it.
_ARGUMENTS = {"format": "--to", "shuffle_seed": "--seed", "file_mb": "--file-mb"}


def _differences(stored: ExportPlan, plan: ExportPlan) -> list[str]:
    if stored.format != plan.format:  # on which most of the other fields depend
        return changed({"--to": stored.format}, {"--to": plan.format})
    derived = {"sha256", "dataset", "images_in_words"}
    dumps = (each.model_dump(mode="json", exclude=derived) for each in (stored, plan))
    old, new = ({_ARGUMENTS.get(name, name): value for name, value in each.items()} for each in dumps)
    return changed(old, new)


def _labels(wanted: tuple[str, ...], names: tuple[str, ...]) -> tuple[int, ...] | None:
    found = set()
    for text in wanted:
        label = label_of(text, names)
        if label is None:
            raise SpecError(f"--label: got {text!r}, allowed: {allowed_labels(names)}{alike(text, names)}")
        found.add(label)
    return tuple(sorted(found)) or None


def _change(wishes: Wishes, dataset: Source, kind: type[Format]) -> ImageChange:
    """What is to be done to the images: nothing where what is wanted is what there is."""
    if kind.of_pixels:
        if wishes.encoding or wishes.quality:
            raise SpecError(f"--image, --quality: got one with --to {wishes.format}, allowed: neither, it holds pixels")
        return ImageChange(size=wishes.size)
    there = dataset.plan.spec.image
    name = wishes.encoding or there.format
    if wishes.quality and name != "jpeg":
        raise SpecError(f"--quality: got {wishes.quality} with {name}, allowed: none, it is of jpeg")
    quality = wishes.quality or (there.quality if name == there.format else ImageFormat().quality)
    wanted = ImageFormat(format=name, quality=quality, effort=there.effort)
    return ImageChange(size=wishes.size, encoding=None if wishes.size is None and wanted == there else wanted)


def _versions(images: ImageChange, kind: type[Format]) -> dict[str, str]:
    """Of the libraries that decide bytes: tables are pyarrow's, what is encoded or resized is Pillow's."""
    pillow = images.size is not None or images.encoding is not None or kind.of_pixels
    return {name: package_version(name) for name in ("pyarrow", *(("pillow",) if pillow else ()))}


def _shards(plan: ExportPlan) -> list[int]:
    return [shard for first, last in plan.shards for shard in range(first, last + 1)]


def _store_plan(destination: Store, plan: ExportPlan) -> None:
    try:
        destination.create(layout.PLAN, to_bytes(plan))
    except Conflict as error:
        raise SpecError(f"DEST: another export was begun in {public_url(destination.url)} just now") from error


def _write_pieces(
    destination: Store, dataset: Source, writer: Format, pieces: list[Piece], labels: frozenset[int] | None
) -> tuple[list[PieceRecord], int]:
    """Writes the pieces that are not there yet; returns the records of all, and how many images were written."""
    plan = writer.job.plan
    there = {number: record for number, record in read_pieces(destination, plan).items() if writer.holds(record)}
    with Progress(plan.rows, "images", sum(piece.rows for piece in pieces if piece.number in there)) as progress:
        for piece in pieces:
            if piece.number in there:
                continue
            written = writer.write(piece, _rows(dataset, piece, labels, progress))
            table = writer.put(layout.images(piece.number, len(pieces)), _table_bytes(written.images))
            kept = [dataset.kept[shard] for shard in piece.shards]
            record = PieceRecord(
                plan_sha256=plan.sha256,
                piece=piece.number,
                first=piece.first,
                rows=piece.rows,
                files=(*written.files, table),
                sources={each.paths[0]: each.digests[0].hex() for each in kept},
            )
            destination.create(layout.record(piece.number), to_bytes(record))
            there[piece.number] = record
    return [there[piece.number] for piece in pieces], progress.made


def _rows(dataset: Source, piece: Piece, labels: frozenset[int] | None, progress: Progress) -> Iterator[Row]:
    index = piece.first
    for shard in piece.shards:
        first = index
        for row in dataset.rows(shard, first, labels):
            yield row
            index = row.index + 1
        progress.add(index - first)
        progress.tick()


def _table_bytes(images: list[Exported]) -> bytes:
    columns = [
        pa.array(column, type=field.type) for column, field in zip(zip(*images, strict=True), _TABLE, strict=True)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=_TABLE), buffer, compression="zstd")
    return buffer.getvalue()


def _manifest(
    plan: ExportPlan, dataset: Source, records: list[PieceRecord], others: tuple[FileFacts, ...], pieces: list[Piece]
) -> Manifest:
    labels = None if plan.labels is None else frozenset(plan.labels)
    by_label = dataset.rows_by_label(_shards(plan), labels)
    raw = to_bytes(plan)
    own = FileFacts(path=layout.PLAN, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    return Manifest(
        plan_sha256=plan.sha256,
        format=plan.format,
        rows=plan.rows,
        rows_by_label={str(label): int(count) for label, count in enumerate(by_label) if count},
        class_names=dataset.plan.class_names,
        images_in_words=plan.images_in_words,
        files=(own, *others, *(file for record in records for file in record.files)),
        tables=tuple(layout.images(piece.number, len(pieces)) for piece in pieces),
    )
