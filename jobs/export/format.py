"""What a format of `spd export` is: how a piece is written, what there is to do at the end."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jobs.export.images import EXTENSIONS
from jobs.export.records import ExportPlan, FileFacts, PieceRecord
from jobs.export.source import Piece, Row
from jobs.job.plan import Plan
from jobs.words.errors import JobError
from workers.store import Store


class Exported(NamedTuple):
    """Where an image lies in an export."""

    file: str
    place: str  #: in the file: name of a tar's member, row of a table or an array; empty: the file is the image
    request_id: str
    label: int
    seed: int
    bytes: int
    sha256: str  #: of these bytes


@dataclass(frozen=True)
class Written:
    """A piece that was written."""

    files: tuple[FileFacts, ...]  #: but for single images
    images: list[Exported]  #: in order


@dataclass(frozen=True)
class Job:
    """What is exported to where."""

    destination: Store
    source: Store
    dataset: Plan
    plan: ExportPlan
    pieces: int
    scratch: Path | None  #: for files that are not made from front to back; None: the system's temporary folder


class Format(ABC):
    """One form of a dataset; the same job writes the same bytes, whichever process writes them."""

    #: Whether it holds pixels in place of encoded images.
    of_pixels = False
    #: Whether the images come in an order of their own.
    shuffled = False

    def __init__(self, job: Job) -> None:
        self.job = job

    @abstractmethod
    def write(self, piece: Piece, rows: Iterator[Row]) -> Written:
        """Writes the files of a piece; those that are there already with the same content count as written."""

    def holds(self, record: PieceRecord) -> bool:
        """Whether the files of a piece that was written once are still there, by their sizes."""
        return all(has_file(self.job.destination, file) for file in record.files)

    def finish(self, records: list[PieceRecord]) -> tuple[FileFacts, ...]:
        """Writes what belongs to no piece, when all of them are there, and returns it."""
        del records
        return ()

    def clean(self) -> None:  # noqa: B027 - most formats leave nothing behind
        """Removes what was of use for a while, when the export is whole."""

    def put(self, path: str, data: bytes) -> FileFacts:
        """Creates a file of the destination."""
        self.job.destination.create(path, data)
        return FileFacts(path=path, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def encoded(self, row: Row) -> bytes:
        """The row's image as it is exported."""
        try:
            return self.job.plan.images.encoded(row.image)
        except ValueError as error:
            raise JobError(f"output: image {row.request_id}: {error}") from error

    def extension(self, row: Row) -> str:
        """Of the row's image as a file, without a dot."""
        change = self.job.plan.images.encoding
        return EXTENSIONS[change.format if change else self.job.dataset.spec.image.format]

    def exported(self, row: Row, file: str, place: str, data: bytes) -> Exported:
        """What the table of images says of a row whose bytes lie there."""
        digest = hashlib.sha256(data).hexdigest()
        return Exported(file, place, row.request_id, row.label, row.columns["seed"], len(data), digest)


def has_file(store: Store, file: FileFacts) -> bool:
    """Whether a file that was written is still there, by its size."""
    try:
        return store.size(file.path) == file.bytes
    except FileNotFoundError:
        return False
