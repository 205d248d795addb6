"""One uncompressed .npz as the published evaluators read it: ``arr_0`` uint8 [n, H, W, 3], ``arr_1`` int64 labels [n].

Evaluators split the images into ten parts for the inception score, so images sorted by class would change it: they are
shuffled. An image's place is known before it is read, so both arrays are filled in place, in files that a resume goes
on with, and are put into the zip from front to back at the end.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.export import layout
from jobs.export.format import Exported, Format, Job, Written
from jobs.export.records import FileFacts, PieceRecord
from jobs.export.source import Piece, Row
from jobs.words.errors import JobError, SpecError
from jobs.words.progress import Progress
from workers.encode import Pixels

PATH = "images.npz"
_LABEL = np.dtype("<i8")
_MB = 1_000_000
_COPIED = 8 * _MB  #: bytes at a time


class Npz(Format):
    """``images.npz``, filled in a working folder: the destination's own on a disk, else the scratch folder's."""

    of_pixels = True
    shuffled = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        local = job.destination.local_folder()
        if local is not None:
            self._work = local / layout.WORK
        else:
            where = hashlib.sha256(f"{job.destination.url} {job.plan.sha256}".encode()).hexdigest()[:16]
            self._work = (job.scratch or Path(tempfile.gettempdir())) / f"spd-export-{where}"
        self._images, self._labels = self._work / "arr_0.npy", self._work / "arr_1.npy"

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Place in the file of each image of the export's order; this generator's numbers never change."""
        return np.random.RandomState(self.job.plan.shuffle_seed).permutation(self.job.plan.rows)

    def write(self, piece: Piece, rows: Iterator[Row]) -> Written:
        images: list[Exported] = []
        first = next(rows)
        self._make_arrays(self._pixels(first).shape)
        (_, *shape_HWC), start = _header(self._images)
        _, labels_start = _header(self._labels)
        with self._images.open("r+b") as pixel_file, self._labels.open("r+b") as label_file:
            for row in chain((first,), rows):
                pixels_HWC, place = self._pixels(row), int(self._places[row.index])
                if list(pixels_HWC.shape) != shape_HWC:
                    raise JobError(
                        f"output: image {row.request_id} is {list(pixels_HWC.shape)}, others: {shape_HWC}; one array "
                        "holds one size, allowed: --size"
                    )
                data = pixels_HWC.tobytes()
                pixel_file.seek(start + place * len(data))
                pixel_file.write(data)
                label_file.seek(labels_start + place * _LABEL.itemsize)
                label_file.write(np.array(row.label, dtype=_LABEL).tobytes())
                images.append(self.exported(row, PATH, str(place), data))
            for file in (pixel_file, label_file):
                file.flush()
                os.fsync(file.fileno())
        self._done(piece.number).touch()
        return Written((), images)

    def _done(self, piece: int) -> Path:
        """Says that the images of a piece are in the arrays."""
        return self._work / f"{piece:05d}.done"

    def _pixels(self, row: Row) -> Pixels:
        try:
            return self.job.plan.images.rgb(row.image)
        except ValueError as error:
            raise JobError(f"output: image {row.request_id}: {error}") from error

    def _make_arrays(self, shape: tuple[int, ...]) -> None:
        """Makes the arrays' files, unless they are there from an earlier run."""
        rows = self.job.plan.rows
        if self._images.exists() and self._labels.exists():
            return
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        needed, free = 2 * rows * int(np.prod(shape)), shutil.disk_usage(self._work).free
        if needed > free:
            raise SpecError(
                f"--scratch: got {self._work} with {free / 1e9:.1f} GB free, allowed: a folder with "
                f"{needed / 1e9:.1f} GB, room for the array and the file made of it"
            )
        _make_array(self._images, np.dtype(np.uint8), (rows, *shape))
        _make_array(self._labels, _LABEL, (rows,))

    def holds(self, record: PieceRecord) -> bool:
        if not super().holds(record):
            return False
        arrays = self._images.exists() and self._labels.exists()
        return arrays and self._done(record.piece).exists()

    def finish(self, records: list[PieceRecord]) -> tuple[FileFacts, ...]:
        del records
        file = self._work / PATH
        file.unlink(missing_ok=True)  # of an earlier run, and perhaps the destination's by another name
        blocks = sum(-(-array.stat().st_size // _COPIED) for array in (self._images, self._labels))
        progress = Progress(blocks * _COPIED // _MB, "MB", note=f"putting {PATH} together")
        with progress, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for array in (self._images, self._labels):
                # A fixed date, and sizes of 64 bits whatever they are, so that the same images give the same file.
                member = zipfile.ZipInfo(array.name, (1980, 1, 1, 0, 0, 0))
                with archive.open(member, "w", force_zip64=True) as to, array.open("rb") as source:
                    while block := source.read(_COPIED):
                        to.write(block)
                        progress.add(_COPIED // _MB)
                        progress.tick()
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        facts = FileFacts(path=PATH, bytes=file.stat().st_size, sha256=digest)
        self.job.destination.create_from(PATH, file)
        return (facts,)

    def clean(self) -> None:
        if self._work.exists():
            shutil.rmtree(self._work)


def _make_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """A .npy file of zeros that appears with its whole size."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + dtype.itemsize * int(np.prod(shape)))
    temporary.replace(path)


def _header(path: Path) -> tuple[tuple[int, ...], int]:
    """Shape of the array in a .npy file, and the place of its first byte."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        return shape, file.tell()
