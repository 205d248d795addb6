"""One file an image in a folder for each class, as ImageFolder loaders read them.

These loaders number the classes in the order of the folders' names, so the names begin with the label, as wide as the
largest: with all classes exported, a loader's number is the label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from jobs.export.format import Exported, Format, Written
from jobs.export.source import Piece, Row

_THREADS = 16  # an object store's latency, or a disk's sync, outweighs the bytes of one image
_AT_ONCE = 512  #: images handed to them together


def class_folder(label: int, class_names: tuple[str, ...]) -> str:
    """``03-Dress``: the label and what a file system can take of the class's name."""
    name, number = class_names[label], f"{label:0{len(str(len(class_names) - 1))}d}"
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:64].strip("_.")
    return f"{number}-{plain}" if plain and name != str(label) else number


class ImageFolder(Format):
    """``train/CLASS/ID.png`` (or jpg, webp)."""

    def write(self, piece: Piece, rows: Iterator[Row]) -> Written:
        images: list[Exported] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            while some := list(islice(rows, _AT_ONCE)):
                images.extend(pool.map(self._write, some))
        return Written((), images)

    def _write(self, row: Row) -> Exported:
        folder, data = class_folder(row.label, self.job.dataset.class_names), self.encoded(row)
        path = f"train/{folder}/{row.request_id}.{self.extension(row)}"
        self.job.destination.create(path, data)
        return self.exported(row, path, "", data)
