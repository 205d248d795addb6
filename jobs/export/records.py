"""Records of an export, sealed JSON below the destination: what is exported, which pieces are there, and the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import Field, ValidationError

from jobs.export import layout
from jobs.export.images import ImageChange
from spd_core.law import Settings
from workers.sealed import canonical_json, check_version, seal, unseal
from workers.store import Store, StoreError

#: Of all three records.
VERSION = 1


class FileFacts(Settings):
    """One file that was written."""

    path: str
    bytes: int
    sha256: str


class ExportPlan(Settings):
    """Everything that decides a byte of an export; a resume must have the same one."""

    version: int = VERSION
    format: str
    dataset: str = Field(description="URL of the dataset, without secrets")
    fingerprint: str = Field(description="of the dataset's plan")
    shards: tuple[tuple[int, int], ...] = Field(
        description="first and last of each run of shards that were committed when the export began"
    )
    images_sha256: str = Field(description="over the hashes of these shards' image files, in their order")
    partial: bool = Field(description="whether the dataset has shards that were not committed then")
    rows: int = Field(description="images to export")
    labels: tuple[int, ...] | None = Field(description="only these; None: all")
    images: ImageChange
    images_in_words: str
    shuffle_seed: int | None = Field(description="of numpy.random.RandomState(seed).permutation(rows); None: in order")
    file_mb: int = Field(ge=1, description="MB of one file, about")
    versions: dict[str, str] = Field(description="of the libraries that decide bytes")
    sha256: str = Field("", description="over everything else in here")


class PieceRecord(Settings):
    """A run of images whose files are there."""

    version: int = VERSION
    plan_sha256: str
    piece: int
    first: int = Field(description="place of its first image in the export's order, from 0")
    rows: int
    files: tuple[FileFacts, ...] = Field(description="the table of its images, last, and before it what else is few")
    sources: dict[str, str] = Field(description="sha256 by path of the dataset's files it was read from, each checked")
    sha256: str = ""


class Manifest(Settings):
    """The end of an export: every file by path, but for the single images of a folder, which are in the tables."""

    version: int = VERSION
    plan_sha256: str
    format: str
    rows: int
    rows_by_label: dict[str, int]
    class_names: tuple[str, ...]
    images_in_words: str
    files: tuple[FileFacts, ...] = Field(description="by path")
    tables: tuple[str, ...] = Field(description="tables of all images: file, place in it, id, label, seed, sha256")
    sha256: str = ""


_Record = TypeVar("_Record", ExportPlan, PieceRecord, Manifest)


def sealed(record: _Record) -> _Record:
    """The record with its seal."""
    return type(record).model_validate(seal(record.model_dump(mode="json")))


def to_bytes(record: ExportPlan | PieceRecord | Manifest) -> bytes:
    """Canonical JSON of a sealed record: equal records give equal bytes."""
    return canonical_json(seal(record.model_dump(mode="json")))


def read_record(store: Store, path: str, kind: type[_Record]) -> _Record | None:
    """The stored record; None: there is none.

    Raises:
        StoreError: it is damaged, of a later version, or cannot be read.
    """
    try:
        raw = store.read(path)
    except FileNotFoundError:
        return None
    try:
        content = unseal(raw)
        check_version(content, path, VERSION)
        return kind.model_validate(content)
    except ValidationError as error:
        raise StoreError(f"DEST: {path} is no record of `spd export`, allowed: another folder") from error
    except ValueError as error:
        raise StoreError(f"DEST: {path} {error}, allowed: another folder") from error


def read_pieces(store: Store, plan: ExportPlan) -> dict[int, PieceRecord]:
    """The records of the pieces that are there, by number.

    Raises:
        StoreError: one is damaged or of another export.
    """
    found = {}
    for path in store.list(layout.RECORDS):
        record = read_record(store, path, PieceRecord)
        if record is None:
            continue
        if record.plan_sha256 != plan.sha256 or path != layout.record(record.piece):
            raise StoreError(f"DEST: {path} is of another export, allowed: another folder")
        found[record.piece] = record
    return found


def runs(numbers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """First and last of each run of consecutive numbers, which ascend."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return tuple(found)
