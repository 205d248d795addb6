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
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from jobs.dataset.commits import DamagedPart, Kept, read_part
from jobs.job.plan import Plan
from jobs.job.quality import Quality
from jobs.job.requests import Tasks
from jobs.words.phrases import comparison_in_words
from jobs.words.progress import Progress
from spd_core.quality.classifiers import PREDICTED, Classifier, load_classifier_file
from spd_core.quality.comparison import PUBLISHED_IMAGES, Agreement, Gathered, figures
from spd_core.quality.extractors import FeatureMeasurer, Measurer, batch_of, key_of, load_extractor
from spd_core.quality.files import QualityError, bundled_references
from spd_core.quality.statistics import Statistics, check_made_by, load_statistics
from workers import layout
from workers.decoding import in_batches, rgb
from workers.fetched import local_file
from workers.quality import keep, kept, options_for
from workers.records import QualityFile, QualitySettings
from workers.redact import public_url
from workers.sealed import canonical_json, seal, unseal
from workers.staged import Measured, joined
from workers.store import Store

logger = logging.getLogger(__name__)
Json = dict[str, Any]
_VERSION = 1  #: of the kept figures; others are computed anew


@dataclass(frozen=True)
class Asked:
    """A quality block whose files have been read and fit each other."""

    quality: Quality
    output: str  #: URL
    options: dict[str, Any]  #: of the output's file system
    extractor: FeatureMeasurer | None
    reference: Statistics | None
    classifier: Classifier | None

    def for_workers(self) -> QualitySettings:
        """What the workers measure."""
        return QualitySettings(
            extractor=self.quality.extractor if self.extractor else None,
            weights=self._file("weights", self.extractor) if self.quality.weights else None,
            classifier=self._file("classifier", self.classifier) if self.classifier else None,
            options=self.options,
            output=self.output,
        )

    def _file(self, field: str, loaded: Measurer | None) -> QualityFile | None:
        place = str(getattr(self.quality, field))
        if "://" not in place:
            place = str(Path(place).expanduser().absolute())  # a worker's current folder is not the driver's
        return QualityFile(place=place, sha256=loaded.sha256) if loaded else None

    @property
    def of(self) -> Json:
        """What decides the figures, besides the images."""
        return {
            "extractor": key_of(self.extractor) if self.extractor else None,
            "reference": self.reference.sha256 if self.reference else None,
            "classifier": key_of(self.classifier) if self.classifier else None,
        }

    def compare(self, store: Store, plan: Plan, shards: Sequence[Kept], beat: Callable[[], None] | None = None) -> bool:
        """Measures what is not measured yet, and keeps the figures for reports to show.

        Args:
            store: the output.
            plan: of the job.
            shards: that are committed, ascending.
            beat: called after every shard.

        Returns:
            False: the figures are there already, of these images.

        Raises:
            DamagedPart: a data file is gone or not what was committed.
            StoreError: the store cannot be read or written.
        """
        used = _used(shards)
        about = {"version": _VERSION, "data": _digest(used), "of": self.of}
        before = _read(store)
        if before is not None and {name: before.get(name) for name in about} == about:
            return False
        measurers = [each for each in (self.extractor, self.classifier) if each is not None]
        gathered = Gathered(self.extractor) if self.extractor else None
        agreement, tasks = Agreement(plan.class_names), Tasks(store, plan)
        images = min(sum(shard.rows for shard in used), PUBLISHED_IMAGES)
        with Progress(images, "images", note=f"measuring by {', '.join(each.name for each in measurers)}") as progress:
            for shard in used:
                taken = min(images - progress.done, shard.rows)
                rows = rows_of(store, shard, measurers)
                if gathered is not None:
                    gathered.add({name: values[:taken] for name, values in rows[0].items()})
                if self.classifier is not None:
                    labels = torch.tensor(tasks.task(shard.shard, shard.attempt).labels)
                    agreement.add(rows[-1][PREDICTED][:taken], labels[:taken])
                progress.add(taken)
                progress.tick()
                if beat is not None:
                    beat()
        made: Json = {}
        if gathered is not None:
            few = {"skipped": f"{len(gathered)} images are too few"}
            made = figures(gathered, self.reference) if len(gathered) > 1 else few
        if self.classifier is not None:
            made["label_agreement"] = agreement.figures(self.classifier.name, self.classifier.sha256)
        store.replace(layout.COMPARISON, canonical_json(seal({**about, **made})))
        return True


def own_device() -> torch.device:
    """Where this process measures."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve(quality: Quality, output: str, storage_options: dict[str, Any], class_names: Sequence[str]) -> Asked:
    """Reads the files of a block.

    Args:
        quality: checked.
        output: URL of the output; files of the same protocol are opened with its options.
        storage_options: of the output.
        class_names: of the dataset.

    Raises:
        QualityError: a file is missing or damaged, or does not fit the others or the dataset.
    """

    def local(field: str) -> Path | None:
        place = str(getattr(quality, field))
        found = place and local_file(f"quality.{field}", place, options_for(place, output, storage_options))
        return found or None

    extractor, reference, classifier = None, None, None
    if quality.compares:
        extractor = load_extractor(quality.extractor, local("weights"), own_device())
    if extractor is not None and quality.reference:
        bundled = quality.reference in bundled_references()
        name = quality.reference if bundled else public_url(quality.reference).rstrip("/").rpartition("/")[2]
        reference = load_statistics(name, None if bundled else local("reference"))
        check_made_by(reference, extractor.name, extractor.sha256, extractor.resize)
    if path := local("classifier"):
        classifier = load_classifier_file(path, own_device())
        if classifier.classes not in (None, len(class_names)):
            raise QualityError(
                f"quality.classifier: got one of {classifier.classes} classes, allowed: {len(class_names)}, those of "
                "the dataset in their order"
            )
    return Asked(quality, output, storage_options, extractor, reference, classifier)


def rows_of(store: Store, shard: Kept, measurers: Sequence[Measurer]) -> list[dict[str, Tensor]]:
    """What networks measure of a shard's images: as it was kept, or now.

    Raises:
        DamagedPart: the data file is gone or not what was committed.
        StoreError: the store cannot be read or written.
    """
    digest = shard.digests[0].hex()
    found = {key_of(each): kept(store, each, digest, shard.rows) for each in measurers}
    missing = [each for each in measurers if found[key_of(each)] is None]
    if missing:
        batches: list[Measured] = []
        for images in images_of(shard.paths[0], read_part(store, shard, layout.DATA)):
            batches.append({key_of(each): each(images) for each in missing})
        measured = joined(batches)
        keep(store, measured, digest)
        found |= measured
    return [found[key_of(each)] or {} for each in measurers]


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
    if found is None or found.get("version") != _VERSION or found.get("data") != _digest(_used(shards)):
        return None
    made = {name: value for name, value in found.items() if name not in ("version", "data", "of", "sha256")}
    try:
        comparison_in_words(made)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None  # a dataset of strangers may hold anything
    return made
