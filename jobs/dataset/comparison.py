"""The figures of a ``quality`` block: images of the dataset measured, held against a reference, and kept beside it.

What a worker measured while it made a shard is taken as it is; the rest is measured here, from the committed images,
shard by shard, so that one that was stopped goes on where it was. Memory does not grow with the images.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fsspec.utils import get_protocol
from torch import Tensor

from jobs.dataset.commits import DamagedPart, Kept, read_part
from jobs.job.quality import Quality
from jobs.words.progress import Progress
from spd_core.quality.comparison import PUBLISHED_IMAGES, Gathered, figures
from spd_core.quality.extractors import FeatureMeasurer, Measurer, batch_of, key_of, load_extractor
from spd_core.quality.files import bundled_references
from spd_core.quality.statistics import Statistics, check_made_by, load_statistics
from workers import layout
from workers.decoding import in_batches, rgb
from workers.fetched import local_file
from workers.quality import keep, kept
from workers.records import QualityFile, QualitySettings
from workers.redact import public_url
from workers.sealed import canonical_json, seal, unseal
from workers.store import Store

logger = logging.getLogger(__name__)
Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A quality block whose files have been read and fit each other."""

    quality: Quality
    options: dict[str, Any]  #: of the file system of the weights
    extractor: FeatureMeasurer
    reference: Statistics | None

    def for_workers(self) -> QualitySettings:
        """What the workers measure."""
        weights = None
        if self.quality.weights:
            place = self.quality.weights
            if "://" not in place:
                place = str(local_file("quality.weights", place))  # a worker's current folder is not the driver's
            weights = QualityFile(place=place, sha256=self.extractor.sha256)
        return QualitySettings(extractor=self.quality.extractor, weights=weights, options=self.options)

    @property
    def of(self) -> Json:
        """What decides the figures, besides the images."""
        return {
            "extractor": key_of(self.extractor),
            "reference": self.reference.sha256 if self.reference else None,
        }

    def compare(self, store: Store, shards: Sequence[Kept], each: Callable[[], None] | None = None) -> bool:
        """Measures what is not measured yet, and keeps the figures for reports to show.

        Args:
            store: the output.
            shards: that are committed, ascending.
            each: called after every shard.

        Returns:
            False: the figures are there already, of these images.

        Raises:
            DamagedPart: a data file is gone or not what was committed.
            StoreError: the store cannot be read or written.
        """
        used = _used(shards)
        about = {"version": 1, "data": _digest(used), "of": self.of}
        before = _read(store)
        if before is not None and {name: before.get(name) for name in about} == about:
            return False
        gathered = Gathered(self.extractor)
        images = min(sum(shard.rows for shard in used), PUBLISHED_IMAGES)
        with Progress(images, "images", note=f"measuring by {self.extractor.name}") as progress:
            for shard in used:
                rows = rows_of(store, shard, self.extractor)
                room = images - len(gathered)
                gathered.add({name: values[:room] for name, values in rows.items()})
                progress.add(min(room, shard.rows))
                progress.tick()
                if each is not None:
                    each()
        made: Json = {"skipped": f"{len(gathered)} images are too few"}
        if len(gathered) > 1:
            made = figures(gathered, self.reference)
        store.replace(layout.COMPARISON, canonical_json(seal({**about, **made})))
        return True


def own_device() -> torch.device:
    """Where this process measures."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve(quality: Quality, output: str, storage_options: dict[str, Any]) -> Asked:
    """Reads the files of a block.

    Args:
        quality: checked.
        output: URL of the output; files of the same protocol are opened with its options.
        storage_options: of the output.

    Raises:
        QualityError: a file is missing or damaged, or does not fit the others.
    """

    def options(place: str) -> dict[str, Any]:
        return storage_options if get_protocol(place) == get_protocol(output) else {}

    weights = local_file("quality.weights", quality.weights, options(quality.weights)) if quality.weights else None
    extractor = load_extractor(quality.extractor, weights, own_device())
    reference = None
    if quality.reference:
        bundled = quality.reference in bundled_references()
        path = None if bundled else local_file("quality.reference", quality.reference, options(quality.reference))
        name = quality.reference if bundled else public_url(quality.reference).rstrip("/").rpartition("/")[2]
        reference = load_statistics(name, path)
        check_made_by(reference, extractor.name, extractor.sha256, extractor.resize)
    return Asked(quality, options(quality.weights), extractor, reference)


def rows_of(store: Store, shard: Kept, measurer: Measurer) -> dict[str, Tensor]:
    """What a network measures of a shard's images: as it was kept, or now.

    Raises:
        DamagedPart: the data file is gone or not what was committed.
        StoreError: the store cannot be read or written.
    """
    digest = shard.digests[0].hex()
    found = kept(store, measurer, digest, shard.rows)
    if found is None:
        batches = [measurer(images) for images in images_of(shard.paths[0], read_part(store, shard, layout.DATA))]
        found = {name: torch.cat([batch[name] for batch in batches]) for name in measurer.rows}
        keep(store, {key_of(measurer): found}, digest)
    return found


def images_of(path: str, data: bytes) -> Iterator[list[Tensor]]:
    """The images of a data file, uint8 [H, W, 3], a pass of a network at a time.

    Raises:
        DamagedPart: an image does not decode.
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    at_once = batch_of(own_device())
    batches = file.iter_batches(at_once, columns=["image"])
    encoded = (image["bytes"] for batch in batches for image in batch["image"].to_pylist())
    try:
        yield from in_batches((partial(rgb, each) for each in encoded), at_once)
    except ValueError as error:
        raise DamagedPart(f"{path}: {error}") from error


def _used(shards: Sequence[Kept]) -> list[Kept]:
    """The shards whose images are compared: as many as published figures are of, in the order of the requests."""
    used, images = [], 0
    for shard in shards:
        if images >= PUBLISHED_IMAGES:
            break
        used.append(shard)
        images += shard.rows
    return used


def _digest(shards: Sequence[Kept]) -> str:
    """Hash over the hashes of the data files."""
    return hashlib.sha256(b"".join(shard.digests[0] for shard in shards)).hexdigest()


def _read(store: Store) -> Json | None:
    """The kept figures as they were stored; None: there are none that can be believed."""
    try:
        return unseal(store.read(layout.COMPARISON))
    except (FileNotFoundError, ValueError):
        return None


def kept_comparison(store: Store, shards: Sequence[Kept]) -> Json | None:
    """The figures of the last `Asked.compare`, if they are of these shards.

    Raises:
        StoreError: the store cannot be read.
    """
    found = _read(store)
    if found is None or found.get("version") != 1 or found.get("data") != _digest(_used(shards)):
        return None
    return {name: value for name, value in found.items() if name not in ("version", "data", "of", "sha256")}
